"""DreamerV3's RSSM against loops over numbers in float64: block-linear layers, gates, distributions, sequences."""

import math

import numpy as np
import pytest
import torch

from dreamer_mpc.networks.block_linear import BlockLinear
from dreamer_mpc.world_model.block_rssm import BlockRSSM, categorical_kl, gumbel, mixed_log_probs, sample

# Odd sizes, no two of which are equal.
T, B, A, E, D, K, C, H, G = 6, 3, 2, 5, 12, 4, 3, 7, 2
Z = K * C
F64 = dict(dtype=torch.float64)


@pytest.fixture
def rssm():
    """In float64, with weights that make gates and probabilities differ clearly."""
    torch.manual_seed(0)
    model = BlockRSSM(A, E, deter=D, stoch=K, classes=C, hidden=H, blocks=G, unimix=0.05).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def weights(module):
    return {name: value.detach().numpy() for name, value in module.named_parameters()}


# the same in loops over numbers


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def linear_by_hand(x, weight, bias):
    return [sum(w * number for w, number in zip(row, x, strict=True)) + b for row, b in zip(weight, bias, strict=True)]


def norm_silu_by_hand(x, gain):
    scale = 1 / math.sqrt(sum(number**2 for number in x) / len(x) + 1e-4)
    normed = [number * scale * g for number, g in zip(x, gain, strict=True)]
    return [number * sigmoid(number) for number in normed]


def layer_by_hand(w, name, x):
    linear = linear_by_hand(x, w[f"{name}.linear.weight"], w[f"{name}.linear.bias"])
    return norm_silu_by_hand(linear, w[f"{name}.norm.weight"])


def block_linear_by_hand(x, weight, bias):
    """x: the inputs of each block, one list a block; weight [G, I, O], bias [G, 1, O]."""
    return [linear_by_hand(x[g], weight[g].T, bias[g, 0]) for g in range(len(weight))]


def deter_by_hand(w, state, action):
    deter, stoch = list(state[:D]), list(state[D:])
    action = [a / max(1, abs(a)) for a in action]
    shared = layer_by_hand(w, "deter_input", deter) + layer_by_hand(w, "stoch_input", stoch)
    shared += layer_by_hand(w, "action_input", action)
    size = D // G
    inputs = [deter[g * size : (g + 1) * size] + shared for g in range(G)]
    hidden = sum(block_linear_by_hand(inputs, w["hidden.weight"], w["hidden.bias"]), [])
    hidden = norm_silu_by_hand(hidden, w["hidden_norm.weight"])  # over the whole of deter, not within a block
    blocks = [hidden[g * size : (g + 1) * size] for g in range(G)]
    new = []
    for g, gates in enumerate(block_linear_by_hand(blocks, w["gates.weight"], w["gates.bias"])):
        for i in range(size):
            reset, candidate, update = gates[i], gates[size + i], sigmoid(gates[2 * size + i] - 1)
            new.append(update * math.tanh(sigmoid(reset) * candidate) + (1 - update) * deter[g * size + i])
    return new


def probabilities_by_hand(logits, unimix=0.05):
    """A list of C probabilities for each variable."""
    result = []
    for k in range(K):
        powers = [math.exp(x) for x in logits[k * C : (k + 1) * C]]
        result.append([(1 - unimix) * x / sum(powers) + unimix / C for x in powers])
    return result


def prior_by_hand(w, deter):
    x = deter
    for layer in range(2):
        x = layer_by_hand(w, f"prior_logits.hidden.{layer}", x)
    return probabilities_by_hand(linear_by_hand(x, w["prior_logits.last.weight"], w["prior_logits.last.bias"]))


def posterior_by_hand(w, deter, embed):
    x = layer_by_hand(w, "posterior_hidden", [*deter, *embed])
    return probabilities_by_hand(linear_by_hand(x, w["posterior_logits.weight"], w["posterior_logits.bias"]))


