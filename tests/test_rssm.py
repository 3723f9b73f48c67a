"""The RSSM's one-step and sequence functions against each other and against plain formulas, in float64."""

import pytest
import torch
from torch.nn import functional as F

from dreamer_mpc.world_model.rssm import RSSM, Gaussian, gaussian_kl

T, B, A, E, D, Z = 6, 3, 2, 5, 7, 4
REAL_RANDN = torch.randn


@pytest.fixture
def rssm():
    torch.manual_seed(0)
    return RSSM(A, E, deter=D, stoch=Z, hidden=9).double()


@pytest.fixture
def sequence():
    """embed, action, is_first (row 1 starts an episode at t = 3), first state."""
    generator = torch.Generator().manual_seed(1)
    shapes = [(T, B, E), (T, B, A), (B, D + Z)]
    embed, action, state = (REAL_RANDN(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    is_first = torch.zeros(T, B, dtype=torch.bool)
    is_first[3, 1] = True
    return embed, action, is_first, state


@pytest.fixture
def noise(monkeypatch):
    """What torch.randn gives, row by row of the first dimension: set `noise.start` to draw from there."""

    class Tape:
        start = 0
        values = REAL_RANDN(T, B, Z, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

        def __call__(self, *size, **_):
            drawn = self.values[self.start : self.start + size[0], : size[1]]
            self.start += size[0]
            assert drawn.shape == size
            return drawn

    tape = Tape()
    monkeypatch.setattr(torch, "randn", tape)
    return tape


def random_gaussian(*shape):
    return Gaussian(torch.randn(shape, dtype=torch.float64), torch.rand(shape, dtype=torch.float64) + 0.1)


def test_kl_is_that_of_torch_distributions():
    torch.manual_seed(0)
    p, q = random_gaussian(5, 3, Z), random_gaussian(5, 3, Z)
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(*p), normal(*q)).sum(-1)
    torch.testing.assert_close(gaussian_kl(p, q), expected, rtol=1e-12, atol=0)


def test_observe_is_its_plain_formula(rssm, sequence, noise):
    embed, action, is_first, state = sequence
    states, posterior, prior = rssm.observe(embed, action, is_first, state)
    deter, stoch = state[:, :D], state[:, D:]
    for t in range(T):
        first = is_first[t, :, None]
        deter, stoch, led = (torch.where(first, 0.0, x) for x in (deter, stoch, action[t]))
        deter = rssm.cell(F.elu(rssm.input(torch.cat([stoch, led], -1))), deter)
        stats = {
            "prior": rssm.prior_out(F.elu(rssm.prior_hidden(deter))),
            "posterior": rssm.posterior_out(F.elu(rssm.posterior_hidden(torch.cat([deter, embed[t]], -1)))),
        }
        for name, found in {"prior": prior, "posterior": posterior}.items():
            mean, std = stats[name].split(Z, -1)
            torch.testing.assert_close(found.mean[t], mean)
            torch.testing.assert_close(found.std[t], F.softplus(std) + 0.1)
        stoch = posterior.mean[t] + posterior.std[t] * noise.values[t]
        torch.testing.assert_close(states[t], torch.cat([deter, stoch], -1))


def test_observing_a_sequence_is_observing_step_by_step(rssm, sequence, noise):
    embed, action, is_first, state = sequence
    states, _, _ = rssm.observe(embed, action, is_first, state)
    noise.start = 0
    for t in range(T):
        state = rssm.posterior_step(state, action[t], embed[t], is_first[t])
        torch.testing.assert_close(state, states[t])


@pytest.mark.parametrize("lead", [(), (4,), (2, 3, 4)])
def test_a_prior_step_takes_any_leading_dims(rssm, lead):
    torch.manual_seed(0)
    state, action, noise = (torch.randn(*lead, n, dtype=torch.float64) for n in (D + Z, A, Z))
    result = rssm.prior_step(state, action, noise)
    rows = [x.reshape(-1, x.shape[-1]) for x in (state, action, noise)]
    torch.testing.assert_close(result, rssm.prior_step(*rows).view(*lead, D + Z))


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


def test_min_std_bounds_the_std():
    torch.manual_seed(0)
    rssm = RSSM(A, E, deter=D, stoch=Z, hidden=9, min_std=0.7)
    torch.nn.init.constant_(rssm.prior_out.bias, -100.0)
    torch.testing.assert_close(rssm.prior(torch.randn(5, D)).std, torch.full((5, Z), 0.7))
