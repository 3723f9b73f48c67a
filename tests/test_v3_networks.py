"""Networks, output distributions and the scale of returns of DreamerV3."""

import math
import re
from functools import partial

import numpy as np
import pytest
import torch
from torch.distributions import Independent, Normal

from dreamer_mpc.agents.return_scale import ReturnScale
from dreamer_mpc.kernels.last_layer import last_layer
from dreamer_mpc.networks.heads import Bernoulli, Prediction
from dreamer_mpc.networks.norm_mlp import NormEnsemble, NormMLP
from dreamer_mpc.networks.normal_actor import BoundedNormal, NormalActor
from dreamer_mpc.networks.two_hot import TwoHot, symexp, symexp_bins, symlog
from dreamer_mpc.networks.value_ensemble import TwoHotCritic
from dreamer_mpc.planners.protocol import ActionDistribution
from tests.support.commands import ROOT

MAKES = {"one": NormMLP, "ensemble": partial(NormEnsemble, members=2)}
each_make = pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def plain_layer(x, weight, bias, gain):
    """Linear, RMSNorm and SiLU of one row, number by number; weight [O][I]."""
    y = [sum(w * v for w, v in zip(row, x)) + b for row, b in zip(weight, bias)]
    size = math.sqrt(sum(v * v for v in y) / len(y) + 1e-4)
    normed = [v / size * g for v, g in zip(y, gain)]
    return [v / (1 + math.exp(-v)) for v in normed]


