# Sourced on the machine, from the checkout: this tree (kept kernels) in /tmp/w, main's in /tmp/main, another in /tmp/ahead; $TREE chooses, main's by default.
if [ ! -d /tmp/w ]; then cp -r . /tmp/w; ln -sfn /tmp/pre /tmp/w/pretrained; mkdir -p /tmp/w/results /tmp/out /tmp/runs
  for t in main ahead together; do mkdir /tmp/$t; cp -r .$t/. /tmp/$t/; cp -r scratch /tmp/$t/; ln -sfn /tmp/pre /tmp/$t/pretrained; mkdir -p /tmp/$t/results; done; fi
if [ -e /tmp/warp/part2 ] && mkdir /tmp/warp-site 2>/dev/null; then cat /tmp/warp/part1 /tmp/warp/part2 | tar -xJ -C /tmp/warp-site; fi
cd /tmp/w; . .gpu/enter.sh; tree=${TREE:-/tmp/main}
cd $tree; export PYTHONPATH=$tree:$PYTHONPATH:/tmp/warp-site PYTEST_DISABLE_PLUGIN_AUTOLOAD=1
