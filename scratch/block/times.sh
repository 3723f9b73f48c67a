. scratch/block/enter.sh
t() { timeout 60 python3 scratch/block/time_update.py "$@" 2>&1 | tail -n 1 | cut -c1-300 | tee -a /tmp/out/times.txt; }
v3="--config v3 --env cheetah-run"; paper="--config default --env cheetah-run"
t v3 '{}' $v3
t v3-one-segment '{"segments": 1}' $v3
t v3-no-late '{"late": 100}' $v3
t v3-three-segments '{"segments": 3}' $v3
t paper-one-segment '{"segments": 1}' $paper
t v3-late-8 '{"late": 8}' $v3
t v3-one-no-late '{"segments": 1, "late": 100}' $v3
