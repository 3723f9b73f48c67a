# Block A: `bash scratch/block/a.sh 1 300` tests on GPU 0 and times on GPU 1; `a.sh 2 560` comparisons on GPU 0, warp on GPU 1.
bash -c '. scratch/block/enter.sh' || exit 1
cd /tmp/w; rm -f /tmp/out/gpu?.txt
if [ "$1" = 1 ]; then first=tests.sh second=times.sh; else first=compare.sh second=warp.sh; fi
CUDA_VISIBLE_DEVICES=0 setsid nohup bash -c "bash scratch/block/$first; echo a done" > /tmp/out/gpu0.txt 2>&1 &
CUDA_VISIBLE_DEVICES=1 setsid nohup bash -c "bash scratch/block/$second; echo a1 done" > /tmp/out/gpu1.txt 2>&1 &
bash scratch/block/wait.sh "${2:-560}"
