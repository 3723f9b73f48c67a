"""One variant of the update: median time, set-up; with --trace its kernels.  NAME KEY=VALUE ... [settings of a run]"""

import itertools
import json
import sys
import time

from benchmarks import common
import dreamer_mpc.agents.reinforce as reinforce
from dreamer_mpc.config.make import make_agent
from dreamer_mpc.kernels import graphs
from dreamer_mpc.util.device import choose_device

name, variant, *words = sys.argv[1:]
variant = json.loads(variant)
try:  # the kept kernels have these
    from dreamer_mpc.agents import segments

    segments.SEGMENTS["cuda"] = variant.pop("segments", 2)
    reinforce.LATE["cuda"] = variant.pop("late", 4)
except ImportError:
    pass
graphs.PRIORITIES.update(variant)
config, device = common.parse_settings(words), choose_device("auto")
batches = itertools.cycle([common.random_batch(config, device) for _ in range(2)])
start = time.perf_counter()
agent = make_agent(config, common.ACTION_DIM, device)
for _ in range(6 if device.type == "cuda" else 1):
    agent.update(next(batches))
common.synchronize(device)
setup = time.perf_counter() - start
row = common.timed(lambda: agent.update(next(batches)), device, 60 if device.type == "cuda" else 3, 10, 2)
print(f"{name:28} {json.dumps(row)}  set-up {setup:.1f} s", flush=True)
