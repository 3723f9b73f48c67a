"""The scan with its own backward pass against the loop under autograd."""

import pytest
import torch

from dreamer_mpc.kernels import norm
from dreamer_mpc.kernels.norm import NormSiLU
from dreamer_mpc.world_model.block_rssm import BlockRSSM

T, B, A, E = 5, 3, 2, 7
SIZES = dict(deter=12, stoch=3, classes=4, hidden=6, blocks=3)


def make(unimix=0.01, dtype=torch.float64, **sizes):
    torch.manual_seed(0)
    rssm = BlockRSSM(A, E, unimix=unimix, **SIZES | sizes).to(dtype)
    with torch.no_grad():  # biases and gains begin at 0 and 1, where some faults cannot be seen
        for parameter in rssm.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return rssm


def inputs(rssm, dtype=torch.float64, start=True):
    torch.manual_seed(1)
    embed, action = torch.randn(T, B, E, dtype=dtype), 1.5 * torch.randn(T, B, A, dtype=dtype)
    is_first = torch.zeros(T, B, dtype=torch.bool)
    is_first[0, 0] = is_first[2, 1] = True
    state = 0.5 * torch.randn(B, rssm.state_dim, dtype=dtype) if start else None
    return [x if x is None else x.requires_grad_(x.is_floating_point()) for x in (embed, action, is_first, state)]


def run(rssm, given, kernels):
    """States, posterior, and gradients of a random function of both in all inputs and parameters."""
    rssm.kernels = kernels
    torch.manual_seed(2)
    states, posterior = rssm.observe(*given)
    torch.manual_seed(3)
    value = (states * torch.randn_like(states)).sum() + (posterior * torch.randn_like(posterior)).sum()
    prior = [name for name, _ in rssm.named_parameters() if name.startswith("prior_logits")]
    of = {name: p for name, p in rssm.named_parameters() if name not in prior}
    of |= {f"input {i}": x for i, x in enumerate(given) if x is not None and x.requires_grad}
    return states, posterior, dict(zip(of, torch.autograd.grad(value, list(of.values())), strict=True))


@pytest.mark.parametrize("unimix", [0.0, 0.01, 0.5])
@pytest.mark.parametrize("start", [True, False])
def test_the_scan_is_the_loop(unimix, start):
    rssm = make(unimix)
    given = inputs(rssm, start=start)
    states, posterior, grads = run(rssm, given, kernels=True)
    expected_states, expected_posterior, expected = run(rssm, given, kernels=False)
    torch.testing.assert_close(states, expected_states, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(posterior, expected_posterior, rtol=1e-10, atol=1e-12)
    assert grads.keys() == expected.keys()
    for name in grads:
        assert expected[name].abs().max() > 0, name
        torch.testing.assert_close(grads[name], expected[name], rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.parametrize("blocks, deter", [(1, 12), (2, 12), (12, 12)])
def test_any_number_of_blocks(blocks, deter):
    rssm = make(blocks=blocks, deter=deter)
    given = inputs(rssm)
    got, expected = run(rssm, given, True)[2], run(rssm, given, False)[2]
    for name in got:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.parametrize("shape", [(1, 5), (4, 16)])
def test_norm_and_activation_have_the_gradients_of_autograd(shape):
    torch.manual_seed(4)
    x, g = torch.randn(2, *shape, dtype=torch.float64).unbind(0)
    gain = torch.rand(shape[1], dtype=torch.float64) + 0.5
    x.requires_grad_(), gain.requires_grad_()
    expected = torch.autograd.grad(norm.norm_silu(x, gain, 1e-4, x.dtype), (x, gain), g)
    own = torch.autograd.grad(NormSiLU.apply(x, gain, 1e-4), (x, gain), g)
    torch.testing.assert_close(own, expected)
    torch.testing.assert_close(norm.norm_silu_backward(g, x, gain, 1e-4), expected)


def test_in_fp32_the_scan_is_near_the_loop():
    rssm = make(dtype=torch.float32)
    given = inputs(rssm, torch.float32)
    got, expected = run(rssm, given, True), run(rssm, given, False)
    torch.testing.assert_close(got[0], expected[0], rtol=1e-4, atol=1e-5)
    for name in got[2]:
        torch.testing.assert_close(got[2][name], expected[2][name], rtol=1e-3, atol=1e-4, msg=name)
