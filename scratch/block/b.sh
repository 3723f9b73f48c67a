# Block B: two v3 runs of the bare policy, at once on one GPU each; then the whole run, and learning in both qualities.
bash -c '. scratch/block/enter.sh' || exit 1
cd /tmp/w; mkdir -p /tmp/runs
train="python3 run.py --eval.no-video --train.checkpoint-seconds 3600 --logger none"
v3="$train --config ${C3:-v3} --planner policy --seed 0 --env-steps ${V3:-250000} --render-quality small-shadows --eval.every ${EVERY:-50000} --train.keep-checkpoints 10"
short="$train --config ${CP:-default} --env cheetah-run --planner dream-mpc --env-steps ${SHORT:-200000} --eval.every ${EVERY:-50000}"
whole="$train --config ${CP:-default} --env cheetah-run --planner dream-mpc --seed 0 --env-steps ${WHOLE:-1000000} --eval.every ${EVERY:-50000} --eval.episodes 10 --eval.beside on --render-quality small-shadows --train.checkpoint-seconds 300"
cat > /tmp/lane0.sh <<L
. scratch/block/enter.sh
$v3 --env walker-run --run-dir /tmp/runs/walker-run-v3-policy $FEW > /tmp/out/walker-v3.txt 2>&1
( time -p $whole --run-dir /tmp/runs/whole $FEW ) > /tmp/out/whole.txt 2>&1
echo "b done"
L
cat > /tmp/lane1.sh <<L
. scratch/block/enter.sh
$v3 --env cheetah-run --run-dir /tmp/runs/cheetah-run-v3-policy $FEW > /tmp/out/cheetah-v3.txt 2>&1
for q in small-shadows full; do for s in 0 1; do $short --seed \$s --render-quality \$q --run-dir /tmp/runs/short-\$q-\$s $FEW > /tmp/out/short-\$q-\$s.txt 2>&1; done; done
echo "b1 done"
L
for g in 0 1; do CUDA_VISIBLE_DEVICES=$g setsid nohup bash /tmp/lane$g.sh > /tmp/out/gpu$g.txt 2>&1 & done
cat > /tmp/collect.sh <<'L'
# what is small of each run; weights only of the last checkpoint of the v3 runs
cd /tmp/runs; for r in *; do mkdir -p /tmp/out/runs/$r; cp $r/*.yaml $r/*.json $r/metrics.jsonl /tmp/out/runs/$r/ 2>/dev/null; done
L
while sleep 20; do bash /tmp/collect.sh; done > /dev/null 2>&1 &
bash scratch/block/wait.sh "${1:-560}"
