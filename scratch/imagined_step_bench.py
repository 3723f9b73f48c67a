"""Times of the row layers of v3 at 1024 rows, against the launches they replace. Run in the worktree on the GPU."""
import itertools, sys
import torch
from dreamer_mpc.config import load_presets
from dreamer_mpc.util import device as _d
from dreamer_mpc.kernels import block_cell, block_walk
from dreamer_mpc.kernels import row_layers_triton as k
from dreamer_mpc.networks.normal_actor import NormalActor
from dreamer_mpc.world_model.block_rssm import BlockRSSM

torch.set_float32_matmul_precision("high")
ROWS, A, N = 1024, 6, 40
torch.manual_seed(0)
rssm = BlockRSSM(A, 1024, bf16=True).cuda()
actor = NormalActor(rssm.state_dim, A).cuda()
path = torch.randn(ROWS, rssm.state_dim, device="cuda").bfloat16()
pre = torch.randn(ROWS, 512, device="cuda").bfloat16()
noise, draws, action = torch.randn(ROWS, 32, 16, device="cuda"), torch.randn(ROWS, A, device="cuda"), torch.randn(ROWS, A, device="cuda")

def timed(f, repeat=N, amp=False):
    """Microseconds of one call, of `repeat` in one graph."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side), torch.no_grad(), torch.autocast("cuda", dtype=torch.bfloat16, enabled=amp):
        for _ in range(3): f()
        g = torch.cuda.CUDAGraph()
        with torch.cuda.graph(g, stream=side):
            for _ in range(repeat): f()
    torch.cuda.synchronize()
    best = 1e9
    for _ in range(10):
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record(); g.replay(); b.record(); torch.cuda.synchronize()
        best = min(best, a.elapsed_time(b))
    return 1e3 * best / repeat

def without(name, f):
    kept = getattr(k, f"fits_{name}")
    setattr(k, f"fits_{name}", lambda *given: False)
    try: return timed(f)
    finally: setattr(k, f"fits_{name}", kept)

with torch.no_grad():
    w = rssm._constants()
    into = path[:, rssm.deter:]
    prior = lambda save=False: block_walk.draw_prior(pre[:, :256], w.prior, noise, 0.01, 1e-4, into, save)
    inputs = lambda: block_walk._enter(pre[:, 256:], into, action, rssm._moved, w, 1e-4, False)
    sample = actor.sampler(True)
    policy, plain = lambda: sample(path, draws), lambda: actor(path).sample(draws)
    print("prior  kernel %.1f  launches %.1f" % (timed(prior), without("prior", prior)))
    print("prior, saving  kernel %.1f  launches %.1f" % (timed(lambda: prior(True)), without("prior", lambda: prior(True))))
    print("inputs kernel %.1f  launches %.1f" % (timed(inputs), without("inputs", inputs)))
    print("policy with its first product: kernel %.1f  launches %.1f" % (timed(policy, amp=True), timed(plain, amp=True)))
    print("first product alone %.1f" % timed(lambda: torch.nn.functional.linear(path, actor.layers.hidden[0].linear.weight), amp=True))
    hidden, before, into_deter = path[:, :2048].contiguous(), torch.randn(ROWS, 2048, device="cuda"), path[:, :2048]
    gated = lambda: block_cell.gated(hidden, w.cell, before, into_deter, False)
    def bmm_gru():
        return block_cell.gru(torch.bmm(block_cell.by_block(hidden, w.cell), w.cell.gates), w.cell.gates_bias, before, into_deter)
    print("gates and GRU: kernel %.1f  launches %.1f" % (timed(gated), timed(bmm_gru)))

    H = 15
    start, whole = torch.randn(ROWS, rssm.state_dim, device="cuda"), torch.empty(H + 1, ROWS, rssm.state_dim, device="cuda", dtype=torch.bfloat16)
    prepared, all_draws = rssm.prepared(torch.randn(H, ROWS, 512, device="cuda")), torch.randn(H, ROWS, A, device="cuda")
    def imagine():
        return rssm.walk(start, lambda k, state: sample(state, all_draws[k]), prepared, False, whole)
    def imagine_plainly():
        return rssm.walk(start, lambda k, state: actor(state).sample(all_draws[k]), prepared, False, whole)
    print("imagination, 15 steps: kernels %.0f" % timed(imagine, 1, amp=True))
    kept = [getattr(k, f"fits_{n}") for n in ("prior", "inputs", "policy")], block_cell.gated
    for off in (("prior",), ("inputs",), ("policy",), ("gated",), ("prior", "inputs", "policy", "gated")):
        for n in off:
            if n == "gated":
                block_cell.gated = lambda hidden, w, before, into, save: (None, *block_cell.gru(torch.bmm(block_cell.by_block(hidden, w), w.gates), w.gates_bias, before, into))
            else:
                setattr(k, f"fits_{n}", lambda *given: False)
        print("  without", *off, "%.0f" % timed(imagine_plainly if "policy" in off else imagine, 1, amp=True))
        for n, f in zip(("prior", "inputs", "policy"), kept[0]): setattr(k, f"fits_{n}", f)
        block_cell.gated = kept[1]
    if "tune" in sys.argv:
        for rows, columns, programs in itertools.product((16, 32, 64), (64, 128), (32, 64, 128)):
            k.ROWS, k.COLUMNS, k.PROGRAMS = rows, columns, programs
            try: print("prior", rows, columns, programs, "%.1f" % timed(prior), flush=True)
            except Exception as error: print("prior", rows, columns, programs, type(error).__name__, str(error)[:80], flush=True)
        for rows, columns in itertools.product((16, 32), (64, 128)):
            k.LEAST, k.COLUMNS = rows, columns
            try: print("inputs", rows, columns, "%.1f" % timed(inputs), flush=True)
            except Exception as error: print("inputs", rows, columns, type(error).__name__, str(error)[:80], flush=True)
        src = block_cell.kernels
        import triton
        for block, columns, depth, warps, stages in itertools.product((64, 128), (32, 64), (64, 128), (4, 8), (2, 3)):
            deter, cast = torch.empty_like(before), torch.empty_like(hidden)
            def one():
                src._gated[(triton.cdiv(ROWS, block), 256 // columns, 8)](hidden, w.cell.gates, w.cell.gates_bias, before, None, deter, cast, ROWS, 2048, 2048, 2048, 2048, X=256, BX=columns, BK=depth, BR=block, AGAIN=True, SAVE=False, num_warps=warps, num_stages=stages)
            try: print("gated", block, columns, depth, warps, stages, "%.1f" % timed(one), flush=True)
            except Exception as error: print("gated", block, columns, depth, warps, stages, type(error).__name__, str(error)[:80], flush=True)
