# All planners on one v3 agent: issue 19, point 4.  TASK
. scratch/block/enter.sh
python3 run.py compare --checkpoint pretrained/$1-v3 --planners all --episodes ${EPISODES:-16} --num-envs ${EPISODES:-16} --seed 80000 $FEW --out /tmp/out/compare-$1 2>&1
echo "compare done"
