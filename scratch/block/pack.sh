#!/usr/bin/env bash
# Pack what a block needs into ignored folders of the checkout, and move aside what must not travel.
# Afterwards: mv /tmp/aside/* .   First fetch github:NM512/r2dreamer and github:yusukeurakami/dreamer-pytorch.
set -euo pipefail
cd "$(git rev-parse --show-toplevel)"
exclude=$(git rev-parse --git-path info/exclude); mkdir -p "$(dirname "$exclude")"
grep -q /.main/ "$exclude" 2>/dev/null || printf '/.gpu/\n/.pre/\n/.warp1/\n/.warp2/\n/.peers/\n/.main/\n' >> "$exclude"
shared=$(realpath ../shared)
[ -d .gpu ] || bash "$shared/gpu/pack_host.sh" .gpu omegaconf==2.4.0 tyro==1.0.17 gymnasium==1.4.0 farama-notifications cloudpickle jaxtyping==0.3.11 typeguard docstring-parser shtab imageio wadler-lindig psutil safetensors einops rich pytest iniconfig pluggy pytest-timeout beartype hypothesis sortedcontainers
[ -d .warp1 ] || bash "$shared/gpu/pack_warp.sh" .warp1 .warp2
rm -rf .main; mkdir .main; git archive main | tar x -C .main --exclude=pretrained --exclude=results
mkdir -p /tmp/aside; for f in pretrained results; do [ -d $f ] && mv $f /tmp/aside/; done
rm -rf .pre; mkdir .pre; cp -r /tmp/aside/pretrained/{walker-run-v3,cheetah-run-v3} .pre/
for peer in NM512+r2dreamer yusukeurakami+dreamer-pytorch; do
  [ -d ../.mirror/$peer ] || { echo "fetch ${peer/+//} first" >&2; exit 1; }
  to=.peers/${peer#*+}; mkdir -p $to; git --git-dir="$(realpath ../.mirror/$peer)/repo" archive HEAD | tar x -C $to
done
du -sh .gpu .pre .warp1 .warp2 .peers .main .
