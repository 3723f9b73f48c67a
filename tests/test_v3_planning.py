"""Planners on DreamerV3's agent: values, gradients through categorical samples, readouts, line search, exploration."""

import dataclasses
import itertools

import pytest
import torch

from dreamer_mpc.agents.latents import ReturnLatents, WalkedReturnLatents
from dreamer_mpc.config import load_presets
from dreamer_mpc.config.resolve import training_planner
from dreamer_mpc.networks.actor import TanhNormal
from dreamer_mpc.networks.normal_actor import BoundedNormal, NormalActor
from dreamer_mpc.networks.two_hot import TwoHot, symexp_bins, symlog
from dreamer_mpc.networks.value_ensemble import TwoHotCritic
from dreamer_mpc.planners import DreamMPC, Policy
from dreamer_mpc.planners.rollout import rollout
from dreamer_mpc.planners.steps import gradient
from dreamer_mpc.world_model import CategoricalWorldModel, WorldModelConfig
from dreamer_mpc.world_model.block_rssm import gumbel, sample
from tests.support.agents import make_agent
from tests.support.planning import TENSORS, plan

H = 2
TINY = WorldModelConfig(
    kind="categorical", continuation=True, deter=8, stoch=2, classes=3, blocks=2, hidden=7, reward_layers=1,
    reward_hidden=16, encoder_channels=(2, 3, 4, 5), decoder_dense=64, decoder_channels=(4, 3, 2),
)  # fmt: skip
PLANNER = DreamMPC(horizon=H, iterations=1, discount=0.9, objective="return", uncertainty=0.3, open_loop=0)


# The loop over steps, and rollouts in one call.
LATENTS = pytest.mark.parametrize("latents", [ReturnLatents, WalkedReturnLatents])


def trained(layer, bins, spread=1.0):
    """Make the distributions of a head's last `layer` those of a trained head: peaks that move with the input."""
    place = symlog(bins)
    direction = torch.randn(*layer.weight.shape[:-1], layer.weight.shape[-1], dtype=bins.dtype)
    if direction.dim() == 2:  # a linear layer, [bins, hidden]
        weight, bias = 11 * place[:, None] * spread * direction[0], -5.5 * place.square()
    else:  # of several heads, [K, hidden, bins]
        weight, bias = 11 * place * spread * direction[..., :1].expand_as(layer.weight), -5.5 * place.square()
    layer.weight.data.copy_(weight)
    layer.bias.data.copy_(bias.expand_as(layer.bias))


def make_model(seed=0, action_dim=2, by_samples=False, latents=ReturnLatents, **settings):
    """World model, actor and critic in float64 whose heads are peaked; `by_samples`: they ignore deter."""
    torch.manual_seed(seed)
    world = CategoricalWorldModel(dataclasses.replace(TINY, **settings), action_dim).double()
    actor = NormalActor(world.state_dim, action_dim, 1, 8, scale=1.0).double()
    critic = TwoHotCritic(world.state_dim, 3, 1, 16).double()
    trained(world.reward_head.last, world.bins)
    trained(critic.layers.last, critic.bins)
    torch.nn.init.normal_(world.rssm.prior_logits.last.weight, std=1.0)
    if by_samples:
        heads = [world.reward_head.hidden[0].linear.weight, critic.layers.hidden[0].weight.mT]
        heads += [world.continue_head.hidden[0].linear.weight] if world.continuation else []
        for weight in heads:
            weight.data[..., : world.rssm.deter] = 0
    return latents(world, actor, critic, action_dim, discount=0.9)


def states_of(model, rows=2, seed=5):
    """Posterior-like states: deter in (-1, 1) and one-hot vectors."""
    draw = torch.Generator().manual_seed(seed)
    rssm = model.world_model.rssm
    deter = torch.rand(rows, rssm.deter, generator=draw, dtype=torch.float64) * 2 - 1
    classes = torch.randint(rssm.classes, (rows, rssm.stoch), generator=draw)
    return torch.cat([deter, torch.nn.functional.one_hot(classes, rssm.classes).flatten(1).double()], dim=1)


