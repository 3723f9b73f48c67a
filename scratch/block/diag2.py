import sys, torch
from tests.test_gpu import make_pair, random_batch, V3
from dreamer_mpc.agents import segments, reinforce
from dreamer_mpc.kernels import graphs
def go(label):
    captured, eager = make_pair(bf16=False, **V3)
    worst = []
    for step in range(8):
        batch = random_batch(step); m = []
        for agent in (captured, eager):
            torch.manual_seed(step); m.append(agent.update(batch).metrics)
        d = {n: abs(float(m[0][n]) - float(m[1][n])) / (abs(float(m[1][n])) + 1e-2) for n in m[0]}
        n = max(d, key=d.get); worst.append(f"{n[:24]} {d[n]:.1e} wm {float(m[0]['world_model_grad_norm']):.4g} {float(m[1]['world_model_grad_norm']):.4g}")
    print(label, *worst, sep="\n   ", flush=True)
torch.backends.cuda.matmul.allow_tf32 = False
for cud in (True, False):
    torch.backends.cudnn.allow_tf32 = cud
    go(f"kept, cudnn tf32 {cud}")
segments.SEGMENTS["cuda"] = 1; go("one segment")
reinforce.LATE["cuda"] = 100; go("one segment, no late")
graphs.PRIORITIES = dict.fromkeys(graphs.PRIORITIES); go("no streams")
