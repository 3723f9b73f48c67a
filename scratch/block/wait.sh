# Wait until both lanes are done, or so many seconds; print the ends of what they said; copy small files to $OUT.
for ((i = 0; i < ${1:-560}; i += 5)); do
  sleep 5; [ "$(cat /tmp/out/gpu?.txt | grep -c ' done$')" -ge 2 ] && break
done
for f in /tmp/out/gpu?.txt; do echo "== $f"; tail -n 45 $f | cut -c1-200; done
for f in /tmp/out/*.txt; do echo "-- $(basename $f): $(tail -n 1 $f | cut -c1-160)"; done
if [ -n "${OUT:-}" ]; then (cd /tmp && tar czf - --exclude='*.safetensors' --exclude='*.mp4' --exclude='replay*' --exclude='*.json.gz' out) | split -b 5000000 - $OUT/out.tgz.; fi
# WEIGHTS=1: also the weights of the v3 runs, in pieces, into $OUT (eight files a call are taken: 25 MB each agent)
if [ -n "${WEIGHTS:-}" ]; then
  . scratch/block/enter.sh; for r in /tmp/runs/*-v3-policy; do
    python3 -m scripts.export_weights $r /tmp/weights/$(basename $r) | tail -n 1
  done; tar cf - -C /tmp weights | split -b 15000000 - $OUT/weights.tar.
fi
