# lane.sh NAME GPU JOB [JOB ...]: in the background, one after the other; a job with arguments is one word, "policy walker-run".
name=$1 gpu=$2; shift 2
bash -c '. scratch/block/enter.sh' || exit 1
cp -r scratch/block /tmp/jobs 2>/dev/null; mkdir -p /tmp/out
printf '%s\n' "$@" > /tmp/out/lane-$name.jobs
cat > /tmp/lane-$name.sh <<E
export CUDA_VISIBLE_DEVICES=$gpu; . scratch/block/enter.sh; . scratch/block/jobs.sh
while read -r job; do echo "== \$job"; began=\$SECONDS; eval "\$job" < /dev/null; echo "-- \$job: \$((SECONDS - began)) s"; done < /tmp/out/lane-$name.jobs
echo "lane $name done"
E
setsid nohup bash /tmp/lane-$name.sh > /tmp/out/lane-$name.txt 2>&1 &
