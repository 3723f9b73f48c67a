"""DreamerV3's actor and critic: `Dreamer.update` and `ReinforceBehavior.learn` against `reference_reinforce.py`."""

import copy

import pytest
import torch

from dreamer_mpc.agents.reinforce import Prepared
from dreamer_mpc.planners import make_planner
from dreamer_mpc.world_model import WorldModelConfig
from tests.support import agents
from tests.support.reference_reinforce import Draws, Reference, actor_loss, quantile, return_after
from tests.support.reference_update import learns_from, number

# No setting has its default, hardly two sizes are equal, and no factor is 1.
ACTIONS, LENGTH, ROWS, HORIZON = 2, 4, 3, 3
WORLD = dict(
    kind="categorical", deter=8, blocks=2, stoch=3, classes=4, hidden=6, unimix=0.05, encoder_channels=(2, 3, 4, 5),
    decoder_dense=64, decoder_channels=(4, 3, 2), reward_layers=1, reward_hidden=5, free_nats=0.9, image_scale=0.02,
    reward_scale=1.7, continue_scale=1.3, dyn_scale=0.6, rep_scale=0.3,
)  # fmt: skip
BEHAVIOR = dict(
    kind="v3", horizon=HORIZON, discount=0.8, return_lambda=0.6, actor_layers=2, actor_hidden=6, value_layers=2,
    value_hidden=5, bootstrap=0.5, entropy_scale=0.05, slow_rate=0.3, slow_scale=0.7, replay_scale=0.4,
    return_rate=0.45,
)  # fmt: skip
OPTIMIZER = dict(kind="laprop", lr=0.02, relative_clip=0.02, warmup=4)
PARTS = ("world_model", "actor", "critic")
EXACT = dict(rtol=1e-9, atol=1e-12)

each_size = pytest.mark.parametrize("heads", [1, 3], ids=["one head", "three heads"])
each_continuation = pytest.mark.parametrize("continuation", [False, True], ids=["endless", "continuation"])


@pytest.fixture(autouse=True)
def float64():
    """torch's own draws are float64 too."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def make_agent(heads=3, continuation=True, seed=0, kernels=True, **behavior):
    """An agent with weights away from their initial values: rewards, values and their slow copy are not 0."""
    behavior = BEHAVIOR | {"value_heads": heads} | behavior
    world = WorldModelConfig(**WORLD, continuation=continuation)
    agent = agents.make_agent(seed, behavior, world, ACTIONS, kernels, **OPTIMIZER)
    with torch.no_grad():
        for parameter in agent.model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        bins = torch.linspace(-20, 20, 255)
        agent.model.world_model.reward_head.last.bias.sub_((bins - 0.7).square())
        agent.model.critic.layers.last.bias.sub_((bins - torch.linspace(0.8, 1.6, heads)[:, None, None]).square())
        agent.learner.slow.load_state_dict(agent.model.critic.state_dict())
        for parameter in agent.learner.slow.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        agent.learner.returns.bounds.copy_(torch.tensor([-1.5, 2.5]))
    return agent


def make_batch(seed=0):
    """Sequences that go on from given states.

    Row 0 ends in a terminal frame; in row 1 an episode is cut off and another one begins, in row 2 one terminates and
    another one begins. Frames are numbered so that no two orders agree.
    """
    draw = torch.Generator().manual_seed(seed)
    batch = agents.make_batch(seed, LENGTH, ROWS, ACTIONS, first=[(2, 1), (0, 2), (2, 2)])
    batch.is_terminal[3, 0] = batch.is_terminal[1, 2] = True
    index = torch.randint(0, 300_000, (LENGTH, ROWS), generator=draw)
    state = torch.rand(ROWS, WORLD["deter"] + WORLD["stoch"] * WORLD["classes"], generator=draw)
    return batch._replace(action=1.5 * batch.action, reward=3 * batch.reward + 1, index=index, state=state)


def make_reference(agent):
    slow = {f"critic.{name}": x for name, x in agent.learner.slow.named_parameters()}
    weights, world = dict(agent.model.named_parameters()), agent.model.world_model.config
    bounds = agent.learner.returns.bounds.tolist()
    return Reference(weights, slow, agent.model.critic.masks, world, agent.behavior, agent.optimizer, bounds)


def noted_draws(monkeypatch, call):
    """The result of a call, and torch's draws in it, in order and unchanged."""
    drawn = []

    def noting(function):
        def draw(*args, **kwargs):
            drawn.append(function(*args, **kwargs))
            return drawn[-1]

        return draw

    with monkeypatch.context() as patch:
        for name in ("rand", "randn", "rand_like", "randn_like"):
            patch.setattr(torch, name, noting(getattr(torch, name)))
        return call(), drawn


