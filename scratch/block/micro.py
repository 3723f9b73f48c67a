"""How far mirror images of bins that were never a target drift apart on a GPU, side by side and not."""
import torch
from dreamer_mpc.networks.norm_mlp import NormEnsemble, NormMLP
from dreamer_mpc.networks.two_hot import TwoHot, symexp_bins
from dreamer_mpc.agents.laprop import LaProp
from dreamer_mpc.kernels import last_layer

torch.set_float32_matmul_precision("high")
bins, places = symexp_bins().cuda(), last_layer.Pairs(255).place.cuda()
for rows in (1008, 1024, 15360, 16384):
    for paired in (False, True):
        for members in (1, 3):
            torch.manual_seed(0)
            x = torch.randn(rows, 256, device="cuda")
            net = (NormEnsemble(256, 256, 2, 255, 3, scale=0.0, paired=paired) if members > 1 else NormMLP(256, 256, 1, 255, scale=0.0, paired=paired)).cuda()
            if not paired:  # as it was: rows of 256, the last output 0
                class Plain(torch.nn.Module):
                    order = torch.arange(256, device="cuda").clamp_max(254)
                    place = torch.arange(255, device="cuda")
                net.pairs = Plain()
            optimizer = LaProp([*net.parameters()], lr=4e-5, warmup=0)
            said = []
            for step in range(1, 801):
                with torch.autocast("cuda", dtype=torch.bfloat16):
                    y = net(x)
                plain = y[..., places] if paired else y[..., :255]
                head = TwoHot(plain, bins)
                loss = (plain.logsumexp(-1) - plain[..., 127]).mean() * members
                for p, g in zip(net.parameters(), torch.autograd.grad(loss, [*net.parameters()])): p.grad = g
                if step in (100, 200, 400, 800):
                    mean = head.mean.detach()
                    said.append(f"{step}: {mean.mean().item():.4f} +- {mean.std().item():.4f}")
                optimizer.step()
            w = plain.detach()
            equal = (w[..., :127] == w.flip(-1)[..., :127]).float().mean().item()
            weight = (net.last.weight if members > 1 else net.last.weight.t()).detach()
            same = (weight[..., :127] == weight.flip(-1)[..., :127]).float().mean().item()
            print(f"rows {rows} heads {members} paired {paired}: logits equal {equal:.4f} weights equal {same:.4f}; read (0 is right)", *said, flush=True)
