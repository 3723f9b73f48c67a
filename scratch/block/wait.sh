# wait.sh SECONDS [LANE ...]: until these lanes are done, or so long; prints what is new, copies all small files to $OUT.
# WEIGHTS="RUN ...": also the weights of these runs, in pieces. Never wait without $OUT: the machine goes 30 s after a call.
for ((i = 0; i < $1; i += 3)); do
  sleep 3; left=0; for lane in "${@:2}"; do grep -q "^lane $lane done" /tmp/out/lane-$lane.txt || left=1; done
  [ $# -gt 1 ] && [ $left = 0 ] && break
done
for f in /tmp/out/lane-*.txt; do echo "## $f"; tail -n 40 $f | cut -c1-220; done
for r in /tmp/runs/*/; do [ -e $r/metrics.jsonl ] && { mkdir -p /tmp/out/runs/$(basename $r); cp $r/*.yaml $r/*.json $r/metrics.jsonl /tmp/out/runs/$(basename $r)/; echo "$(basename $r): $(tail -n 1 $r/metrics.jsonl | cut -c1-60)"; } 2>/dev/null; done
python3 scratch/block/returns.py; for r in /tmp/djlogs/*/; do [ -e $r/scores.jsonl ] && { mkdir -p /tmp/out/dj/$(basename $r); cp $r/scores.jsonl $r/metrics.jsonl $r/config.yaml /tmp/out/dj/$(basename $r)/; echo "dj $(basename $r): $(tail -n 1 $r/scores.jsonl | cut -c1-100) $(tail -n 1 $r/metrics.jsonl | grep -o '"fps[^,]*,' | tr '\n' ' ')"; }; done 2>/dev/null
[ -n "${OUT:-}" ] && (cd /tmp && tar czf - --exclude='*.safetensors' --exclude='*.mp4' --exclude='replay*' --exclude='*.json.gz' out) | split -b 8000000 - $OUT/out.tgz.
if [ -n "${WEIGHTS:-}" ]; then . scratch/block/enter.sh; for r in $WEIGHTS; do python3 -m scripts.export_weights /tmp/runs/$r /tmp/weights/$r | tail -n 1; done; tar cf - -C /tmp weights | split -b 15000000 - $OUT/weights.tar.; fi