def sample_by_hand(probs, noise):
    """One-hot vectors, by the uniform numbers that the normal draws stand for: argmax of log p - log(-log u)."""
    result = []
    for k, row in enumerate(probs):
        uniform = [0.5 * math.erfc(-x / math.sqrt(2)) for x in noise[k * C : (k + 1) * C]]
        scores = [math.log(p) - math.log(-math.log(u)) for p, u in zip(row, uniform, strict=True)]
        result += [float(scores[c] == max(scores)) for c in range(C)]
    return result


# layers


def test_a_block_linear_layer_is_a_linear_layer_of_each_block():
    torch.manual_seed(0)
    layer = BlockLinear(3, 4, 5).double()
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(2, 6, 3, 4, **F64)
    y = layer(x)
    assert y.shape == (2, 6, 3, 5)
    w = weights(layer)
    for i in range(2):
        for j in range(6):
            expected = block_linear_by_hand(x[i, j].tolist(), w["weight"], w["bias"])
            np.testing.assert_allclose(y[i, j].detach().numpy(), expected, rtol=1e-12)


def test_a_block_linear_layer_begins_with_the_variance_of_its_full_width():
    torch.manual_seed(0)
    layer = BlockLinear(8, 64, 96)
    assert layer.weight.std().item() == pytest.approx(1 / math.sqrt(8 * 64), rel=0.02)
    assert layer.weight.abs().max() < 2 * 1.1369 / math.sqrt(8 * 64), "a truncated normal"
    assert not layer.bias.any()


# one step


def test_a_prior_step_is_the_block_gru_and_the_prior_s_sample(rssm):
    torch.manual_seed(1)
    state = torch.randn(2, B, D + Z, **F64)
    action = 2 * torch.randn(2, B, A, **F64)
    noise = torch.randn(2, B, Z, **F64)
    assert (action.abs() > 1).any() and (action.abs() < 1).any()
    new, w = rssm.prior_step(state, action, noise).detach().numpy(), weights(rssm)
    for i in range(2):
        for b in range(B):
            deter = deter_by_hand(w, state[i, b].tolist(), action[i, b].tolist())
            probs = prior_by_hand(w, deter)
            np.testing.assert_allclose(new[i, b, :D], deter, rtol=1e-10)
            np.testing.assert_allclose(rssm.prior(torch.tensor(deter, **F64)).exp().detach().numpy(), probs, rtol=1e-10)
            assert new[i, b, D:].tolist() == sample_by_hand(probs, noise[i, b].tolist())


def test_an_action_keeps_its_gradient_outside_its_range(rssm):
    """Divided by its size, which is a constant, as in DreamerV3's code."""
    state, noise = torch.zeros(1, D + Z, **F64), torch.zeros(1, Z, **F64)
    slopes = {}
    for scale in (1.0, 4.0):
        action = torch.tensor([[scale, -scale]], **F64).requires_grad_()
        deter = rssm.prior_step(state, action, noise)[:, :D]
        slopes[scale] = torch.autograd.grad(deter.sum(), action)[0]
    torch.testing.assert_close(slopes[4.0], slopes[1.0] / 4)
    assert slopes[1.0].abs().min() > 0


def test_draws_of_zero_give_the_most_probable_classes(rssm):
    torch.manual_seed(1)
    state, action = torch.randn(50, D + Z, **F64), torch.randn(50, A, **F64)
    new = rssm.prior_step(state, action, torch.zeros(50, Z, **F64))
    best = rssm.prior(new[:, :D]).argmax(-1)
    assert (new[:, D:].unflatten(-1, (K, C)).argmax(-1) == best).all()
    assert best.unique().numel() == C


# distributions


@pytest.mark.parametrize("unimix", [0.0, 0.05])
def test_every_class_keeps_its_share_of_the_uniform_distribution(unimix):
    logits = torch.tensor([[[0.0, 200.0, -200.0], [1.0, 2.0, 0.5]]], **F64)
    probs = mixed_log_probs(logits, unimix).exp()[0].numpy()
    third = unimix / 3
    np.testing.assert_allclose(probs[0], [third, 1 - 2 * third, third], atol=1e-12)
    plain = np.exp([1.0, 2.0, 0.5]) / np.exp([1.0, 2.0, 0.5]).sum()
    np.testing.assert_allclose(probs[1], (1 - unimix) * plain + third, rtol=1e-12)


