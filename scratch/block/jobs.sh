# Jobs for a lane, each a function; sourced by lane.sh. $FEW: settings for a toy size on a CPU. What they say goes to /tmp/out.
train="python3 run.py --eval.no-video --train.checkpoint-seconds 3600 --logger none"
card=${CARD:-h200}

tests() { # of main, or of the kept kernels: "kept tests"; in 14 processes; the count, and what failed
  mkdir -p /tmp/out/tests; python3 -m pytest -q -o addopts= --collect-only tests/test_gpu.py 2>/dev/null | grep :: | shuf --random-source=<(yes) > /tmp/ids
  rm -f /tmp/part.*; split -n r/14 /tmp/ids /tmp/part.; local started=
  for part in /tmp/part.*; do OMP_NUM_THREADS=1 python3 -m pytest -q -p pytest_timeout -o addopts= -o timeout=300 @$part > /tmp/out/tests/$(basename $part).log 2>&1 & started="$started $!"; done; wait $started
  echo "$(wc -l < /tmp/ids) tests: $(cat /tmp/out/tests/*.log | grep -Eo '[0-9]+ (passed|failed|skipped|error)' | awk '{n[$2]+=$1} END {for (k in n) printf "%s %d  ", k, n[k]}')"
  grep -h "^FAILED\|^ERROR\|^E  " /tmp/out/tests/*.log | cut -c1-300
}
one() { TREE=$1 bash -c '. scratch/block/enter.sh; timeout 90 python3 scratch/block/time_update.py "$@" 2>&1 | tail -n 1 | cut -c1-250' one "${@:2}" | tee -a /tmp/out/times.txt; }
times() { # main's update beside that of the kept kernels, with and without late heads
  for c in ${C3:-v3} ${CP:-default}; do
    one /tmp/main main-$c '{}' --config $c --env cheetah-run $FEW
    one /tmp/w kept-$c-no-late '{"late": 100}' --config $c --env cheetah-run $FEW
    one /tmp/w kept-$c-late '{"late": 4}' --config $c --env cheetah-run $FEW
    one /tmp/main main-$c-again '{}' --config $c --env cheetah-run $FEW
  done
}
contexts() { python3 scratch/block/contexts.py $FEWC 2>&1 | grep -v Warn | tail -n 12; } # what rendering costs an update, by number of GL contexts
profile() { for c in v3 default; do timeout 100 python3 scratch/profile_update.py /tmp/out $c --config $c --env cheetah-run > /tmp/out/profile-$c.txt 2>&1; tail -n 3 /tmp/out/profile-$c.txt; done; }
bench() { # all parts on this lane's GPU; $MINUTES. r2dreamer's compile had not ended after 9.5 minutes: start `compile` in another lane long before
  python3 -m benchmarks --gpus ${CUDA_VISIBLE_DEVICES:-0} --peer /tmp/w/.peers/dreamer-pytorch --r2dreamer /tmp/w/.peers/r2dreamer --skip r2dreamer_compiled $SKIP --minutes ${MINUTES:-9} --out /tmp/out/benchmarks > /tmp/out/bench-log.txt 2>&1; tail -n 6 /tmp/out/bench-log.txt; }
compile() { # r2dreamer's torch.compile, timed once /tmp/quiet is there: `touch /tmp/quiet` when nothing else runs on the GPU
  python3 -m benchmarks.r2dreamer /tmp/w/.peers/r2dreamer --only compiled --limit ${LIMIT:-1500} --after /tmp/quiet --out /tmp/out/r2dreamer_compiled.json 2>&1 | tail -n 8; }
phases() { # QUALITY [TREE [PRESET]]: rates in rounds, evaluations beside training; 90 to 140 s
  [ "$2" = together ] && export DREAMER_MPC_TOGETHER=1 || unset DREAMER_MPC_TOGETHER
  TREE=/tmp/${2:-main} bash -c '. scratch/block/enter.sh; python3 -m benchmarks.phases --beside on --every 5500 --render-quality $1 --config $3 --out /tmp/out/phases-$3-$1-$2.json 2>&1 | tail -n 9' phases $1 ${2:-main} ${3:-default}; }
warp_tests() { timeout 250 python3 -m pytest -q -p pytest_timeout -o addopts= tests/test_warp_gpu.py 2>&1 | tail -n 3; }
rendering() { python3 -m benchmarks.rendering --num-envs 1 8 16 32 --quality full small-shadows fast warp --seconds 2 --out /tmp/out/rendering.json 2>&1 | tail -n 24; }
compare() { # TASK EPISODES: all planners on its v3 agent; killed, the same command goes on
  python3 run.py compare --checkpoint pretrained/$1-v3 --planners all --episodes ${2:-8} --num-envs ${2:-8} --seed 80000 $FEW --out /tmp/out/compare-$1 2>&1 | tail -n 14; }
worlds() { # the v3 agent of cheetah-run played in both worlds
  for q in full warp; do python3 run.py eval --checkpoint pretrained/cheetah-run-v3 --planner policy --episodes 16 --num-envs 16 --seed 80000 --render-quality $q 2>&1 | tail -n 2; done; }
policy() { # TASK STEPS: 880 s alone on an H200 for 250,000
  $train --config ${C3:-v3} --planner policy --seed 0 --env $1 --env-steps ${2:-250000} --render-quality small-shadows --eval.every ${EVERY:-50000} --train.keep-checkpoints 10 --run-dir /tmp/runs/$1-v3-policy $FEW 2>&1 | tail -n 5; }
short() { # QUALITY SEED: 200k env steps of the default agent
  $train --config ${CP:-default} --planner dream-mpc --seed $2 --env cheetah-run --env-steps ${SHORT:-200000} --render-quality $1 --eval.every ${EVERY:-50000} --run-dir /tmp/runs/short-$1-$2 $FEW 2>&1 | tail -n 3; }
whole() { # QUALITY: 1M env steps with 20 evaluations of ten episodes
  ( time -p $train --config ${CP:-default} --planner dream-mpc --seed 0 --env cheetah-run --env-steps ${WHOLE:-1000000} --render-quality $1 --eval.every ${EVERY:-50000} --eval.episodes 10 --train.checkpoint-seconds 300 --run-dir /tmp/runs/whole-$1 $FEW ) 2>&1 | tail -n 8; }
trace() { # PRESET QUALITY: a trace of three updates and three steps of a run, for https://ui.perfetto.dev: where the GPU waits
  $train --config $1 --planner dream-mpc --env cheetah-run --env-steps 12000 --profile --render-quality $2 --eval.every 12000 --eval.episodes 1 --eval.beside off --run-dir /tmp/runs/trace-$1-$2 2>&1 | tail -n 3
  cp /tmp/runs/trace-$1-$2/profile/trace.json.gz /tmp/out/trace-$1-$2.gz; }
kept() { cd /tmp/w; PYTHONPATH=/tmp/w:$PYTHONPATH "$@"; cd $tree; } # a job in the tree of the kept kernels
