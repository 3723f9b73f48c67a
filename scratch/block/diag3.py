import torch, sys
from tests.test_gpu import *
from tests.test_gpu import V3
torch.set_float32_matmul_precision("highest"); torch.backends.cudnn.allow_tf32 = False
def grads(number, nostream=False):
    segments.SEGMENTS["cuda"] = number
    saved = graphs.PRIORITIES
    if nostream: graphs.PRIORITIES = dict.fromkeys(saved)
    batch = make_batch(0, 13, 8, ACTION_DIM, [(0, 0), (3, 1), (7, 2), (10, 3)], "cuda")
    torch.manual_seed(0)
    agent = Dreamer(ACTION_DIM, device="cuda:0", capture=False, bf16=False, **V3)
    out = []
    rn, ru = torch.randn, torch.rand
    torch.randn, torch.rand = Draws("normal_"), Draws("uniform_")
    agent._descend = lambda *_: out.extend(p.grad.clone() for p in agent.model.parameters()) or {}
    agent.update(batch)
    torch.randn, torch.rand = rn, ru
    graphs.PRIORITIES = saved
    torch.cuda.synchronize()
    names = [n for n, _ in agent.model.named_parameters()]
    return out, names
def diff(label, a, b):
    rows = [(float((x - y).norm() / y.norm().clamp_min(1e-12)), n) for x, y, n in zip(a[0], b[0], a[1])]
    print(label, [(n, f"{d:.1e}") for d, n in sorted(rows, reverse=True)[:4]], flush=True)
one, two, twob, twon, onen = grads(1), grads(2), grads(2), grads(2, True), grads(1, True)
diff("2 again", twob, two); diff("2 vs 1", two, one); diff("2 no streams vs 1", twon, one); diff("1 no streams vs 1", onen, one); diff("3 vs 1 no streams", grads(3, True), one)
from dreamer_mpc.world_model import norm_encoder
