# Sourced on the machine, from the checkout: this tree (kept kernels) in /tmp/w, main's in /tmp/m; $TREE chooses, main's by default.
if [ ! -d /tmp/w ]; then cp -r . /tmp/w; ln -sfn /tmp/pre /tmp/w/pretrained; mkdir -p /tmp/w/results /tmp/out /tmp/runs
  mkdir /tmp/m; cp -r .main/. /tmp/m/; cp -r .git /tmp/m/ 2>/dev/null; cp -r scratch /tmp/m/; ln -sfn /tmp/pre /tmp/m/pretrained; mkdir -p /tmp/m/results; fi
if [ -e /tmp/warp/part2 ] && mkdir /tmp/warp-site 2>/dev/null; then cat /tmp/warp/part1 /tmp/warp/part2 | tar -xJ -C /tmp/warp-site; fi
cd /tmp/w; . .gpu/enter.sh; tree=${TREE:-/tmp/m}
cd $tree; export PYTHONPATH=$tree:$PYTHONPATH:/tmp/warp-site PYTEST_DISABLE_PLUGIN_AUTOLOAD=1
