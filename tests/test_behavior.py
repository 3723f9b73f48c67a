"""Actor, critic and learning in imagination, against loops, grids and finite differences."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Normal, TanhTransform, TransformedDistribution

from dreamer_mpc.agents.behavior import BehaviorConfig
from dreamer_mpc.networks import Actor, Critic, TanhNormal
from dreamer_mpc.networks.heads import UnitNormal


def log_density(mean, std, x):
    """log p(tanh x) up to a constant, with log(1 - tanh^2 x) = 2 (log 2 - x - softplus(-2x))."""
    return -0.5 * ((x - mean) / std) ** 2 + 2 * (x + nn.functional.softplus(-2 * x))


MEANS = [-4.0, -1.0, -0.3, -0.05, 0.01, 0.2, 0.7, 2.0, 5.0]


@pytest.mark.parametrize("std", [1e-3, 0.1, 0.3, 0.5, 0.6, 0.7, 0.75, 0.8, 1.0, 1.5, 3.0, 5.0])
def test_mode_is_where_the_density_of_the_action_is_highest(std):
    mean = torch.tensor(MEANS, dtype=torch.float64)
    reach = abs(mean) + 2 * std**2 + 1
    x = torch.linspace(-1, 1, 400_001, dtype=torch.float64) * reach[:, None]
    best = torch.tanh(x.gather(1, log_density(mean[:, None], std, x).argmax(1, keepdim=True))).squeeze(1)
    mode = TanhNormal(mean, torch.full_like(mean, std)).mode
    torch.testing.assert_close(mode, best, rtol=0, atol=0.02)
    if std in (0.5, 1.0, 5.0):  # for wide policies at a mean of 0 it is one of two peaks, not the minimum between them
        x = torch.linspace(0, 2 * std**2 + 1, 100_001, dtype=torch.float64)
        best = torch.tanh(x[log_density(0.0, std, x).argmax()])
        zero = torch.zeros(2, dtype=torch.float64)
        torch.testing.assert_close(TanhNormal(zero, zero + std).mode.abs(), best.expand(2), rtol=0, atol=0.02)


def test_a_new_actor_has_a_std_of_about_5_and_bounded_means():
    torch.manual_seed(0)
    mean, std = Actor(6, 2, hidden=64)(torch.randn(200, 6))
    assert std.mean().item() == pytest.approx(5, abs=0.1) and std.min() > 4.5 and std.max() < 5.5
    mean, std = Actor(6, 2, hidden=64)(torch.randn(200, 6) * 1e4)
    assert 4 < mean.abs().max() <= 5 and (std > 0).all()
    assert Actor(6, 2, init_std=0.7)(torch.zeros(1, 6)).std.mean().item() == pytest.approx(0.7, abs=0.1)


@pytest.mark.parametrize("bootstrap", [0.0, 0.5, 0.8, 1.0])
def test_a_head_sees_its_share_of_the_frames(bootstrap):
    torch.manual_seed(0)
    critic = Critic(4, heads=3, layers=1, hidden=8, bootstrap=bootstrap)
    share = critic.mask(torch.arange(50_000)).double().mean(1)
    assert (share - bootstrap).abs().max() <= 0.01


def test_the_mask_belongs_to_the_frame_and_differs_between_heads():
    critic = Critic(4, heads=3, layers=1, hidden=8, bootstrap=0.5)
    index = torch.tensor([[5, 9, 5], [7, 500_000, 9]])
    mask = critic.mask(index)
    assert mask.shape == (3, 2, 3) and torch.equal(mask, critic.mask(index))
    assert torch.equal(mask[:, 0, 0], mask[:, 0, 2]) and torch.equal(mask[:, 0, 1], mask[:, 1, 2])
    torch.testing.assert_close(critic.mask(index.flip(0)), mask.flip(1))
    many = critic.mask(torch.arange(1000))
    assert not torch.equal(many[0], many[1])
    other = Critic(4, heads=3, layers=1, hidden=8, bootstrap=0.5)
    other.load_state_dict(critic.state_dict())
    assert torch.equal(other.mask(torch.arange(1000)), many)


def test_imagination_needs_a_next_value():
    with pytest.raises(ValueError, match="at least 2"):
        BehaviorConfig(horizon=1)


def test_the_policy_s_density_and_entropy_are_those_of_torch_distributions():
    mean, std = torch.tensor([[0.3, -1.2]], dtype=torch.float64), torch.tensor([[0.4, 1.5]], dtype=torch.float64)
    reference = TransformedDistribution(Normal(mean, std), [TanhTransform()])
    action = torch.tensor([[-0.7, 0.2], [0.999, -0.5]], dtype=torch.float64)
    policy = TanhNormal(mean.expand(2, -1), std.expand(2, -1))
    torch.testing.assert_close(policy.log_prob(action), reference.log_prob(action).sum(-1))
    assert policy.log_prob(torch.ones_like(action)).isfinite().all()
    torch.manual_seed(0)
    many = TanhNormal(mean.expand(200_000, -1), std.expand(200_000, -1))
    samples = reference.sample((200_000,))
    expected = -reference.log_prob(samples).sum(-1).mean()
    torch.testing.assert_close(many.entropy().mean(), expected, rtol=0.01, atol=0.01)


def test_a_head_s_loss_is_a_unit_normal_s_negative_log_likelihood():
    mean, target = torch.randn(5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    nll = -Normal(mean, torch.ones_like(mean)).log_prob(target) - 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(UnitNormal(mean).loss(target), nll)
    assert torch.equal(UnitNormal(mean).mode, mean)