# values


@pytest.mark.parametrize("continuation", [True, False])
def test_values_for_planners_add_the_reward_and_stop_where_the_episode_ends(continuation):
    model = make_model(continuation=continuation)
    states, world = states_of(model, rows=6), model.world_model
    found = model.value(states.view(2, 3, -1)).flatten(1)  # [K, 6]
    for state, values in zip(states, found.unbind(1), strict=True):
        p = world.reward_head(state).softmax(-1)
        reward = sum(p * b for p, b in zip(p.tolist(), world.bins.tolist(), strict=True))
        goes_on = world.continue_head(state).sigmoid().item() if continuation else 1.0
        for logits, value in zip(model.critic.layers(state), values, strict=True):
            after = sum(p * b for p, b in zip(logits.softmax(-1).tolist(), model.critic.bins.tolist(), strict=True))
            assert value.item() == pytest.approx(reward + 0.9 * goes_on * after, rel=1e-6)
    assert found.std(0).min() > 1e-3 and found.std(1).min() > 1e-3, "heads and states differ"


# gradients of J through straight-through samples


def surrogate(model, state, actions, one_hots, at):
    """J of one sequence with each sample as one_hot + probs - sg(probs); `at`: the actions where probs are taken."""
    world, states = model.world_model, []
    moved, still = state, state
    for action, base, one_hot in zip(actions, at, one_hots, strict=True):
        deter, probs = recur(world, moved, action)
        base_deter, base_probs = recur(world, still, base)
        moved = torch.cat([deter, (one_hot + probs - base_probs).flatten()])
        still = torch.cat([base_deter, one_hot.flatten()])
        states.append(moved)
    return PLANNER.objective_function()(model, torch.stack(states)[None, None])[0, 0]


def recur(world, state, action):
    """deter and probabilities of the next state."""
    zeros = torch.zeros(*state.shape[:-1], world.noise_dim, dtype=state.dtype)
    deter = world.step(state, action, zeros)[..., : world.rssm.deter]
    return deter, world.rssm.prior(deter).exp()


@LATENTS
@pytest.mark.parametrize("seed", range(3))
def test_the_gradient_is_that_of_samples_moved_by_their_probabilities(seed, latents):
    """Central differences of the surrogate, with one-hot vectors frozen, for each of several draws."""
    model, draws = make_model(seed, latents=latents), 4
    state = states_of(model, rows=1)[0]
    actions = torch.rand(draws, H, 2, dtype=torch.float64) - 0.5
    noise = model.noise(state.expand(1, draws, H, -1))
    leaf = actions[None].clone().requires_grad_()
    states = rollout(model, state[None], leaf, noise)
    found = gradient(PLANNER.objective_function()(model, states), (leaf,))[0]  # [draws, H, A]
    one_hots = states.detach()[0, ..., model.world_model.rssm.deter :].unflatten(-1, (2, 3)).round()
    assert (one_hots.sum(-1) == 1).all()
    for m in range(draws):
        for k, i in itertools.product(range(H), range(2)):
            both = []
            for sign in (1, -1):
                moved = actions[m].clone()
                moved[k, i] += sign * 1e-6
                both.append(surrogate(model, state, moved, one_hots[m], actions[m]))
            slope = (both[0] - both[1]).item() / 2e-6
            assert found[m, k, i].item() == pytest.approx(slope, rel=1e-4, abs=1e-7)


def outcomes(world):
    """All one-hot states [Z, K, C] of the stochastic part."""
    eye = torch.eye(world.rssm.classes, dtype=torch.float64)
    return torch.stack([torch.stack(z) for z in itertools.product(eye, repeat=world.rssm.stoch)])