def disturb(network):
    """Move every parameter off its initial value, so that no gain is 1 and no bias 0."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return network


# perceptrons


def test_an_mlp_is_the_plain_loop():
    network = disturb(NormMLP(3, 5, 2, 4).double())
    x = torch.randn(2, 3, dtype=torch.float64)
    for row, found in zip(x, network(x)):
        y = row.tolist()
        for layer in network.hidden:
            y = plain_layer(y, layer.linear.weight.tolist(), layer.linear.bias.tolist(), layer.norm.weight.tolist())
        expected = network.last.weight @ torch.tensor(y, dtype=torch.float64) + network.last.bias
        torch.testing.assert_close(found, expected)


def test_an_ensemble_is_its_members():
    ensemble = disturb(NormEnsemble(3, 5, 2, 4, members=3).double())
    x = torch.randn(2, 6, 3, dtype=torch.float64)
    outputs = ensemble(x)
    assert outputs.shape == (3, 2, 6, 4)
    for k in range(3):
        member = NormMLP(3, 5, 2, 4).double()
        with torch.no_grad():
            for own, layer in zip(member.hidden, ensemble.hidden):
                own.linear.weight.copy_(layer.weight[k].t())
                own.linear.bias.copy_(layer.bias[k, 0])
                own.norm.weight.copy_(layer.gain[k, 0])
            member.last.weight.copy_(ensemble.last.weight[k].t())
            member.last.bias.copy_(ensemble.last.bias[k, 0])
        torch.testing.assert_close(outputs[k], member(x))


@each_make
def test_initial_weights_have_the_variance_of_the_fan_in(make):
    """The truncation is at 2 * 1.1368 / sqrt(inputs), and the standard deviation is 1 / sqrt(inputs) all the same."""
    network = make(400, 300, 2, 200)
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        elif name.endswith("weight") and parameter.ndim > 1:
            std = 1 / math.sqrt(400 if "hidden.0" in name else 300)
            assert parameter.std().item() == pytest.approx(std, rel=0.01)
            assert 2.2 * std < parameter.abs().max() <= 2.2737 * std


@each_make
def test_the_scale_is_that_of_the_last_layer(make):
    torch.manual_seed(1)
    full = make(3, 8, 2, 4, scale=1.0)
    torch.manual_seed(1)
    tenth = make(3, 8, 2, 4, scale=0.1)
    x = torch.randn(5, 3)
    torch.testing.assert_close(tenth(x), 0.1 * full(x))
    assert not make(3, 8, 2, 4, scale=0.0)(x).any()


@each_make
def test_autocast_keeps_the_last_layer_in_full(make):
    network, x = make(16, 32, 2, 4), torch.randn(64, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = network(x)
    assert rounded.dtype == torch.float32 and rounded.unique().numel() > 200, "bf16 has 8 bits"
    torch.testing.assert_close(rounded, network(x), rtol=0, atol=0.05)


# two-hot


E1, E2 = math.e - 1, math.e**2 - 1
FIVE_LOGITS = [0.3, -1.0, 0.5, 2.0, -0.7]
readouts = pytest.mark.parametrize("readout", ["real", "symlog"])


def five(logits=FIVE_LOGITS, readout="real"):
    """Bins at symexp of -2, -1, 0, 1, 2."""
    return TwoHot(torch.tensor(logits, dtype=torch.float64), symexp_bins(5, 2.0).double(), readout)


def bins64(count=255, limit=20.0):
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return symexp_bins(count, limit)
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("rows", [5, 1024, 1536])
@pytest.mark.parametrize("filled", [False, True])
def test_a_head_s_last_layer_is_the_plain_product_with_its_gradients(filled, rows):
    """Rows of one product or of several; outputs that follow the others are 0, whatever their gradient."""
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, rows, 4), torch.randn(2, 4, 11), torch.randn(2, 11)
    leaves = [t.double().requires_grad_() for t in (x, weight, bias)]
    y = last_layer(*leaves, filled)
    assert y.shape == (2, rows, 16 if filled else 11) and not y[..., 11:].any()
    expected = torch.baddbmm(leaves[2][:, None], *leaves[:2])
    g = torch.randn(y.shape, dtype=torch.float64)
    torch.testing.assert_close(y[..., :11], expected)
    found = torch.autograd.grad(y, leaves[1:], g), torch.autograd.grad(expected, leaves[1:], g[..., :11])
    torch.testing.assert_close(*found)
    (dx,) = torch.autograd.grad(last_layer(*leaves, filled)[..., :11], leaves[:1], g[..., :11])
    torch.testing.assert_close(dx, g[..., :11] @ leaves[1].mT)


def test_a_distribution_ignores_what_follows_its_logits():
    torch.manual_seed(0)
    logits, bins = torch.randn(5, 7), symexp_bins(7, 3.0)
    long = torch.cat([logits, torch.full((5, 1), 100.0)], dim=1)
    plain, filled = TwoHot(logits, bins), TwoHot(long, bins)
    for a, b in ((plain.mean, filled.mean), (plain.mode, filled.mode), (plain.loss(bins[:5]), filled.loss(bins[:5]))):
        assert torch.equal(a, b)


def test_symlog_and_symexp_are_worked_by_hand_and_inverse():
    x = torch.tensor([-E2, -E1, 0.0, E1, E2], dtype=torch.float64)
    torch.testing.assert_close(symlog(x), torch.tensor([-2.0, -1, 0, 1, 2], dtype=torch.float64))
    wide = torch.linspace(-1e6, 1e6, 101, dtype=torch.float64)
    torch.testing.assert_close(symexp(symlog(wide)), wide)


def test_bins_are_the_reference_s():
    """255 of them, from -(e^20 - 1) to e^20 - 1, 20/127 apart in symlog; exactly symmetric."""
    bins = symexp_bins()
    expected = [math.copysign(math.expm1(abs(i) * 20 / 127), i) for i in range(-127, 128)]
    torch.testing.assert_close(bins, torch.tensor(expected), rtol=1e-6, atol=0)
    assert torch.equal(bins, -bins.flip(0)) and bins[127] == 0 and (bins.diff() > 0).all()
    even = symexp_bins(4, 3.0)
    torch.testing.assert_close(symlog(even), torch.tensor([-3.0, -1, 1, 3]))


@pytest.mark.parametrize("target, weights", [
    (0.0, [0, 0, 1, 0, 0]),
    (E1, [0, 0, 0, 1, 0]),
    (0.25 * E1, [0, 0, 0.75, 0.25, 0]),
    (-0.9 * E1, [0, 0.9, 0.1, 0, 0]),
    (0.4 * E1 + 0.6 * E2, [0, 0, 0, 0.4, 0.6]),
    (E2, [0, 0, 0, 0, 1]),
    (100.0, [0, 0, 0, 0, 1]),
    (-E2, [1, 0, 0, 0, 0]),
    (-1e30, [1, 0, 0, 0, 0]),
])  # fmt: skip
def test_the_loss_is_worked_by_hand(target, weights):
    total = sum(math.exp(x) for x in FIVE_LOGITS)
    expected = -sum(w * (x - math.log(total)) for w, x in zip(weights, FIVE_LOGITS))
    assert five().loss(torch.tensor(target, dtype=torch.float64)).item() == pytest.approx(expected, rel=1e-6)


def test_the_loss_on_all_bins_is_the_hat_functions():
    bins, logits = bins64(), torch.randn(200, 255, dtype=torch.float64)
    target = symexp(torch.linspace(-21, 21, 200, dtype=torch.float64))
    hats = [np.interp(target.numpy(), bins.numpy(), hat) for hat in np.eye(255)]  # clamped at the ends
    expected = -(torch.tensor(np.stack(hats, -1)) * logits.log_softmax(-1)).sum(-1)
    torch.testing.assert_close(TwoHot(logits, bins).loss(target), expected)


def test_the_loss_broadcasts_targets_over_heads():
    logits, target = torch.randn(3, 4, 2, 255), 5 * torch.randn(4, 2)
    loss = TwoHot(logits, symexp_bins()).loss(target)
    assert loss.shape == (3, 4, 2)
    for k in range(3):
        torch.testing.assert_close(loss[k], TwoHot(logits[k], symexp_bins()).loss(target))
    one = TwoHot(logits[0, 0, 0], symexp_bins()).loss(target)
    torch.testing.assert_close(one[2, 1], TwoHot(logits[0, 0, 0], symexp_bins()).loss(target[2, 1]))


@pytest.mark.parametrize("target", [math.nan, math.inf, -math.inf])
def test_the_loss_of_a_target_that_is_not_finite_is_no_number(target):
    assert five().loss(torch.tensor(target, dtype=torch.float64)).isnan()


def test_gradients_of_a_two_hot_are_slopes():
    bins = bins64(9, 3.0)
    logits = torch.randn(4, 9, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0.0, 2.2, -50.0, 50.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: TwoHot(x, bins).loss(target), logits)
    for readout in ("real", "symlog"):
        assert torch.autograd.gradcheck(lambda x: TwoHot(x, bins, readout).mean, logits)
    target.requires_grad_()
    assert not TwoHot(logits.detach(), bins).loss(target).requires_grad


def test_means_and_mode_are_worked_by_hand():
    p = [math.exp(x) for x in FIVE_LOGITS]
    p = [x / sum(p) for x in p]
    assert five().mean.item() == pytest.approx(E1 * (p[3] - p[1]) + E2 * (p[4] - p[0]), rel=1e-6)
    inner = (p[3] - p[1]) + 2 * (p[4] - p[0])
    assert five(readout="symlog").mean.item() == pytest.approx(math.expm1(inner), rel=1e-6)
    assert five().mode.item() == pytest.approx(E1)
    assert isinstance(five(), Prediction)


@readouts
def test_symmetric_probabilities_have_mean_zero_exactly(readout):
    """A sum from one end to the other is off by far more than a reward, as the bins reach 4.9e8."""
    half = 3 * torch.randn(50, 127)
    symmetric = torch.cat([half, torch.randn(50, 1), half.flip(-1)], -1)
    for logits in (torch.zeros(255), torch.full((2, 255), -1.7), symmetric):
        assert not TwoHot(logits, symexp_bins(), readout).mean.any()


def fitted(targets):
    """Logits that minimise the mean loss on `targets`: the logarithms of their mean two-hot weights."""
    bins = bins64()
    weights = np.stack([np.interp(targets, bins.numpy(), hat) for hat in np.eye(255)], -1).mean(0)
    return torch.tensor(weights).clamp(min=1e-300).log(), bins


def test_the_real_readout_is_the_mean_of_the_targets_and_the_other_is_nearer_to_zero():
    targets = np.array([-3.0, 0.5, 7.0, 40.0, 900.0])
    logits, bins = fitted(targets)
    real, log = TwoHot(logits, bins).mean, TwoHot(logits, bins, "symlog").mean
    assert real.item() == pytest.approx(targets.mean(), rel=1e-9)
    geometric = math.expm1(np.mean(np.sign(targets) * np.log1p(abs(targets))))
    assert log.item() == pytest.approx(geometric, rel=0.01) and log < real / 10


def test_the_symlog_readout_of_single_targets_is_short_by_what_its_text_says():
    for target in [*np.linspace(0.001, 0.4, 40), *np.geomspace(0.5, 1e6, 60)]:
        logits, bins = fitted(np.array([target]))
        short = (target - TwoHot(logits, bins, "symlog").mean.item()) / (target + 1)
        assert -1e-9 < short < 0.0031


def test_a_tail_dominates_the_real_readout_s_gradient_and_not_the_other_s():
    bins = bins64()
    logits = torch.full((255,), -24.0, dtype=torch.float64)
    logits[130] = 0.0  # all mass near 0.6, but for 4e-11 in every bin
    logits[254] += 2  # ... and some more at the top

    def slopes(readout):
        x = logits.clone().requires_grad_()
        return torch.autograd.grad(TwoHot(x, bins, readout).mean, x)[0].abs()

    assert slopes("real")[254] > 0.05 and slopes("symlog")[254] < 1e-7


# continuation


def test_a_bernoulli_is_worked_by_hand():
    coin = Bernoulli(torch.tensor([-2.0, 0.0, 3.0], dtype=torch.float64))
    probs = [1 / (1 + math.exp(2)), 0.5, 1 / (1 + math.exp(-3))]
    assert coin.mean.tolist() == pytest.approx(probs)
    assert coin.mode.tolist() == [0, 0, 1]
    for target in (0.0, 0.997, 1.0):
        expected = [-target * math.log(p) - (1 - target) * math.log(1 - p) for p in probs]
        assert coin.loss(torch.tensor(target, dtype=torch.float64)).tolist() == pytest.approx(expected)
    assert isinstance(coin, Prediction)


def test_a_bernoulli_s_loss_is_finite_and_its_gradient_the_slope():
    logits = torch.tensor([-1e4, 1e4], requires_grad=True)
    loss = Bernoulli(logits).loss(torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(loss, torch.tensor([1e4, 1e4]))
    torch.testing.assert_close(torch.autograd.grad(loss.sum(), logits)[0], torch.tensor([-1.0, 1.0]))
    some, target = torch.randn(6, dtype=torch.float64, requires_grad=True), torch.rand(6, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: Bernoulli(x).loss(target), some)


# policy


def bounded(rows=4, actions=3):
    mean = torch.rand(rows, actions, dtype=torch.float64) * 2 - 1
    return BoundedNormal(mean.requires_grad_(), torch.rand(rows, actions, dtype=torch.float64) + 0.1)


def test_density_and_entropy_are_those_of_the_unclipped_gaussian():
    policy = bounded()
    action = 3 * torch.randn(4, 3, dtype=torch.float64)  # some outside [-1, 1]
    reference = Independent(Normal(policy.mean, policy.std), 1)
    torch.testing.assert_close(policy.log_prob(action), reference.log_prob(action))
    torch.testing.assert_close(policy.entropy(), reference.entropy())
    assert isinstance(policy, ActionDistribution)


def test_samples_are_unclipped_and_those_to_execute_are_clipped():
    policy = BoundedNormal(torch.full((20_000, 1), 0.8), torch.full((20_000, 1), 0.5))
    torch.manual_seed(1)
    free = policy.sample()
    torch.manual_seed(1)
    executed = policy.rsample()
    assert free.mean().item() == pytest.approx(0.8, abs=0.02) and free.std().item() == pytest.approx(0.5, rel=0.02)
    assert torch.equal(executed, free.clamp(-1, 1)) and executed.abs().max() == 1


def test_samples_to_execute_have_the_gradient_of_the_clipped_action():
    policy = bounded(rows=200)
    torch.manual_seed(1)
    executed = policy.rsample()
    slope = torch.autograd.grad(executed.sum(), policy.mean)[0]
    inside = executed.detach().abs() < 1
    assert inside.any() and not inside.all() and torch.equal(slope, inside.double())
    assert not policy.sample().requires_grad


def test_the_actor_s_mean_and_std_are_worked_by_hand():
    actor = NormalActor(4, 3, layers=1, hidden=8, min_std=0.2, max_std=0.7).double()
    disturb(actor)
    state = torch.randn(5, 4, dtype=torch.float64)
    policy, outputs = actor(state), actor.layers(state).tolist()
    for row in range(5):
        for a in range(3):
            assert policy.mean[row, a].item() == pytest.approx(math.tanh(outputs[row][a]))
            sigmoid = 1 / (1 + math.exp(-outputs[row][3 + a] - 2))
            assert policy.std[row, a].item() == pytest.approx(0.2 + 0.5 * sigmoid)


def test_the_actor_starts_near_zero_with_a_wide_std():
    policy = NormalActor(64, 6)(torch.randn(100, 64))
    assert 0 < policy.mean.abs().max() < 0.1
    torch.testing.assert_close(policy.std, torch.full_like(policy.std, 0.893), rtol=0, atol=0.01)
    assert torch.equal(policy.mode, policy.mean)


# values


def test_value_heads_start_at_zero_and_learn_differently():
    critic = TwoHotCritic(6, heads=3, layers=2, hidden=16)
    state, target = torch.randn(50, 6), torch.rand(50)
    assert not critic(state).any() and critic(state).shape == (3, 50)
    optimizer = torch.optim.Adam(critic.parameters(), lr=1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        critic.predict(state).loss(target).mean().backward()
        optimizer.step()
    values = critic(torch.randn(50, 6))
    assert values.std(0, correction=0).min() > 1e-4
    assert (critic.predict(state).loss(target).mean() < math.log(255) - 1).all()


def test_with_constant_weights_gradients_go_to_the_state_alone():
    critic, state = disturb(TwoHotCritic(4, heads=2, layers=2, hidden=8)), torch.randn(3, 4, requires_grad=True)
    found = []
    for constant in (True, False):
        loss = critic.predict(state, constant).loss(torch.rand(3, generator=torch.Generator().manual_seed(0))).sum()
        inputs = [state, *critic.parameters()]
        found.append((loss.detach(), *torch.autograd.grad(loss, inputs, allow_unused=True)))
    assert all(of is None for of in found[0][2:]) and all(of.any() for of in found[1][2:])
    assert all(map(torch.equal, found[0][:2], found[1][:2]))


@readouts
def test_values_are_the_means_of_the_predictions(readout):
    critic = disturb(TwoHotCritic(4, heads=2, layers=1, hidden=8, bins=7, readout=readout))
    state = torch.randn(2, 3, 4)
    logits = critic.predict(state).logits
    assert logits.shape == (2, 2, 3, 7)
    torch.testing.assert_close(critic(state), TwoHot(logits, symexp_bins(7), readout).mean)


def test_value_heads_have_bootstrap_masks():
    critic = TwoHotCritic(4, heads=3, layers=1, hidden=8, bootstrap=0.7)
    index = torch.arange(50_000).view(100, 500)
    mask = critic.mask(index)
    assert mask.shape == (3, 100, 500) and torch.equal(mask, critic.mask(index + 65_536))
    torch.testing.assert_close(mask.flatten(1).double().mean(1), torch.full((3,), 0.7).double(), rtol=0, atol=0.01)
    both = (mask[0] & mask[1]).double().mean()
    assert both.item() == pytest.approx(0.49, abs=0.02)
    assert "masks" in critic.state_dict()


# the scale of returns


def test_the_scale_is_the_plain_loop_of_numpy_s_quantiles():
    returns = ReturnScale().double()
    low = high = 0.0
    for step in range(300):
        values = torch.randn(15, 31, dtype=torch.float64) * (5 + step) + step
        bounds = returns.propose(values)
        low = 0.99 * low + 0.01 * np.quantile(values.numpy(), 0.05)
        high = 0.99 * high + 0.01 * np.quantile(values.numpy(), 0.95)
        assert bounds.tolist() == pytest.approx([low, high])
        assert returns.scale(bounds).item() == pytest.approx(max(1.0, high - low))
        returns.commit(bounds, torch.tensor(False))
    assert high - low > 1, "the limit binds at first only"


@pytest.mark.parametrize("size", [1, 2, 20, 21, 1000])
def test_quantiles_of_any_number_of_returns(size):
    values = torch.randn(size, dtype=torch.float64)
    expected = 0.01 * np.quantile(values.numpy(), [0.05, 0.95])
    np.testing.assert_allclose(ReturnScale().double().propose(values), expected, rtol=1e-6)


def test_a_skipped_update_leaves_the_scale():
    returns = ReturnScale()
    returns.commit(returns.propose(100 * torch.randn(1000)), torch.tensor(False))
    before = returns.bounds.clone()
    broken = returns.propose(torch.tensor([1.0, math.nan, 2.0]))
    assert broken.isnan().any() and torch.equal(returns.bounds, before)
    returns.commit(broken, torch.tensor(True))
    assert torch.equal(returns.bounds, before) and before.any()


@pytest.mark.parametrize("rest", ["1e-3", "1e-6", "1e-8"])
def test_far_bins_have_the_share_in_the_gradient_that_the_page_says(rest):
    """docs/v3.md: of values 1 and 300 read as `real`, and as `symlog`, where both have nearly the same share."""
    page, bins, found = (ROOT / "docs" / "v3.md").read_text(), bins64(), []
    (row,) = re.findall(rf"^\| {rest} \| (.*) \|$", page, re.MULTILINE)
    for value, readout in ((1.0, "real"), (300.0, "real"), (300.0, "symlog")):
        probs = torch.full_like(bins, float(rest) / 255)
        below = int((bins <= value).sum()) - 1
        probs[below : below + 2] += (1 - float(rest)) / 2
        logits = probs.log().requires_grad_()
        (grad,) = torch.autograd.grad(TwoHot(logits, bins, readout).mean, logits)
        found.append(float(grad[bins.abs() > 10 * value].norm() / grad.norm()))
    assert found == pytest.approx([float(share) for share in row.split(" | ")], rel=0.05)
