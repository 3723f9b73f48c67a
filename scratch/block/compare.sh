# All planners on both v3 agents: issue 19, point 4.
. scratch/block/enter.sh
for task in cheetah-run walker-run; do
  timeout 600 python3 run.py compare --checkpoint pretrained/$task-v3 --planners all --episodes ${EPISODES:-16} --num-envs ${EPISODES:-16} --seed 80000 $FEW \
    --out /tmp/out/compare-$task > /tmp/out/compare-$task.txt 2>&1; tail -n 15 /tmp/out/compare-$task.txt
done