def enumerate_j(model, state, actions):
    """The expected J over all outcomes of all steps, differentiable, and its gradient as samples would give it.

    The second is the expectation over outcomes of the straight-through gradient.
    """
    world, z = model.world_model, outcomes(model.world_model)
    n, objective = len(z), PLANNER.objective_function()

    def follow(straight):
        """States [Z^H, H, S] and probabilities of all paths."""
        before, weight, states = state[None], torch.ones(1, dtype=torch.float64), []
        for action in actions:
            deter, probs = recur(world, before, action.expand(len(before), -1))  # [R, D], [R, K, C]
            weight = (weight[:, None] * (probs[:, None] * z).sum(-1).prod(-1)).flatten()  # [R Z]
            stoch = z.expand(len(before), -1, -1, -1) + (probs - probs.detach())[:, None] * straight
            deter = deter[:, None].expand(-1, n, -1)
            before = torch.cat([deter, stoch.flatten(2)], dim=-1).flatten(0, 1)
            states = [s.repeat_interleave(n, dim=0) for s in states] + [before]
        return torch.stack(states, dim=1), weight

    paths, weight = follow(0.0)
    expected = (weight * objective(model, paths[None])[0]).sum()
    paths, weight = follow(1.0)
    return expected, (weight.detach() * objective(model, paths[None])[0]).sum()


def both_gradients(model, state, actions):
    """The exact gradient of the expected J, and the expectation of the gradient that planners use."""
    leaf = actions.clone().requires_grad_()
    return [torch.autograd.grad(x, leaf)[0] for x in enumerate_j(model, state, leaf)]