def sort_draws(states, drawn):
    """In each step of imagination the policy draws first, then the prior; with kernels the prior draws all at once."""
    if drawn[0].dim() == 3:
        return Draws(states, drawn[0], torch.stack(drawn[1:]))
    return Draws(states, torch.stack(drawn[1::2]), torch.stack(drawn[0::2]))


def update(agent, batch, monkeypatch, seed=1):
    """Metrics, the gradients that the optimizers were given, and the draws."""
    torch.manual_seed(seed)
    given, hooks = {}, []
    for part, optimizer in agent.optimizers.items():

        def note(*_, part=part):
            named = getattr(agent.model, part).named_parameters(prefix=part)
            given[part] = {name: parameter.grad.clone() for name, parameter in named}

        hooks.append(optimizer.register_step_pre_hook(note))
    updated, (states, *drawn) = noted_draws(monkeypatch, lambda: agent.update(batch))
    for hook in hooks:
        hook.remove()
    return updated.metrics, given, sort_draws(states, drawn)


def learn(agent, batch, monkeypatch, seed=1):
    """What a batch says about actor and critic, the states of the batch, and the draws."""
    torch.manual_seed(seed)
    states = agent.model.world_model.infer(batch, agent._amp()).states.detach().requires_grad_()
    learned, drawn = noted_draws(monkeypatch, lambda: agent.learner.learn(states, batch))
    return learned, states, sort_draws(torch.empty(0), drawn)


