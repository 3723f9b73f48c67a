# Wait until the lanes $2 (a pattern of files in /tmp/out; default gpu?) are done, or so many seconds; print the ends of what they said; copy small files to $OUT.
what=${2:-gpu?}
for ((i = 0; i < ${1:-560}; i += 3)); do
  sleep 3; n=$(ls /tmp/out/$what.txt 2>/dev/null | wc -l)
  [ "$n" -gt 0 ] && [ "$(cat /tmp/out/$what.txt | grep -c ' done$')" -ge "$n" ] && break
done
for f in /tmp/out/$what.txt; do echo "== $f"; tail -n 30 $f | cut -c1-220; done
for f in /tmp/out/*.txt; do echo "-- $(basename $f): $(tail -n 1 $f | tr '\r' '\n' | tail -n 1 | cut -c1-160)"; done
if [ -n "${OUT:-}" ]; then bash /tmp/collect.sh 2>/dev/null; (cd /tmp && tar czf - --exclude='*.safetensors' --exclude='*.mp4' --exclude='replay*' --exclude='*.json.gz' out) | split -b 8000000 - $OUT/out.tgz.; fi
if [ -n "${WEIGHTS:-}" ]; then
  . scratch/block/enter.sh; for r in /tmp/runs/*-v3-policy; do
    python3 -m scripts.export_weights $r /tmp/weights/$(basename $r) | tail -n 1
  done; tar cf - -C /tmp weights | split -b 15000000 - $OUT/weights.tar.
fi
