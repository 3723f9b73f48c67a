"""`Dreamer.update` against the update of `reference_update.py`: metrics, gradients, and weights after two steps."""

import contextlib
from dataclasses import replace

import pytest
import torch

from dreamer_mpc.world_model import WorldModelConfig
from tests.support import agents
from tests.support.reference_update import Draws, Reference, clip, critic_losses, lambda_returns, learns_from, number

# No setting has its default, no two sizes are equal, and no factor is 1.
ACTIONS, LENGTH, ROWS, HORIZON = 3, 4, 3, 5
WORLD = WorldModelConfig(
    deter=7, stoch=4, hidden=6, min_std=0.23, encoder_channels=(2, 3, 4, 5), decoder_dense=8,
    decoder_channels=(5, 4, 3), reward_layers=1, reward_hidden=5, free_nats=0.74, image_scale=0.02, reward_scale=1.7,
    kl_scale=0.6,
)  # fmt: skip
BEHAVIOR = dict(
    horizon=HORIZON, discount=0.8, return_lambda=0.6, actor_layers=2, actor_hidden=6, actor_init_std=0.7,
    value_layers=2, value_hidden=5, bootstrap=0.5,
)  # fmt: skip
OPTIMIZER = dict(world_model_lr=3e-3, actor_lr=2e-3, critic_lr=5e-3, eps=1e-3)
PARTS = ("world_model", "actor", "critic")
CLIPS = {"no part is clipped": 1e9, "every part is clipped": 1e-3}
EXACT = dict(rtol=1e-9, atol=1e-12)

each_kind = pytest.mark.parametrize("kernels", [False, True], ids=["plain", "kernels"])
each_size = pytest.mark.parametrize("heads", [1, 5], ids=["one head", "five heads"])


@pytest.fixture(autouse=True)
def float64():
    """torch's own draws are float64 too."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def make_agent(kernels, heads, seed=0, behavior=None, world=WORLD, **optimizer):
    behavior = BEHAVIOR | {"value_heads": heads} | (behavior or {})
    agent = agents.make_agent(seed, behavior, world, ACTIONS, kernels, **OPTIMIZER | optimizer)
    agent.model.double()
    with torch.no_grad():  # so that every factor of a gradient differs from weight to weight
        for parameter in agent.model.parameters():
            parameter.mul_(1.5)
    return agent


def make_batch(seed=0):
    """Two rows start an episode, one of them in the middle; frames are numbered so that no two orders agree.

    Two episodes terminate, which only an agent with continuation sees.
    """
    batch = agents.make_batch(seed, LENGTH, ROWS, ACTIONS, first=[(0, 0), (2, 1)])
    index = torch.randint(0, 300_000, (LENGTH, ROWS), generator=torch.Generator().manual_seed(seed))
    batch.is_terminal[1, 1] = batch.is_terminal[3, 2] = True
    return batch._replace(reward=3 * batch.reward + 1, index=index)


def make_reference(agent):
    weights, masks = dict(agent.model.named_parameters()), agent.model.critic.masks
    world = agent.model.world_model.config
    return Reference(weights, masks, world, agent.behavior, agent.optimizer, agent.behavior.head_targets)


@contextlib.contextmanager
def noted_draws(monkeypatch):
    """Records the draws of torch's generator, in order, without changing them."""
    drawn = []
    with monkeypatch.context() as patch:
        for name in ("rand", "randn", "randn_like"):
            patch.setattr(torch, name, _noting(getattr(torch, name), drawn))
        yield drawn


def _noting(function, drawn):
    def draw(*args, **kwargs):
        drawn.append(function(*args, **kwargs))
        return drawn[-1].clone()  # images are dequantised in place

    return draw


def sort_draws(drawn, kernels):
    """The purpose of each draw: kernels draw a rollout at once, states first; otherwise a step's action comes first."""
    pixels, states, *rest = drawn
    if kernels:
        imagined_states, imagined_actions = rest
    else:
        imagined_actions, imagined_states = torch.stack(rest[0::2]), torch.stack(rest[1::2])
    shape = (HORIZON, LENGTH * ROWS)
    assert imagined_states.shape == (*shape, WORLD.stoch) and imagined_actions.shape == (*shape, ACTIONS)
    return Draws(pixels, states, imagined_states, imagined_actions)


def update(agent, batch, monkeypatch, seed=1):
    """Metrics, the gradients that the optimizers were given, and the draws."""
    torch.manual_seed(seed)
    given = {}
    hooks = []
    for part, optimizer in agent.optimizers.items():

        def note(*_, part=part):
            named = getattr(agent.model, part).named_parameters(prefix=part)
            given[part] = {name: parameter.grad.clone() for name, parameter in named}

        hooks.append(optimizer.register_step_pre_hook(note))
    with noted_draws(monkeypatch) as drawn:
        metrics = agent.update(batch).metrics
    for hook in hooks:
        hook.remove()
    return metrics, given, sort_draws(drawn, agent.kernels)


