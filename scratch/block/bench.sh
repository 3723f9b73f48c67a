# The benchmarks on two GPUs that are otherwise idle, peers beside: issue 19 point 1, issue 20's table.
. scratch/block/enter.sh
for p in $(pgrep -f scratch/block/ | grep -v "^$$\$"); do kill $p 2>/dev/null; done
timeout 585 python3 -m benchmarks --gpus 0 1 --peer /tmp/w/.peers/dreamer-pytorch --r2dreamer /tmp/w/.peers/r2dreamer --minutes ${MINUTES:-9} --out /tmp/out/benchmarks 2>&1 | tail -n 60
[ -n "${OUT:-}" ] && (cd /tmp && tar czf $OUT/bench.tgz out/benchmarks*)
