# Sourced on the machine, from the checkout: main's code (.main) in /tmp/main with the agents of /tmp/pre.
if [ ! -d /tmp/main ]; then cp -r . /tmp/w; mkdir -p /tmp/main /tmp/out /tmp/runs /tmp/peers; cp -r .main/. /tmp/main/; cp -r scratch /tmp/main/; cp -r .peers/. /tmp/peers/
  ln -sfn /tmp/pre /tmp/main/pretrained; mkdir -p /tmp/main/results; fi
if [ -e /tmp/warp/part2 ] && mkdir /tmp/warp-site 2>/dev/null; then cat /tmp/warp/part1 /tmp/warp/part2 | tar -xJ -C /tmp/warp-site; fi
cd /tmp/w; . .gpu/enter.sh
cd /tmp/main; export PYTHONPATH=/tmp/main:$PYTHONPATH:/tmp/warp-site PYTEST_DISABLE_PLUGIN_AUTOLOAD=1