@pytest.mark.parametrize("draw", ["own", "given"])
def test_samples_have_the_mixed_probabilities(rssm, draw):
    torch.manual_seed(0)
    n = 40_000
    state, action = torch.randn(D + Z, **F64).expand(n, -1), torch.randn(A, **F64).expand(n, -1)
    with torch.no_grad():
        rssm.prior_logits.last.weight.mul_(3)  # some classes have little more than the uniform share
        new = rssm.prior_step(state, action, torch.randn(n, Z, **F64) if draw == "given" else None)
    deter, stoch = new[0, :D], new[:, D:].unflatten(-1, (K, C))
    probs = torch.tensor(prior_by_hand(weights(rssm), deter.tolist()), **F64)
    assert probs.min() < 0.03 and probs.max() > 0.8
    assert (stoch.sum(-1) == 1).all() and ((stoch == 0) | (stoch == 1)).all()
    error = (probs * (1 - probs) / n).sqrt()
    assert ((stoch.mean(0) - probs).abs() < 4.5 * error).all()
    pairs = torch.einsum("nc,nd->cd", stoch[:, 0], stoch[:, 1]) / n  # variables are drawn independently
    torch.testing.assert_close(pairs, torch.outer(probs[0], probs[1]), rtol=0, atol=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gumbel_noise_is_finite_and_grows_with_the_draw(dtype):
    noise = torch.tensor([-math.inf, -1e4, -9.9, -3.0, 0.0, 3.0, 6.0, 9.9, 1e4, math.inf], dtype=dtype)
    values = gumbel(noise)
    assert values.isfinite().all() and (values.diff() >= 0).all() and (values.diff()[2:-2] > 0).all()
    assert values[4].item() == pytest.approx(-math.log(math.log(2)))
    tail = 0.5 * math.erfc(6 / math.sqrt(2))  # log(1 - tail) is -tail
    assert values[6].item() == pytest.approx(-math.log(tail), rel=1e-5)


def test_gumbel_draws_have_their_mean_and_variance():
    torch.manual_seed(0)
    values = gumbel(torch.randn(200_000))
    assert values.mean().item() == pytest.approx(0.5772157, abs=0.015)
    assert values.var().item() == pytest.approx(math.pi**2 / 6, rel=0.03)


def test_a_sample_s_gradient_is_that_of_the_probabilities():
    torch.manual_seed(0)
    logits = torch.randn(5, K, C, **F64).requires_grad_()
    noise, g = torch.randn(5, K, C, **F64), torch.randn(5, K, C, **F64)
    drawn = sample(mixed_log_probs(logits, 0.05), noise)
    assert ((drawn == 0) | (drawn == 1)).all()
    (gradient,) = torch.autograd.grad((drawn * g).sum(), logits)
    p = torch.softmax(logits.detach(), -1)
    expected = torch.zeros_like(p)  # d p_i / d x_j = p_i (delta_ij - p_j), of the share that is not uniform
    for i in range(C):
        for j in range(C):
            expected[..., j] += 0.95 * g[..., i] * p[..., i] * (float(i == j) - p[..., j])
    torch.testing.assert_close(gradient, expected)


def test_kl_is_that_of_independent_categoricals():
    torch.manual_seed(0)
    p, q = torch.randn(2, 5, K, C, **F64).log_softmax(-1)
    kl = categorical_kl(p, q)
    for b in range(5):
        terms = [math.exp(p[b, k, c]) * (p[b, k, c] - q[b, k, c]).item() for k in range(K) for c in range(C)]
        assert kl[b].item() == pytest.approx(sum(terms), rel=1e-12)
    assert (kl > 0).all() and categorical_kl(p, p).abs().max() < 1e-12


# sequences


def draws(monkeypatch, noise):
    monkeypatch.setattr(torch, "randn", lambda *size, **_: noise.view(size))


def sequence(seed=1):
    torch.manual_seed(seed)
    embed, action, noise = (torch.randn(T, B, n, **F64) for n in (E, A, Z))
    is_first = torch.zeros(T, B, dtype=torch.bool)
    is_first[3, 1] = True
    return embed, action, noise, is_first, torch.randn(B, D + Z, **F64)


def test_a_sequence_in_loops(rssm, monkeypatch):
    """Posterior, samples and the reset of state and action where an episode starts, in the middle of a sequence."""
    embed, action, noise, is_first, start = sequence()
    draws(monkeypatch, noise)
    states, posterior = rssm.observe(embed, action, is_first, start)
    w = weights(rssm)
    for b in range(B):
        state = start[b].tolist()
        for t in range(T):
            move = action[t, b].tolist()
            if is_first[t, b]:
                state, move = [0.0] * (D + Z), [0.0] * A
            deter = deter_by_hand(w, state, move)
            probs = posterior_by_hand(w, deter, embed[t, b].tolist())
            state = deter + sample_by_hand(probs, noise[t, b].tolist())
            np.testing.assert_allclose(states[t, b].detach().numpy(), state, rtol=1e-9)
            np.testing.assert_allclose(posterior[t, b].exp().detach().numpy(), probs, rtol=1e-9)


def test_nothing_before_an_episode_s_start_reaches_it(rssm, monkeypatch):
    embed, action, noise, is_first, start = sequence()
    draws(monkeypatch, noise)
    states, _ = rssm.observe(embed, action, is_first, start)
    changed = action.clone()
    changed[:4] = 7.0  # the action into the first frame included
    start = torch.full_like(start, torch.nan)
    others, _ = rssm.observe(embed, changed, is_first, start)
    assert torch.equal(others[3:, 1], states[3:, 1])
    assert others[:3, 1].isnan().any() and others[3:, 0].isnan().any()


def test_observing_a_sequence_is_observing_step_by_step(rssm, monkeypatch):
    embed, action, noise, is_first, state = sequence()
    draws(monkeypatch, noise)
    states, _ = rssm.observe(embed, action, is_first, state)
    for t in range(T):
        draws(monkeypatch, noise[t])
        state = rssm.posterior_step(state, action[t], embed[t], is_first[t])
        torch.testing.assert_close(state, states[t])


def test_gradients_of_a_sequence_are_those_of_its_differences(rssm, monkeypatch):
    """With samples held, deter and probabilities are smooth: central differences of all that a loss reads."""
    embed, action, noise, is_first, start = sequence()
    rssm.kernels = False  # the loop, in which samples can be replaced
    monkeypatch.setattr("dreamer_mpc.world_model.block_rssm.sample", lambda log_probs, noise: log_probs.exp())
    draws(monkeypatch, noise)
    torch.manual_seed(5)
    g_state, g_log = torch.rand(T, B, D + Z, **F64), torch.rand(T, B, K, C, **F64)
    monkeypatch.setattr(torch, "randn", lambda *size, **_: noise.view(size))
    parameters = dict(rssm.named_parameters())

    def value():
        states, posterior = rssm.observe(embed, action, is_first, start)
        return (g_state * states).sum() + (g_log * (posterior + rssm.prior(states[..., :D]))).sum()

    gradients = torch.autograd.grad(value(), list(parameters.values()))
    for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
        at, eps = gradient.abs().flatten().argmax().item(), 1e-5
        flat = parameter.data.view(-1)
        before, values = flat[at].item(), []
        for step in (eps, -eps):
            flat[at] = before + step
            values.append(value().item())
        flat[at] = before
        slope = (values[0] - values[1]) / (2 * eps)
        assert gradient.flatten()[at].item() == pytest.approx(slope, rel=1e-6), name
