# Times of the update's variants on one GPU, one after the other, the GPU otherwise idle. Then a trace of each agent.
. scratch/block/enter.sh
t() { timeout 150 python3 scratch/block/time_update.py "$@" 2>&1 | tail -n 1 | cut -c1-300 | tee -a /tmp/out/times.txt; }
v3="--config ${C3:-v3} --env cheetah-run $FEW"; paper="--config ${CP:-default} --env cheetah-run $FEW"
t v3 '{}' $v3
t v3-one-segment '{"segments": 1}' $v3
t v3-no-late '{"late": 100}' $v3
t v3-three-segments '{"segments": 3}' $v3
t v3-images-2 '{"images": -2, "heads": -2}' $v3
t v3-again '{}' $v3
t paper '{}' $paper
t paper-one-segment '{"segments": 1}' $paper
t paper-three-segments '{"segments": 3}' $paper
t paper-again '{}' $paper
[ -n "${FEW:-}" ] && exit
timeout 200 python3 scratch/imagined_step_bench.py > /tmp/out/imagined.txt 2>&1; tail -n 12 /tmp/out/imagined.txt
for c in v3 default; do timeout 150 python3 scratch/profile_update.py /tmp/out $c --config $c --env cheetah-run > /tmp/out/profile-$c.txt 2>&1; done