def same_numbers(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        pair = found[name].double(), torch.as_tensor(expected[name]).detach()
        torch.testing.assert_close(*pair, **EXACT, msg=lambda words: f"{name}: {words}")


def assert_same_updates(agent, reference, monkeypatch, steps=2):
    """`steps` updates of both, each on another batch and other draws."""
    for step in range(steps):
        batch = make_batch(step)
        metrics, gradients, draws = update(agent, batch, monkeypatch, seed=step)
        expected = reference.update(batch, draws)
        same_numbers(metrics, expected.metrics)
        for part in PARTS:
            same_numbers(gradients[part], expected.clipped[part])
    same_numbers({name: x.detach() for name, x in agent.model.named_parameters()}, reference.weights)
    return metrics


@each_kind
@each_size
@pytest.mark.parametrize("largest", CLIPS.values(), ids=CLIPS)
@pytest.mark.parametrize("head_targets", ["shared", "own"])
def test_two_updates_are_the_reference_s(kernels, heads, largest, head_targets, monkeypatch):
    agent = make_agent(kernels, heads, behavior={"head_targets": head_targets}, grad_clip=largest)
    metrics = assert_same_updates(agent, make_reference(agent), monkeypatch)
    for part in PARTS:
        assert (metrics[f"{part}_grad_norm"] > largest) == (largest < 1), "the settings clip what they say"


@each_kind
@each_size
@pytest.mark.parametrize("head_targets", ["shared", "own"])
def test_two_updates_with_continuation_are_the_reference_s(kernels, heads, head_targets, monkeypatch):
    world = replace(WORLD, continuation=True)
    agent = make_agent(kernels, heads, behavior={"head_targets": head_targets}, world=world, grad_clip=1e9)
    metrics = assert_same_updates(agent, make_reference(agent), monkeypatch)
    assert 0.2 < metrics["imagined_continue"] < 0.8, "else the tests would hardly see it"


def test_without_continuation_it_makes_no_difference_that_episodes_terminate():
    found = []
    for ended in (False, True):
        agent, batch = make_agent(True, 5), make_batch()
        torch.manual_seed(0)
        agent.update(batch._replace(is_terminal=torch.full_like(batch.is_terminal, ended)))
        found.append(agent.model.state_dict())
    assert agents.same(*found) and not any("continue" in name for name in found[0])


@each_kind
def test_free_nats_bind_some_frames_and_not_others(kernels, monkeypatch):
    agent, batch = make_agent(kernels, 1), make_batch()
    family = make_reference(agent).family()
    _, _, draws = update(agent, batch, monkeypatch)
    terms, _ = family.observe(batch, draws.pixels, draws.states)
    bound = [number(x) < WORLD.free_nats for x in terms["kl"]]
    assert any(bound) and not all(bound), "else the tests above would not see the free nats"


@each_size
def test_a_batch_s_frames_bind_some_heads_and_not_others(heads):
    masks = make_agent(False, heads).model.critic.masks

    def learners(index):
        return [[learns_from(masks, int(frame), k) for frame in index.flatten()] for k in range(heads)]

    index = make_batch().index
    assert learners(index) != learners(index.t()), "a transposed index shows"
    assert all(any(row) and not all(row) for row in learners(index))


# the reference itself


@each_size
@pytest.mark.parametrize("kernels", [True], ids=["kernels"])
def test_gradients_are_slopes_by_central_differences(kernels, heads, monkeypatch):
    """Central differences of the reference's losses for a few weights of actor and critic."""
    agent = make_agent(kernels, heads, grad_clip=1e9)
    batch, reference = make_batch(), make_reference(agent)
    _, gradients, draws = update(agent, batch, monkeypatch)
    _, _, states = reference.family().model_loss(batch, draws)
    starts = [state.detach() for row in states for state in row]
    frames = [int(frame) for frame in batch.index.flatten()]
    paths = reference.trajectories(starts, draws)
    # The policy's inputs and the heads' targets are constants, so they do not change when a weight moves.
    shown = [[path.start, *(state.detach() for state in path.states[:-1])] for path in paths]

    def actor_loss():
        return number(reference.family().actor_loss(reference.trajectories(starts, draws, shown)))

    def critic_loss():
        family = reference.family()
        return number(sum(critic_losses(family, paths, frames, reference.masks)))

    for part, loss in {"actor": actor_loss, "critic": critic_loss}.items():
        for name, gradient in gradients[part].items():
            place = int(gradient.abs().argmax())
            slope = central_difference(reference.weights[name], place, loss)
            assert slope == pytest.approx(float(gradient.flatten()[place]), rel=1e-5, abs=1e-9), name


def central_difference(weight, place, loss, width=1e-5):
    entries, sides = weight.detach().view(-1), []
    for sign in (1, -1):
        entries[place] += sign * width
        sides.append(loss())
        entries[place] -= sign * width
    return (sides[0] - sides[1]) / (2 * width)


def test_the_reference_s_returns_are_worked_by_hand():
    rewards, values = [1.0, 2.0, 3.0, 99.0], [99.0, 10.0, 20.0, 30.0]
    # R_2 = 3 + (30 + 30) / 4,  R_1 = 2 + (20 + 18) / 4,  R_0 = 1 + (10 + 11.5) / 4
    assert lambda_returns(rewards, [0.5] * 4, values, 0.5) == [6.375, 11.5, 18.0]
    # An episode that ends in the second state: nothing after its reward counts.
    assert lambda_returns(rewards, [0.5, 0.0, 0.5, 0.5], values, 0.5)[:2] == [1 + (10 + 2) / 4, 2.0]


def test_the_reference_s_clipping_is_worked_by_hand():
    gradients = {"a": torch.tensor([3.0]), "b": torch.tensor([[4.0]])}
    clipped, norm = clip(gradients, 1.0)
    assert norm == 5
    torch.testing.assert_close(clipped, {"a": torch.tensor([0.6]), "b": torch.tensor([[0.8]])}, rtol=1e-6, atol=0)
    assert clip(gradients, 6.0)[0] == gradients
