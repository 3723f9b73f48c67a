import torch
from dreamer_mpc.world_model.norm_encoder import NormEncoder
torch.set_float32_matmul_precision("highest"); torch.backends.cudnn.allow_tf32 = False
for channels, bf16 in (((8, 12, 16, 16), False), ((32, 48, 64, 64), False), ((32, 48, 64, 64), True)):
    torch.manual_seed(0)
    enc = NormEncoder(channels).cuda(); ref = NormEncoder(channels).double()
    ref.load_state_dict({k: v.double().cpu() for k, v in enc.state_dict().items()})
    image = torch.randint(0, 256, (104, 64, 64, 3), dtype=torch.uint8)
    g = torch.randn(104, enc.outputs)
    for a, b in ((0, 104), (0, 56), (56, 104), (0, 48), (0, 40), (40, 72), (0, 96)):
        for m in (enc, ref): m.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16, enabled=bf16): y = enc(image[a:b].cuda())
        y.backward(g[a:b].cuda().to(y.dtype))
        r = ref(image[a:b]); r.backward(g[a:b].double())
        rows = [f"{float((p.grad.cpu().double() - q.grad).norm() / q.grad.norm()):.1e}" for p, q in zip(enc.parameters(), ref.parameters())]
        print(channels, bf16, b - a, f"out {float((y.cpu().double() - r).norm() / r.norm()):.1e}", *rows, flush=True)
# plain cuDNN
for (i, o, s) in ((3, 8, 64), (8, 12, 32), (12, 16, 16), (16, 16, 8)):
    for n in (104, 56, 48, 40):
        x = torch.randn(n, i, s, s, device="cuda"); w = torch.randn(o, i, 5, 5, device="cuda"); gy = torch.randn(n, o, s, s, device="cuda")
        f = lambda x, w, gy, mask: torch.ops.aten.convolution_backward(gy, x, w, None, [1, 1], [2, 2], [1, 1], False, [0, 0], 1, mask)
        both = f(x, w, gy, [True, True, False]); only_w = f(x, w, gy, [False, True, False])[1]; only_x = f(x, w, gy, [True, False, False])[0]
        want = f(x.double(), w.double(), gy.double(), [True, True, False])
        e = lambda p, q: f"{float((p.double() - q).norm() / q.norm()):.1e}"
        print((i, o, s), n, "x", e(both[0], want[0]), e(only_x, want[0]), "w", e(both[1], want[1]), e(only_w, want[1]), flush=True)
