# stop.sh: asks all runs to end, saves what they learned; at most 25 s. The brackets keep the pattern from finding this command itself.
for pid in $(pgrep -f '[r]un.py --eval'); do kill -TERM $pid; done
for i in $(seq 25); do sleep 1; pgrep -f '[r]un.py --eval' > /dev/null || break; done
