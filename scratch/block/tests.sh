# GPU tests in 14 processes on one GPU; ends with a line that counts, and the lines of what failed.
. scratch/block/enter.sh
mkdir -p /tmp/out/tests; cd /tmp/w
pytest_ --collect-only tests/test_gpu.py 2>/dev/null | grep :: | shuf --random-source=<(yes) > /tmp/ids
split -n r/14 /tmp/ids /tmp/part.
for part in /tmp/part.*; do pytest_ @$part > /tmp/out/tests/$(basename $part).log 2>&1 & done; wait
echo "$(wc -l < /tmp/ids) tests: $(cat /tmp/out/tests/*.log | grep -Eo '[0-9]+ (passed|failed|skipped|error)' | awk '{n[$2]+=$1} END {for (k in n) printf "%s %d  ", k, n[k]}')"
grep -h "^FAILED\|^ERROR" /tmp/out/tests/*.log | cut -c1-300
