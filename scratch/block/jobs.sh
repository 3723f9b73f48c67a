# Jobs for a lane, each a function; sourced by lane.sh. $FEW: settings for a toy size on a CPU. What they say goes to /tmp/out.
train="python3 run.py --eval.no-video --train.checkpoint-seconds 600 --logger none"
v3="--config ${C3:-v3} --render-quality small-shadows"

tests() { # the GPU tests of main, in 8 processes; the count, and what failed
  mkdir -p /tmp/out/tests; python3 -m pytest -q -o addopts= --collect-only tests/test_gpu.py 2>/dev/null | grep :: | shuf --random-source=<(yes) > /tmp/ids
  rm -f /tmp/part.*; split -n r/8 /tmp/ids /tmp/part.; local started=
  for part in /tmp/part.*; do OMP_NUM_THREADS=1 python3 -m pytest -q -p pytest_timeout -o addopts= -o timeout=300 @$part > /tmp/out/tests/$(basename $part).log 2>&1 & started="$started $!"; done; wait $started
  echo "$(wc -l < /tmp/ids) tests: $(cat /tmp/out/tests/*.log | grep -Eo '[0-9]+ (passed|failed|skipped|error)' | awk '{n[$2]+=$1} END {for (k in n) printf "%s %d  ", k, n[k]}')"
  grep -h "^FAILED\|^ERROR\|^E  " /tmp/out/tests/*.log | cut -c1-300
}
bench() { # parts of the benchmarks on this lane's GPU; $MINUTES, $SKIP
  python3 -m benchmarks --gpus ${CUDA_VISIBLE_DEVICES:-0} --peer /tmp/peers/dreamer-pytorch --r2dreamer /tmp/peers/r2dreamer --skip r2dreamer_compiled $SKIP --minutes ${MINUTES:-5} --out /tmp/out/benchmarks > /tmp/out/bench-log.txt 2>&1; tail -n 6 /tmp/out/bench-log.txt; }
peer() { # TASK [SEED]: r2dreamer's agent in our environments, compiled: 632 s to compile beside other work, then perhaps 0.5 s for 32 env steps
  python3 -m benchmarks.peer_learning /tmp/peers/r2dreamer $v3 --env $1 --seed ${2:-0} --env-steps ${PEER:-37000} $FEW ${SETS:-} --out /tmp/out/peer-$1-${2:-0}.json 2>&1 | grep --line-buffered env_steps | tee /tmp/out/peer-$1-${2:-0}.txt; }
learn() { # NAME TASK SEED STEPS [SETTINGS]: the bare policy of v3; 160 s for 37,000 env steps, 240 s with twice the updates
  $train $v3 --planner policy --env $2 --seed $3 --env-steps $4 --eval.every 1000000 --eval.episodes 1 --run-dir /tmp/runs/$1 "${@:5}" $FEW 2>&1 | tail -n 2
  python3 - $1 <<'P'
import json, sys
print(sys.argv[1], [(r["env_steps"], round(r["train/return"])) for r in map(json.loads, open(f"/tmp/runs/{sys.argv[1]}/metrics.jsonl")) if "train/return" in r])
P
}
plan() { # NAME TASK SEED STEPS [SETTINGS]: v3 with dream-mpc
  $train $v3 --planner dream-mpc --env $2 --seed $3 --env-steps $4 --eval.every 1000000 --eval.episodes 1 --run-dir /tmp/runs/$1 "${@:5}" $FEW 2>&1 | tail -n 2; }
compare() { # TASK EPISODES: all planners on its v3 agent; killed, the same command goes on; 212 s for 8 episodes
  python3 run.py compare --checkpoint pretrained/$1-v3 --planners all --episodes ${2:-8} --num-envs ${2:-8} --seed 80000 $FEW --out /tmp/out/compare-$1 2>&1 | tail -n 14; }
world() { # AGENT: its bare policy played in both worlds
  for q in full warp; do python3 run.py eval --checkpoint $1 --planner policy --episodes 16 --num-envs 16 --seed 80000 --render-quality $q > /tmp/out/world-$(basename $1)-$q.txt 2>&1; tail -n 8 /tmp/out/world-$(basename $1)-$q.txt; done; }
short() { # QUALITY SEED: 200k env steps of the default agent; 270 s with warp
  $train --config ${CP:-default} --planner dream-mpc --seed $2 --env cheetah-run --env-steps ${SHORT:-200000} --render-quality $1 --eval.every ${EVERY:-50000} --run-dir /tmp/runs/short-$1-$2 $FEW 2>&1 | tail -n 3; }
whole() { # QUALITY: 1M env steps with 20 evaluations of ten episodes; 20 minutes with warp
  ( time -p $train --config ${CP:-default} --planner dream-mpc --seed 0 --env cheetah-run --env-steps ${WHOLE:-1000000} --render-quality $1 --eval.every ${EVERY:-50000} --eval.episodes 10 --train.checkpoint-seconds 300 --run-dir /tmp/runs/whole-$1 $FEW ) 2>&1 | tail -n 8; }
danijar() { # TASK SEED: danijar's own program (e3f0224, lines for jax 0.11 changed), 12M, 8 environments, action repeat 2, one update in 4 env steps
  cd /tmp/peers/danijar; local log=/tmp/out/danijar-$1-$2.txt
  MUJOCO_EGL_DEVICE_ID=${EGL-${CUDA_VISIBLE_DEVICES%%,*}} SITE=/tmp/peers/djsite timeout ${DJLIMIT:-800} bash full.sh $1 $2 ${DJSTEPS:-24000} /tmp/djlogs/$1-$2 ${DJFEW:-} > $log 2>&1
  grep -q "Start training loop" $log || { tail -n 5 $log; rm -rf /tmp/djlogs/$1-$2; DEBUG=True MUJOCO_EGL_DEVICE_ID=${EGL-${CUDA_VISIBLE_DEVICES%%,*}} SITE=/tmp/peers/djsite timeout ${DJLIMIT:-800} bash full.sh $1 $2 ${DJSTEPS:-24000} /tmp/djlogs/$1-$2 ${DJFEW:-} > $log 2>&1; }
  tail -n 3 $log | cut -c1-300; cd /tmp/main; }
drawn() { # the loop with pictures drawn by the other GPU
  for d in idle cuda:1 same; do CUDA_VISIBLE_DEVICES=0,1 $train --config ${CP:-default} --planner dream-mpc --seed 0 --env cheetah-run --env-steps ${DRAWN:-14000} --render-quality small-shadows --render-device $d --eval.every 1000000 --eval.episodes 1 --run-dir /tmp/runs/drawn-$d $FEW 2>&1 | grep -i "gpu\|draw\|env steps\|error" | tail -n 4
    tail -n 3 /tmp/runs/drawn-$d/metrics.jsonl | grep -o '"env_steps[^,]*,\|"train/env_steps_per_s[^,]*,' | tr '\n' ' '; done; }
probe() { # VARIANT UPDATES [SETTINGS]
  OMP_NUM_THREADS=1 python3 scratch/block/probe.py "$@" > /tmp/out/probe-$1.txt 2>&1; tail -n 1 /tmp/out/probe-$1.txt | cut -c1-300; }
oldstep() { # the new tests with LaProp's old kernel: they must fail
  rm -rf /tmp/old; cp -r /tmp/main /tmp/old; cp scratch/block/laprop_old.txt /tmp/old/dreamer_mpc/kernels/laprop_triton.py
  (cd /tmp/old; PYTHONPATH=/tmp/old:$PYTHONPATH python3 -m pytest -q -p pytest_timeout -o addopts= tests/test_gpu.py -k "equal_numbers or mirror" 2>&1 | grep -E "^E  |passed|failed" | cut -c1-200 | tail -n 8); }
newtests() { (cd /tmp/main; python3 -m pytest -q -p pytest_timeout -o addopts= tests/test_gpu.py -k "laprop or equal_numbers or mirror or v3_s_perceptrons" 2>&1 | grep -E "^E  |passed|failed" | cut -c1-200 | tail -n 8); }
