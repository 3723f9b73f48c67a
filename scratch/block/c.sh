# Two v3 runs of the bare policy with main's code, at once on one GPU each; beside them the GPU tests of this tree.
bash -c '. scratch/block/enter.sh' || exit 1
cd /tmp/w; mkdir -p /tmp/runs /tmp/out; cp -r .peers/main /tmp/m; rm -f /tmp/out/gpu?.txt
v3="python3 run.py --eval.no-video --train.checkpoint-seconds 3600 --logger none --config ${C3:-v3} --planner policy --seed 0 --env-steps ${V3:-250000} --render-quality small-shadows --eval.every ${EVERY:-50000} --train.keep-checkpoints 10"
i=0; for task in walker-run cheetah-run; do
cat > /tmp/lane$i.sh <<L2
. scratch/block/enter.sh; cd /tmp/m; export PYTHONPATH=/tmp/m:\${PYTHONPATH#/tmp/w:}
$v3 --env $task --run-dir /tmp/runs/$task-v3-policy $FEW > /tmp/out/$task-v3-policy.txt 2>&1
echo "run done"
L2
CUDA_VISIBLE_DEVICES=$i setsid nohup bash /tmp/lane$i.sh > /tmp/out/gpu$i.txt 2>&1 &
i=$((i + 1)); done
[ -e /tmp/warp/part2 ] && { mkdir -p /tmp/warp-site; cat /tmp/warp/part1 /tmp/warp/part2 | tar -xJ -C /tmp/warp-site; } &
[ -n "${NOTESTS:-}" ] || { setsid nohup bash scratch/block/tests.sh > /tmp/out/tests.txt 2>&1 & }
cat > /tmp/collect.sh <<'L2'
cd /tmp/runs; for r in *; do mkdir -p /tmp/out/runs/$r; cp $r/*.yaml $r/*.json $r/metrics.jsonl /tmp/out/runs/$r/ 2>/dev/null; done
L2
while sleep 20; do bash /tmp/collect.sh; done > /dev/null 2>&1 &
bash scratch/block/wait.sh "${1:-300}" "${2:-tests}"
