# Sourced on the machine, from the checkout: a copy in /tmp/w, in which everything runs.
if [ ! -d /tmp/w ]; then cp -r . /tmp/w; ln -sfn /tmp/pre /tmp/w/pretrained; mkdir -p /tmp/w/results /tmp/out; fi
cd /tmp/w; . .gpu/enter.sh
export PYTHONPATH=/tmp/w:$PYTHONPATH PYTEST_DISABLE_PLUGIN_AUTOLOAD=1
pytest_() { python3 -m pytest -q -p pytest_timeout -o addopts= -o timeout=500 "$@"; }
