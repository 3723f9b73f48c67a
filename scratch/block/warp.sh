# mujoco-warp on a GPU: its tests, its frames a second, agents of the other world played in it.
. scratch/block/enter.sh
[ -e /tmp/warp/part2 ] || { echo "no warp"; exit; }
[ -e /tmp/warp-site ] || { mkdir /tmp/warp-site; cat /tmp/warp/part1 /tmp/warp/part2 | tar -xJ -C /tmp/warp-site; }
export PYTHONPATH=$PYTHONPATH:/tmp/warp-site
timeout 250 python3 -m pytest -q -p pytest_timeout -o addopts= tests/test_warp_gpu.py > /tmp/out/warp-tests.log 2>&1; tail -n 3 /tmp/out/warp-tests.log
timeout 250 python3 -m benchmarks.rendering --num-envs 1 4 8 16 32 --quality full small-shadows fast warp --out /tmp/out/rendering.json > /tmp/out/rendering.txt 2>&1; tail -n 25 /tmp/out/rendering.txt
for q in full warp; do timeout 200 python3 run.py eval --checkpoint pretrained/cheetah-run-v3 --planner policy --episodes ${EPISODES:-16} --num-envs ${EPISODES:-16} --seed 80000 --render-quality $q > /tmp/out/eval-$q.txt 2>&1; tail -n 4 /tmp/out/eval-$q.txt; done
train="timeout 420 python3 run.py --env cheetah-run --planner dream-mpc --config ${CP:-default} --seed 0 --env-steps ${SHORT:-200000} --eval.every 100000 --eval.no-video --logger none $FEW"
$train --render-quality warp --run-dir /tmp/runs-warp > /tmp/out/train-warp.txt 2>&1; tail -n 4 /tmp/out/train-warp.txt
for q in full small-shadows warp; do timeout 200 python3 run.py eval --checkpoint /tmp/runs-warp --planner policy --episodes ${EPISODES:-16} --num-envs ${EPISODES:-16} --seed 80000 --render-quality $q > /tmp/out/eval-warp-agent-$q.txt 2>&1; tail -n 4 /tmp/out/eval-warp-agent-$q.txt; done
