import json, sys, time, itertools, collections
import torch
from benchmarks import common
from benchmarks.common import parse_settings
from dreamer_mpc.config.make import make_agent
from torch.profiler import profile, ProfilerActivity
out = sys.argv[1]
name = sys.argv[2]
import os
from dreamer_mpc.kernels import graphs
graphs.PRIORITIES.update(json.loads(os.environ.get("LANES", "{}")))
config = parse_settings(sys.argv[3:])
from dreamer_mpc.util.device import choose_device
device = choose_device("cuda")
batches = itertools.cycle([common.random_batch(config, device) for _ in range(2)])
start = time.perf_counter()
agent = make_agent(config, common.ACTION_DIM, device)
for _ in range(6):
    agent.update(next(batches))
torch.cuda.synchronize()
print(name, "set-up", time.perf_counter() - start)
print(name, common.timed(lambda: agent.update(next(batches)), device, 60, 10, 2))
if not name.startswith(("v3-", "default-")):
  pass
else:
  raise SystemExit
with profile(activities=[ProfilerActivity.CUDA]) as p:
    for _ in range(3):
        agent.update(next(batches))
    torch.cuda.synchronize()
p.export_chrome_trace(f"{out}/{name}.json.gz")
count, total = collections.Counter(), collections.Counter()
for e in p.events():
    if e.device_type.name == "CUDA":
        count[e.name] += 1
        total[e.name] += e.time_range.end - e.time_range.start
for k, v in total.most_common(70):
    print(f"{v/3:9.1f} us {count[k]/3:7.1f} x  {k[:150]}")
print("sum", sum(total.values())/3, sum(count.values())/3)
