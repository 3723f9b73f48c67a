"""The RSSM's one-step and sequence functions against each other, in float64; formulas: `test_reference_update.py`."""

import pytest
import torch

from dreamer_mpc.world_model.rssm import RSSM, Gaussian, gaussian_kl

T, B, A, E, D, Z = 6, 3, 2, 5, 7, 4


@pytest.fixture
def rssm():
    torch.manual_seed(0)
    return RSSM(A, E, deter=D, stoch=Z, hidden=9).double()


def test_kl_is_that_of_torch_distributions():
    torch.manual_seed(0)
    p, q = (Gaussian(*(torch.rand(5, 3, Z, dtype=torch.float64) + 0.1 for _ in range(2))) for _ in range(2))
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(*p), normal(*q)).sum(-1)
    torch.testing.assert_close(gaussian_kl(p, q), expected, rtol=1e-12, atol=0)


def test_observing_a_sequence_is_observing_step_by_step(rssm, monkeypatch):
    torch.manual_seed(1)
    embed, action, noise = (torch.randn(T, B, n, dtype=torch.float64) for n in (E, A, Z))
    state, is_first = torch.randn(B, D + Z, dtype=torch.float64), torch.zeros(T, B, dtype=torch.bool)
    is_first[3, 1] = True
    monkeypatch.setattr(torch, "randn", lambda *size, **_: noise.view(size))
    states, _ = rssm.observe(embed, action, is_first, state)
    for t in range(T):
        monkeypatch.setattr(torch, "randn", lambda *size, t=t, **_: noise[t].view(size))
        state = rssm.posterior_step(state, action[t], embed[t], is_first[t])
        torch.testing.assert_close(state, states[t])


def test_a_prior_step_without_noise_samples_the_prior(rssm):
    torch.manual_seed(0)
    state, action = torch.randn(D + Z, dtype=torch.float64), torch.randn(A, dtype=torch.float64)
    n = 20_000
    samples = rssm.prior_step(state.expand(n, -1), action.expand(n, -1))
    torch.testing.assert_close(samples[:, :D], samples[:1, :D].expand(n, -1))
    prior = rssm.prior(samples[0, :D])
    torch.testing.assert_close(samples[:, D:].mean(0), prior.mean, rtol=0, atol=0.05)
    torch.testing.assert_close(samples[:, D:].std(0), prior.std, rtol=0.05, atol=0)
    correlation = torch.corrcoef(samples[:, D:].T).fill_diagonal_(0)
    assert correlation.abs().max() < 0.05
