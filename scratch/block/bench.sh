# The benchmarks on two GPUs that are otherwise idle, peers beside; when GPU 0's lane is done, all planners on cheetah-run-v3 there.
. scratch/block/enter.sh
export PYTHONPATH=$PYTHONPATH:/tmp/warp-site
for p in $(pgrep -f "scratch/block/c.sh|while sleep"); do kill $p 2>/dev/null; done
cat > /tmp/bench-lane.sh <<L2
timeout 570 python3 -m benchmarks --gpus 0 1 --peer /tmp/w/.peers/dreamer-pytorch --r2dreamer /tmp/w/.peers/r2dreamer --minutes ${MINUTES:-9} --out /tmp/out/benchmarks > /tmp/out/bench-log.txt 2>&1
echo "bench done"
L2
setsid nohup bash /tmp/bench-lane.sh > /tmp/out/bench.txt 2>&1 &
cat > /tmp/compare-lane.sh <<'L2'
until grep -q "^--- r2dreamer:" /tmp/out/bench-log.txt; do sleep 1; done
CUDA_VISIBLE_DEVICES=0 bash scratch/block/compare.sh cheetah-run > /tmp/out/compare-cheetah-run.txt 2>&1
echo "cheetah done"
L2
setsid nohup bash /tmp/compare-lane.sh > /tmp/out/compare0.txt 2>&1 &
bash scratch/block/wait.sh ${1:-560} bench