@pytest.mark.parametrize("by_samples", [False, True])
def test_the_mean_over_draws_tends_to_the_expectation_over_all_outcomes(by_samples):
    model, draws = make_model(3, by_samples=by_samples), 4000
    state, actions = states_of(model, rows=1)[0], torch.tensor([[0.3, -0.2], [-0.5, 0.1]], dtype=torch.float64)
    exact, straight = both_gradients(model, state, actions)
    value, _ = enumerate_j(model, state, actions)
    leaf = actions.expand(1, draws, H, 2).clone().requires_grad_()
    torch.manual_seed(0)
    states = rollout(model, state[None], leaf, model.noise(state.expand(1, draws, H, -1)))
    values = PLANNER.objective_function()(model, states)
    each = gradient(values, (leaf,))[0]  # [M, H, A]
    error = each.std(0) / draws**0.5
    assert ((each.mean(0) - straight).abs() < 4 * error + 1e-12).all()
    assert (values.mean() - value).abs() < 4 * values.std() / draws**0.5
    # The enumerated J has the gradient that finite differences give.
    for k, i in itertools.product(range(H), range(2)):
        up, down = actions.clone(), actions.clone()
        up[k, i] += 1e-6
        down[k, i] -= 1e-6
        slope = (enumerate_j(model, state, up)[0] - enumerate_j(model, state, down)[0]).item() / 2e-6
        assert exact[k, i].item() == pytest.approx(slope, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("by_samples, typical, upwards", [(False, 0.97, 12), (True, 0.9, 8)])
def test_the_gradient_points_along_that_of_the_expected_j(by_samples, typical, upwards):
    """Straight-through gradients are biased, and where rewards are seen by samples alone some point down.

    Of 12 random models with 2 variables of 3 classes, whose expected J is known exactly: the median of the cosines, and
    how many are above 0.
    """
    cosines = []
    for seed in range(12):
        model, draw = make_model(seed, by_samples=by_samples), torch.Generator().manual_seed(seed)
        actions = torch.rand(H, 2, generator=draw, dtype=torch.float64) * 1.6 - 0.8
        exact, straight = both_gradients(model, states_of(model, rows=1, seed=seed)[0], actions)
        assert exact.norm() > 1e-4 and not torch.allclose(exact, straight, rtol=1e-3)
        cosines.append(torch.cosine_similarity(exact.flatten(), straight.flatten(), dim=0).item())
    assert sorted(cosines)[5] > typical and sum(x > 0 for x in cosines) >= upwards, cosines


def test_where_j_is_linear_in_the_sample_the_gradient_is_exact():
    model = make_model(1)
    weight = torch.randn(model.world_model.state_dim, dtype=torch.float64)
    model.world_model.reward = lambda state: state @ weight
    model.critic.forward = lambda state: (state @ weight).expand(3, *state.shape[:-1])
    model.world_model.continues = lambda state: torch.ones_like(state[..., 0])
    state, action = states_of(model, rows=1)[0], torch.tensor([[0.4, -0.6]], dtype=torch.float64)
    exact, straight = both_gradients(model, state, action)
    torch.testing.assert_close(exact, straight, rtol=1e-9, atol=1e-12)
    with pytest.raises(AssertionError):  # of two steps the second depends on the first sample, and not linearly
        torch.testing.assert_close(*both_gradients(model, state, action.repeat(H, 1)), rtol=1e-3, atol=1e-6)


# readouts


def slopes_of(mass, value, readout):
    """The derivative of the mean by each logit, and which bins are beyond 10 times `value`.

    The two bins around `value` share all of the mass but for `mass`, which is spread evenly over all bins.
    """
    bins = symexp_bins().double()
    probs = torch.full_like(bins, mass / len(bins))
    below = int((bins <= value).sum()) - 1
    probs[below : below + 2] += (1 - mass) / 2
    logits = probs.log().requires_grad_()
    slopes = torch.autograd.grad(TwoHot(logits, bins, readout).mean, logits)[0]
    return slopes, bins.abs() > 10 * value


@pytest.mark.parametrize(
    "value, mass, real, symlog_mean",
    [
        (1, 1e-3, 1, 0.013), (1, 1e-6, 1, 1.3e-5), (1, 1e-8, 0.42, 1.3e-7),
        (300, 1e-3, 1, 0.014), (300, 1e-6, 0.28, 1.4e-5),
    ],
)  # fmt: skip
def test_far_bins_can_take_over_the_gradient_of_the_mean_not_that_of_the_symlog_mean(value, mass, real, symlog_mean):
    """The share of far bins where logits change independently of each other; figures of docs/v3.md."""
    for readout, share in (("real", real), ("symlog", symlog_mean)):
        slopes, far = slopes_of(mass, value, readout)
        assert (slopes[far].norm() / slopes.norm()).item() == pytest.approx(share, rel=0.1)


def test_far_bins_whose_logits_change_alike_on_both_sides_cancel():
    slopes, far = slopes_of(1e-6, 1.0, "real")
    assert slopes[far].abs().max() > 1 and slopes[far].sum().abs() < 1e-3


# planning


class Dice:
    """One step to (a, z), z one of two classes with equal odds; r = v = -20 (a - 0.3 -+ 0.1)^2, by the class."""

    action_dim = 1

    def noise(self, state):
        return torch.randn(*state.shape[:-1], 2, dtype=state.dtype)

    def step(self, state, action, noise=None):
        noise = self.noise(state) if noise is None else noise
        even = torch.full_like(noise, 0.5).log()[..., None, :]  # [*, 1 variable, 2 classes]
        return torch.cat([action, sample(even, gumbel(noise[..., None, :])).flatten(-2)], dim=-1)

    def reward(self, state):
        return -20 * (state[..., 0] - 0.3 - 0.1 * (state[..., 1] - state[..., 2])).square()

    def value(self, state):
        return self.reward(state)[None]

    def policy(self, state):
        mean = torch.zeros_like(state[..., :1])
        return BoundedNormal(mean, mean + 0.2)


def test_the_executed_action_spreads_over_seeds_as_one_over_the_root_of_the_draws():
    """The best action for M draws is 0.3 + 0.1 times the mean of M signs."""
    state = torch.zeros(400, 3, dtype=torch.float64)
    lengths = tuple(x / 200 for x in range(1, 180))
    settings = dict(horizon=1, iterations=1, uncertainty=0.0, caution=0.0, line_search=lengths)
    spread = {m: plan(DreamMPC(**settings, draws=m), Dice(), state).action.std().item() for m in (1, 4, 16)}
    for m, found in spread.items():
        assert found == pytest.approx(0.1 / m**0.5, rel=0.12), spread


@torch.no_grad()
def plain_mean_j(model, state, actions, noise, discount, weight):
    """Mean over draws [M, H, Z] of the penalised return of one sequence, step by step."""
    total = 0.0
    for draw in noise:
        s, alive = state, 1.0
        for k, (action, z) in enumerate(zip(actions, draw, strict=True)):
            s = model.step(s, action, z)
            heads = model.value(s)
            gain = heads.mean().item() if k + 1 == len(actions) else model.reward(s).item()
            total += discount**k * alive * (gain - weight * heads.std(correction=0).item())
            alive *= model.continues(s).item()
    return total / len(noise)


@LATENTS
def test_the_line_search_never_lowers_mean_j_under_its_draws(latents):
    """With the default settings at a horizon of 4; J is the mean over the same draws, by a plain loop."""
    model, draws = make_model(2, latents=latents), 5
    state = states_of(model, rows=8)
    settings = dict(horizon=4, draws=draws, open_loop=0, discount=0.9, objective="return")
    plans = [plan(DreamMPC(**settings, iterations=i), model, state) for i in range(4)]
    for before, after in itertools.pairwise(plans):
        assert (after.value >= before.value - 1e-12).all()
    assert (plans[-1].value > plans[0].value + 1e-3).sum() >= 4
    torch.manual_seed(0)
    noise = model.noise(state[:, None, None].expand(-1, draws, 4, -1))  # what a plan draws first
    for result in (plans[0], plans[-1]):
        for b in range(3):
            expected = plain_mean_j(model, state[b], result.actions[b], noise[b], 0.9, 1.0)
            assert result.value[b].item() == pytest.approx(expected, rel=1e-9)


@LATENTS
@pytest.mark.parametrize("settings", [{}, {"candidates": 3}, {"caution": 0.0}], ids=str)
def test_with_the_policy_in_the_loop_neither(settings, latents):
    model = make_model(4, latents=latents)
    state = states_of(model, rows=20)
    settings = dict(horizon=4, draws=5, open_loop=2) | settings
    values = [plan(DreamMPC(**settings, iterations=i), model, state).candidate_values for i in range(3)]
    assert all((after >= before - 1e-12).all() for before, after in itertools.pairwise(x[:, 0] for x in values))
    assert (values[-1][:, 0] > values[0][:, 0] + 1e-3).sum() >= 5


ROLLED = [{}, {"open_loop": 0}, {"candidates": 3}, {"latent_noise": "mean", "draws": 1}]


@pytest.mark.parametrize("settings", ROLLED, ids=str)
def test_rollouts_in_one_call_plan_as_the_loop_does(settings):
    plans = []
    for latents in (ReturnLatents, WalkedReturnLatents):
        model = make_model(6, latents=latents)
        planner = DreamMPC(**dict(horizon=4, draws=5, open_loop=2) | settings)
        plans.append(plan(planner, model, states_of(model, rows=4)))
    for name in TENSORS:
        torch.testing.assert_close(*(getattr(p, name) for p in plans), rtol=1e-7, atol=1e-9)


# exploration


ROWS = 1000


def make_explorer(kind, exploration="policy"):
    """A v3 agent or the paper's, whose policy has means of about 0.2 and -0.3 and stds far from the bounds."""
    world = dataclasses.replace(TINY, stoch=4) if kind == "v3" else None
    behavior = dict(kind=kind, exploration=exploration, actor_layers=1, value_layers=1)
    agent = make_agent(behavior=behavior, kernels=False, **({"world": world} if world else {}))
    last = agent.model.actor.layers.last if kind == "v3" else agent.model.actor.layers.linear[-1]
    last.weight.data.mul_(0.1)
    raw = (-8.0, -4.0) if kind == "v3" else (-1.0, -0.3)
    last.bias.data.copy_(torch.tensor([0.2, -0.3, *raw]))
    return agent


def act(agent, planner, action_noise=0.3):
    """Act of many rows, and the policy in their states."""
    torch.manual_seed(1)
    image = torch.randint(0, 256, (ROWS, 64, 64, 3), dtype=torch.uint8)
    first = torch.ones(ROWS, dtype=torch.bool)
    found = agent.act(planner, agent.initial(ROWS), image, first, action_noise)
    assert torch.equal(found.action, found.carry.action) and found.action.abs().max() <= 1
    with torch.no_grad():
        return found, agent.model.policy(found.carry.state)


def is_standard_normal(x):
    """Mean, std and 5 % of each column, within four standard errors for `ROWS` rows."""
    assert (x.mean(0).abs() < 4 / ROWS**0.5).all(), x.mean(0)
    assert ((x.std(0) - 1).abs() < 4 / (2 * ROWS) ** 0.5).all(), x.std(0)
    tail = (x.abs() > 1.96).double().mean(0)
    assert ((tail - 0.05).abs() < 4 * (0.05 * 0.95 / ROWS) ** 0.5).all(), tail


def before_squashing(kind, action):
    return action if kind == "v3" else torch.atanh(action)


def collecting(kind, **settings):
    """The planner by which a run collects with the bare policy."""
    config = load_presets("default")
    behavior = dataclasses.replace(config.behavior, kind=kind, exploration="policy")
    train = dataclasses.replace(config.train, **settings)
    return training_planner(dataclasses.replace(config, planner="policy", behavior=behavior, train=train))


@pytest.mark.parametrize("kind", ["v3", "dreamer"])
def test_the_bare_policy_executes_its_own_samples(kind):
    """The mode of a tanh-Normal is not its mean squashed, so that a sample around the mode is another thing."""
    found, policy = act(make_explorer(kind), collecting(kind))
    is_standard_normal((before_squashing(kind, found.action) - policy.mean) / policy.std)


@pytest.mark.parametrize("kind", ["v3", "dreamer"])
def test_a_plan_is_explored_with_the_policy_s_spread(kind):
    planner = DreamMPC(horizon=2, open_loop=0, draws=1, iterations=1)
    found, policy = act(make_explorer(kind), planner)
    planned = found.carry.memory.actions[:, 0]
    is_standard_normal((before_squashing(kind, found.action) - before_squashing(kind, planned)) / policy.std)
    assert (planned - policy.mode).abs().mean() > 0.01, "the plan is not the policy's mode"


@pytest.mark.parametrize("kind", ["v3", "dreamer"])
def test_without_action_noise_a_plan_is_executed_as_it_is(kind):
    agent = make_explorer(kind)
    found, _ = act(agent, DreamMPC(horizon=2, open_loop=0, draws=1, iterations=1), 0.0)
    assert torch.equal(found.action, found.carry.memory.actions[:, 0])
    found, policy = act(agent, collecting(kind, action_noise=0.0), 0.0)
    torch.testing.assert_close(found.action, policy.mode)


def test_exploration_by_noise_has_the_setting_s_spread():
    found, policy = act(make_explorer("v3", "noise"), Policy(), 0.15)
    is_standard_normal((found.action - policy.mean) / 0.15)


@pytest.mark.parametrize("kind", [BoundedNormal, TanhNormal])
def test_samples_around_an_action_stay_inside_the_bounds(kind):
    policy = kind(torch.zeros(500, 2), torch.full((500, 2), 0.9))
    around = policy.around(torch.tensor([1.0, -1.0]).expand(500, 2))
    assert around.abs().max() <= 1 and around.isfinite().all()
