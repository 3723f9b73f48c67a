# GPU tests in 28 processes on two GPUs; ends with a line that counts, and the lines of what failed.
. scratch/block/enter.sh
mkdir -p /tmp/out/tests; cd /tmp/w
pytest_ --collect-only tests/test_gpu.py 2>/dev/null | grep :: | shuf --random-source=<(yes) > /tmp/ids
split -n r/28 /tmp/ids /tmp/part.
g=0; for part in /tmp/part.*; do g=$((1 - g)); CUDA_VISIBLE_DEVICES=${GPU:-$g} OMP_NUM_THREADS=1 pytest_ @$part > /tmp/out/tests/$(basename $part).log 2>&1 & done; wait
echo "$(wc -l < /tmp/ids) tests: $(cat /tmp/out/tests/*.log | grep -Eo '[0-9]+ (passed|failed|skipped|error)' | awk '{n[$2]+=$1} END {for (k in n) printf "%s %d  ", k, n[k]}')"
grep -h "^FAILED\|^ERROR" /tmp/out/tests/*.log | cut -c1-300
echo "tests done"