def same_numbers(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        pair = found[name].detach().double(), torch.as_tensor(expected[name]).detach()
        torch.testing.assert_close(*pair, **EXACT, msg=lambda words: f"{name}: {words}")


def test_what_was_drawn_before_is_what_imagination_would_have_drawn():
    """A GPU draws before it knows the states; on a CPU nothing is prepared."""
    agent, batch = make_agent(), make_batch(0)
    states = agent.model.world_model.infer(batch, agent._amp()).states.detach().requires_grad_()
    assert agent.learner.prepare(batch) is None
    torch.manual_seed(1)
    plain = agent.learner.learn(states, batch)
    torch.manual_seed(1)
    noise = torch.randn(HORIZON, LENGTH * ROWS, agent.model.noise_dim)
    draws = torch.stack([torch.randn(LENGTH * ROWS, ACTIONS) for _ in range(HORIZON)])
    loop = agent.model.world_model.rssm.prepared(noise)
    torch.manual_seed(2)
    prepared = agent.learner.learn(states, batch, Prepared(loop, draws, agent.model.actor.sampler(False)))
    for part in ("actor", "critic"):
        assert all(map(torch.equal, prepared.gradients[part], plain.gradients[part]))
    assert torch.equal(prepared.states_gradient, plain.states_gradient)


@each_size
@each_continuation
def test_two_updates_are_the_reference_s(heads, continuation, monkeypatch):
    agent = make_agent(heads, continuation, kernels=continuation == (heads == 1))  # each form in two of four cases
    reference = make_reference(agent)
    for step in range(2):
        batch = make_batch(step)
        metrics, gradients, draws = update(agent, batch, monkeypatch, seed=step)
        expected = reference.update(batch, draws)
        same_numbers(metrics, expected.metrics)
        for part in PARTS:
            same_numbers(gradients[part], expected.gradients[part])
        same_numbers(dict(agent.model.named_parameters()), reference.weights)
        same_numbers({f"critic.{name}": x for name, x in agent.learner.slow.named_parameters()}, reference.slow)
        torch.testing.assert_close(agent.learner.returns.bounds, torch.tensor(reference.bounds), **EXACT)
    assert metrics["return_scale"] > 1.05, "else the tests would not see it"


@each_size
@each_continuation
def test_what_a_batch_says_is_the_reference_s(heads, continuation, monkeypatch):
    """Gradients of both parts, and the gradient in the states, which begins the way into the world model."""
    agent, batch = make_agent(heads, continuation), make_batch()
    learned, states, draws = learn(agent, batch, monkeypatch)
    reference, rows = make_reference(agent), states.detach().clone().requires_grad_()
    actor, critic, replayed = reference_losses(reference, batch, rows, draws)
    for part, loss in {"actor": actor, "critic": critic}.items():
        expected = torch.autograd.grad(loss, of_part(reference, part), retain_graph=True)
        torch.testing.assert_close(learned.gradients[part], expected, **EXACT)
    (expected,) = torch.autograd.grad(BEHAVIOR["replay_scale"] * replayed / heads, rows)
    torch.testing.assert_close(learned.states_gradient, expected, **EXACT)
    assert expected.any() and not expected[-1].any() and not expected[1, 1].any(), "no value is learned at an end"


def of_part(reference, part):
    return [x for name, x in reference.weights.items() if name.split(".")[0] == part]


def reference_losses(reference, batch, states, draws):
    """The scalars that actor and critic minimise, and the heads' sum on replayed states [T, B, S]."""
    rows = [list(row.unbind(0)) for row in states]
    actor, values, replayed = reference.learn(rows, batch, reference.trajectories(rows, draws))
    return actor, sum(values) + BEHAVIOR["replay_scale"] * sum(replayed), sum(replayed)


def test_the_world_model_learns_from_the_mean_of_identical_heads_as_from_one(monkeypatch):
    found = []
    for heads in (1, 3):
        agent = make_agent(1, bootstrap=1.0)
        if heads == 3:
            first, agent = agent, make_agent(3, bootstrap=1.0)
            agent.model.world_model.load_state_dict(first.model.world_model.state_dict())
            agent.model.actor.load_state_dict(first.model.actor.state_dict())
            for one, many in ((first.model.critic, agent.model.critic), (first.learner.slow, agent.learner.slow)):
                for x, y in zip(one.parameters(), many.parameters(), strict=True):
                    y.data.copy_(x.expand_as(y))
        metrics, gradients, _ = update(agent, make_batch(), monkeypatch)
        found.append((metrics, gradients))
    (one, of_one), (many, of_many) = found
    for part in ("world_model", "actor"):
        torch.testing.assert_close(of_many[part], of_one[part], **EXACT)
    torch.testing.assert_close(many["replay_value_loss"], one["replay_value_loss"], **EXACT)
    torch.testing.assert_close(many["critic_loss"], one["critic_loss"], **EXACT)


# batches that are not finite


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("warm", [False, True], ids=["first", "later"])
def test_a_batch_that_is_not_finite_changes_nothing_and_is_counted(value, warm, monkeypatch):
    agent, batch = make_agent(), make_batch()
    if warm:
        agent.update(batch)
    before = copy.deepcopy(agent.state_dict())
    batch.reward[2, 1] = value
    assert agent.update(batch).metrics["skipped"] == 1
    after = agent.state_dict()
    counts = before.pop("skipped_in_a_row"), after.pop("skipped_in_a_row")
    assert [int(x) for x in counts] == [0, 1]
    skipped = agent.skipped_updates()
    assert skipped.in_a_row == 1 and torch.equal(skipped.index, batch.index)
    assert bits(before["model"]) == bits(after["model"]) and bits(before["behavior"]) == bits(after["behavior"])
    if warm:
        assert bits(before["optimizers"]) == bits(after["optimizers"])
    agent.update(make_batch(1))
    assert bits(agent.state_dict()["behavior"]["returns"]) != bits(before["behavior"]["returns"])


def bits(state):
    """Every number of a nested state, as bytes."""
    if isinstance(state, dict):
        return {name: bits(x) for name, x in state.items()}
    if isinstance(state, (list, tuple)):
        return [bits(x) for x in state]
    return state.numpy().tobytes() if isinstance(state, torch.Tensor) else state


def test_after_a_skipped_update_the_next_is_as_if_it_had_not_been(monkeypatch):
    both = [make_agent(), make_agent()]
    lost = make_batch(7)
    both[0].update(lost._replace(reward=lost.reward * torch.nan))
    for seed in range(2):
        found = [update(agent, make_batch(seed), monkeypatch, seed)[0] for agent in both]
        torch.testing.assert_close(*found, rtol=0, atol=0)
    states = [agent.state_dict() for agent in both]
    assert bits(states[0]["model"]) == bits(states[1]["model"])
    assert bits(states[0]["behavior"]) == bits(states[1]["behavior"])


def test_a_restored_agent_goes_on_bit_for_bit(monkeypatch):
    agent, other = make_agent(), make_agent(seed=9)
    for seed in range(2):
        update(agent, make_batch(seed), monkeypatch, seed)
    other.load_state_dict(copy.deepcopy(agent.state_dict()))
    for seed in range(2):
        found = [update(each, make_batch(seed), monkeypatch, seed)[0] for each in (agent, other)]
        torch.testing.assert_close(*found, rtol=0, atol=0)
    assert bits(agent.state_dict()) == bits(other.state_dict())


def test_without_a_saved_slow_copy_it_begins_as_a_copy_of_the_heads():
    agent, other = make_agent(), make_agent(seed=9)
    other.load_state_dict({"model": agent.state_dict()["model"]})
    assert bits(other.learner.slow.state_dict()) == bits(agent.model.critic.state_dict())
    assert bits(other.learner.slow.state_dict()) != bits(agent.learner.slow.state_dict())


# exploration


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_exploration_of_the_policy_has_its_spread_around_the_plan(noise):
    agent, n = make_agent(exploration="policy"), 4000
    image = torch.zeros(n, 1, 1, 3, dtype=torch.uint8)
    agent.model.world_model.encode = lambda image: torch.zeros(n, agent.model.world_model.encoder.outputs)
    acted = agent.act(make_planner("policy"), agent.initial(n), image, torch.ones(n, dtype=torch.bool), noise)
    policy = agent.model.policy(acted.carry.state)
    drawn = (acted.action - policy.mean) / policy.std
    assert acted.action.abs().max() <= 1
    if noise == 0:
        assert torch.equal(acted.action, policy.mode)
        return
    inside = acted.action.abs() < 1
    # Among the draws inside [-1, 1], a standard normal's share below 0 is known for each; so is the share clipped.
    normal = torch.distributions.Normal(0.0, 1.0)
    low, high = normal.cdf((-1 - policy.mean) / policy.std), normal.cdf((1 - policy.mean) / policy.std)
    place = (normal.cdf(drawn) - low) / (high - low)  # uniform in [0, 1]
    assert (inside.double().mean() - (high - low).mean()).abs() < 0.02
    assert (place[inside].mean() - 0.5).abs() < 0.02 and (place[inside].std() - 12**-0.5).abs() < 0.02


# the reference itself


def test_the_reference_s_returns_are_worked_by_hand():
    rewards, values, discounts = [99.0, 1.0, 2.0, 3.0], [99.0, 10.0, 20.0, 30.0], [99.0, 0.5, 0.5, 0.5]
    # after s_2: 3 + 30 / 2,  s_1: 2 + (20 + 18) / 4,  s_0: 1 + (10 + 11.5) / 4
    assert [return_after(k, rewards, discounts, values, 0.5) for k in range(3)] == [6.375, 11.5, 18.0]
    # The episode ends in s_2 and its reward is the last one; or it is cut off there and the value counts in full.
    ended = [99.0, 0.5, 0.0, 0.5]
    assert [return_after(k, rewards, ended, values, 0.5) for k in range(2)] == [1 + (10 + 2) / 4, 2.0]
    cut = [False, False, True, False]
    assert [return_after(k, rewards, discounts, values, 0.5, cut) for k in range(2)] == [1 + (10 + 12) / 4, 12.0]


def test_the_reference_s_quantiles_are_worked_by_hand():
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2 and quantile([5.0, 1.0], 0.25) == 2 and quantile([4.0], 0.95) == 4


def test_gradients_are_slopes_by_central_differences(monkeypatch):
    """Of the reference's losses, in a few weights of actor and critic and in a few numbers of the states.

    Trajectories, returns and what the slow copy says are constants, so they do not change when a weight moves.
    """
    agent, batch = make_agent(), make_batch()
    learned, states, draws = learn(agent, batch, monkeypatch)
    reference, states = make_reference(agent), states.detach()
    rows = [list(row.unbind(0)) for row in states]
    paths = reference.trajectories(rows, draws)
    low, high = reference.moved_bounds(paths)

    def of_actor():
        return number(actor_loss(reference.networks()[0], paths, max(1.0, high - low)))

    def of_critic():
        _, values, replayed = reference.learn(rows, batch, paths)
        return number(sum(values) + BEHAVIOR["replay_scale"] * sum(replayed))

    for part, loss in {"actor": of_actor, "critic": of_critic}.items():
        for weight, gradient in list(zip(of_part(reference, part), learned.gradients[part], strict=True))[::3]:
            assert_slope(weight.detach(), gradient, loss)
    slow = [reference.slow_values(row) for row in rows]

    def of_states():
        losses = reference.learn([list(row.unbind(0)) for row in states], batch, paths, slow)[2]
        return BEHAVIOR["replay_scale"] * number(sum(losses)) / len(losses)

    for t, b in ((0, 0), (2, 0), (0, 1)):
        assert_slope(states[t, b], learned.states_gradient[t, b], of_states)


def assert_slope(numbers, gradient, loss, width=1e-5):
    """At the largest entry."""
    place, entries, sides = int(gradient.abs().argmax()), numbers.view(-1), []
    for sign in (1, -1):
        entries[place] += sign * width
        sides.append(loss())
        entries[place] -= sign * width
    slope = (sides[0] - sides[1]) / (2 * width)
    assert slope == pytest.approx(float(gradient.flatten()[place]), rel=1e-5, abs=1e-9)


@each_size
def test_a_batch_s_frames_bind_some_heads_and_not_others(heads):
    masks, index = make_agent(heads).model.critic.masks, make_batch().index

    def learners(index):
        return [[learns_from(masks, int(frame), k) for frame in index.flatten()] for k in range(heads)]

    assert learners(index) != learners(index.t()), "a transposed index shows"
    assert all(any(row) and not all(row) for row in learners(index))


def test_the_settings_bind_what_they_should(monkeypatch):
    """Some actions lie outside their bounds, some frames are below the free nats, some tensors are clipped."""
    agent, batch = make_agent(), make_batch()
    _, gradients, draws = update(agent, batch, monkeypatch)
    reference = make_reference(agent)
    terms, states = reference.networks()[0].observe(batch, draws.states)
    bound = [number(x) <= WORLD["free_nats"] for x in terms["dyn"]]
    assert any(bound) and not all(bound)
    samples = torch.stack([x for path in reference.trajectories(states, draws) for x in path.samples])
    assert 0.05 < (samples.abs() > 1).double().mean() < 0.95
    for part in PARTS:
        weights = dict(getattr(agent.model, part).named_parameters(prefix=part))
        largest = OPTIMIZER["relative_clip"]
        clipped = [x.norm() > largest * weights[name].norm() for name, x in gradients[part].items()]
        assert any(clipped) and not all(clipped), part
