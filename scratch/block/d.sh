# One GPU, one call of 600 s: r2dreamer's compile from the start, chosen GPU tests, then the benchmarks, then the timing of what was compiled.
bash -c '. scratch/block/enter.sh' || exit 1
. scratch/block/enter.sh; mkdir -p /tmp/out/tests /tmp/out/benchmarks; SECONDS=0
card=/tmp/out/benchmarks/h200
git log --oneline -1 2>&1 | head -1
mkdir -p $card; setsid nohup python3 -m benchmarks.r2dreamer /tmp/w/.peers/r2dreamer --only compiled --limit 585 --after /tmp/quiet $FEWR --out /tmp/r2dreamer_compiled.json > /tmp/out/r2.txt 2>&1 &
pytest_ --collect-only tests/test_gpu.py 2>/dev/null | grep :: | grep -E "${K:-captured_update|segments|streams|teams|in_two_parts|refresh|beside}" | shuf --random-source=<(yes) > /tmp/ids
split -n r/14 /tmp/ids /tmp/part.
for part in /tmp/part.*; do OMP_NUM_THREADS=1 timeout 100 python3 -m pytest -q -p pytest_timeout -o addopts= -o timeout=90 @$part > /tmp/out/tests/$(basename $part).log 2>&1 & tests="$tests $!"; done; wait $tests
echo "$(wc -l < /tmp/ids) tests: $(cat /tmp/out/tests/*.log | grep -Eo '[0-9]+ (passed|failed|skipped|error)' | awk '{n[$2]+=$1} END {for (k in n) printf "%s %d  ", k, n[k]}') after $SECONDS s"
grep -h "^FAILED\|^ERROR\|^E  " /tmp/out/tests/*.log | cut -c1-300
left=$((${END:-535} - SECONDS))
timeout $((left + 5)) python3 -m benchmarks --gpus 0 --r2dreamer /tmp/w/.peers/r2dreamer --only ${ONLY:-ceilings update update_v3 plan_v3 r2dreamer phases} --minutes $(python3 -c "print($left/60)") --out /tmp/out/benchmarks --update-v3-extra "--processes 1" --phases-extra "--beside on" $FEW > /tmp/out/bench-log.txt 2>&1
touch /tmp/quiet; grep -v "^$" /tmp/out/bench-log.txt | cut -c1-180 | tail -n 90
for i in $(seq ${WAIT:-40}); do [ -e /tmp/r2dreamer_compiled.json ] && break; sleep 1; done; cp /tmp/r2dreamer_compiled.json /tmp/out/benchmarks/ 2>/dev/null; tail -n 4 /tmp/out/r2.txt | cut -c1-300; echo "$SECONDS s"
(cd /tmp && tar czf $OUT/out.tgz out)
