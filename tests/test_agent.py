"""The agent: acting, updating, saving; and its model behind the planners' interface."""

import copy

import pytest
import torch
from torch.distributions import Normal

from dreamer_mpc.agents.dreamer import THREADED_ROWS
from dreamer_mpc.agents.protocol import Agent
from dreamer_mpc.kernels.graphs import Captured
from dreamer_mpc.planners import make_planner
from tests.support.agents import ACTION_DIM, make_agent, make_batch, make_planet, same

PARTS = ("world_model", "actor", "critic")


def update(agent, batch, seed=0):
    torch.manual_seed(seed)
    return agent.update(batch).metrics


def snapshot(agent, part="model"):
    module = agent.model if part == "model" else getattr(agent.model, part)
    return copy.deepcopy(module.state_dict())


# acting

PLANNERS = [("policy", {}), ("policy", {"sample": True}), ("dream-mpc", {"horizon": 3, "reuse": 0.7})]
CEM = ("cem", {"horizon": 3, "candidates": 20, "iterations": 2, "elites": 4})


def act(agent, planner, steps, seed=0, rows=2, noise=0.0, first=lambda t: [t == 0, t == 0], carry=None):
    """Actions [T, B, A] and the last carry, on the images of `make_batch(0)`."""
    torch.manual_seed(seed)
    carry, images, actions = carry or agent.initial(rows), make_batch().image, []
    for t in steps:
        action, carry, *_ = agent.act(planner, carry, images[t, :rows], torch.tensor(first(t)), noise)
        actions.append(action)
    return torch.stack(actions), carry


@pytest.mark.parametrize("make, kind", [(make_agent, "dreamer"), (make_planet, "planet")])
def test_a_dreamer_is_an_agent_and_says_which(make, kind):
    agent = make()
    assert isinstance(agent, Agent)
    assert (agent.kind, agent.world_model_kind) == (kind, "gaussian")
    assert any(name.startswith("actor.") for name in agent.state_dict()["model"]) == (kind == "dreamer")


@pytest.mark.parametrize("name, settings", [*PLANNERS, CEM])
def test_acting_repeats_under_a_seed(name, settings):
    agent, planner = make_agent(), make_planner(name, **settings)
    actions, carry = act(agent, planner, range(4))
    again, again_carry = act(agent, planner, range(4))
    other, _ = act(agent, planner, range(4), seed=1)
    assert torch.equal(actions, again)
    assert torch.equal(carry.state, again_carry.state)
    assert not torch.equal(actions, other)
    assert actions.abs().max() <= 1
    assert not actions.requires_grad and not carry.state.requires_grad
    assert all(p.grad is None for p in agent.model.parameters())


def test_one_agent_acts_by_the_mode_and_by_samples_in_turn():
    agent, sampled = make_agent(), make_planner("policy", sample=True)
    mode, _ = act(agent, make_planner("policy"), [0])
    sample, carry = act(agent, sampled, [0])
    assert not torch.equal(mode, sample)
    assert torch.equal(act(agent, make_planner("policy"), [0])[0], mode)
    torch.testing.assert_close(agent.model.policy(carry.state).mode[None], mode)


@pytest.mark.parametrize("name, settings", PLANNERS)
def test_a_first_image_forgets_what_was_carried(name, settings):
    agent, planner = make_agent(), make_planner(name, **settings)
    _, carry = act(agent, planner, range(3))
    after, after_carry = act(agent, planner, [3], seed=7, carry=carry, first=lambda t: [True, True])
    fresh, fresh_carry = act(agent, planner, [3], seed=7, first=lambda t: [True, True])
    torch.testing.assert_close(after, fresh)
    torch.testing.assert_close(after_carry.state, fresh_carry.state)
    carried, carried_carry = act(agent, planner, [3], seed=7, carry=carry, first=lambda t: [False, False])
    assert not torch.allclose(carried, fresh)
    assert not torch.allclose(carried_carry.state, fresh_carry.state)


def test_a_first_image_concerns_its_row_alone():
    agent, planner = make_agent(), make_planner("dream-mpc", horizon=3, reuse=0.7)
    _, carry = act(agent, planner, range(3))
    both, both_carry = act(agent, planner, [3], seed=7, carry=carry, first=lambda t: [False, False])
    one, one_carry = act(agent, planner, [3], seed=7, carry=carry, first=lambda t: [True, False])
    torch.testing.assert_close(one[0, 1], both[0, 1])
    assert not torch.allclose(one[0, 0], both[0, 0])
    assert not torch.allclose(one_carry.state[0], both_carry.state[0])


def test_acting_observes_with_the_action_executed_last():
    agent, planner = make_agent(), make_planner("policy")
    actions, carry = act(agent, planner, range(2), noise=0.5)
    torch.testing.assert_close(carry.action, actions[-1])
    torch.manual_seed(3)
    action, carried, *_ = agent.act(
        planner, carry, make_batch().image[2, :2], torch.zeros(2, dtype=torch.bool)
    )
    torch.manual_seed(3)
    world = agent.model.world_model
    embed = world.encode(make_batch().image[2, :2])
    state = world.rssm.posterior_step(carry.state, actions[-1], embed, torch.zeros(2, dtype=torch.bool))
    torch.testing.assert_close(carried.state, state)
    torch.testing.assert_close(action, agent.model.policy(state).mode)


def test_action_noise_is_added_only_when_asked():
    agent, planner = make_agent(), make_planner("policy")
    quiet, carry = act(agent, planner, [0])
    torch.testing.assert_close(quiet[0], agent.model.policy(carry.state).mode)
    noisy, carry = act(agent, planner, [0], noise=0.3)
    assert not torch.allclose(noisy, quiet)
    assert torch.equal(carry.action, noisy[-1]), "the executed action is carried"


def test_action_noise_has_its_std_and_stays_in_bounds():
    agent, n = make_agent(), 4000

    class Still:
        def plan(self, model, state, memory=None):
            plan = make_planner("policy").plan(model, state, memory)
            plan.action = torch.tensor([0.0, 0.9]).expand(len(state), -1)
            return plan

    agent.model.world_model.encode = lambda image: torch.zeros(n, 128)
    image = torch.zeros(n, 1, 1, 3, dtype=torch.uint8)
    action, *_ = agent.act(Still(), agent.initial(n), image, torch.ones(n, dtype=torch.bool), 0.2)
    assert action.abs().max() <= 1
    assert abs(action[:, 0].std() - 0.2) < 0.01
    assert abs(action[:, 0].mean()) < 0.015
    assert abs((action[:, 1] == 1).float().mean() - (1 - Normal(0.0, 1.0).cdf(torch.tensor(0.5)))) < 0.03


class ThreadCounter:
    """A planner that records the number of threads during a plan."""

    def __init__(self, **settings):
        self.threads = []
        for name, value in settings.items():
            setattr(self, name, value)

    def plan(self, model, state, memory=None):
        self.threads.append(torch.get_num_threads())
        return make_planner("policy").plan(model, state, memory)


@pytest.mark.parametrize(
    "settings, rows, threads",
    [
        ({}, 1, 1),
        ({"candidates": THREADED_ROWS - 1}, 1, 1),
        ({"candidates": THREADED_ROWS}, 1, 2),
        ({"candidates": THREADED_ROWS // 2}, 1, 1),
        ({"candidates": THREADED_ROWS // 2}, 2, 2),
    ],
)
def test_a_cpu_plans_on_several_threads_where_there_is_much_to_plan(settings, rows, threads):
    agent, planner = make_agent(), ThreadCounter(**settings)
    torch.set_num_threads(2)
    agent.act(planner, agent.initial(rows), make_batch().image[0, :rows], torch.ones(rows, dtype=torch.bool))
    assert planner.threads == [threads]
    assert torch.get_num_threads() == 2, "as before"


def test_threads_are_as_before_after_a_planner_that_fails():
    class Failing:
        def plan(self, model, state, memory=None):
            raise ZeroDivisionError

    agent = make_agent()
    torch.set_num_threads(2)
    with pytest.raises(ZeroDivisionError):
        agent.act(Failing(), agent.initial(1), make_batch().image[0, :1], torch.ones(1, dtype=torch.bool))
    assert torch.get_num_threads() == 2


# the model for planners


@pytest.mark.parametrize("lead", [(), (4,), (2, 3)])
def test_the_model_takes_any_leading_dims(lead):
    model = make_agent().model
    torch.manual_seed(0)
    state, action = torch.randn(*lead, 24), torch.randn(*lead, ACTION_DIM)
    rows = state.reshape(-1, 24)
    noise = model.noise(state)
    assert noise.shape == (*lead, 8)
    stepped = model.step(rows, action.reshape(-1, ACTION_DIM), noise.reshape(-1, 8))
    torch.testing.assert_close(model.step(state, action, noise).reshape(-1, 24), stepped)
    torch.testing.assert_close(model.reward(state), model.reward(rows).view(lead))
    torch.testing.assert_close(model.value(state), model.value(rows).view(3, *lead))
    torch.testing.assert_close(model.policy(state).mode.reshape(-1, ACTION_DIM), model.policy(rows).mode)
    assert model.policy(state).rsample().shape == (*lead, ACTION_DIM)
    image = model.world_model.decode(state)
    assert torch.equal(image.reshape(-1, 64, 64, 3), model.world_model.decode(rows))


# updating


def test_an_update_changes_all_parts_and_leaves_no_gradient():
    agent = make_agent()
    before = {part: snapshot(agent, part) for part in PARTS}
    metrics = update(agent, make_batch())
    for part in PARTS:
        after = snapshot(agent, part)
        unchanged = [name for name in after if torch.equal(after[name], before[part][name])]
        assert unchanged == (["masks"] if part == "critic" else []), part
    assert all(p.grad is None for p in agent.model.parameters())
    assert all(x.isfinite() and x.shape == () and not x.requires_grad for x in metrics.values())
    assert metrics["skipped"] == 0


@pytest.mark.parametrize("make", [make_agent, make_planet])
@pytest.mark.parametrize("warm", [False, True])
def test_a_batch_that_is_not_finite_changes_nothing_and_is_counted(make, warm):
    agent, batch = make(), make_batch()
    if warm:
        update(agent, batch)
    before = copy.deepcopy(agent.state_dict())
    reward = batch.reward.clone()
    reward[2, 1] = torch.nan
    metrics = update(agent, batch._replace(reward=reward))
    assert metrics["skipped"] == 1
    assert same(before["model"], agent.model.state_dict())
    if warm:
        torch.testing.assert_close(agent.state_dict()["optimizers"], before["optimizers"], rtol=0, atol=0)
    assert all(p.grad is None for p in agent.model.parameters())


def test_after_a_skipped_update_the_next_is_as_if_it_had_not_been():
    agents, batch = [make_agent(), make_agent()], make_batch()
    update(agents[0], batch._replace(reward=torch.full_like(batch.reward, torch.inf)))
    for seed in range(2):
        metrics = [update(agent, batch, seed) for agent in agents]
        torch.testing.assert_close(*metrics, rtol=0, atol=0)
        assert metrics[0]["skipped"] == 0
    assert same(*(snapshot(agent) for agent in agents))


@pytest.mark.parametrize("part", ["actor", "critic"])
def test_one_part_that_is_not_finite_stops_all(part):
    agent = make_agent()
    next(getattr(agent.model, part).parameters()).data.flatten()[0] = torch.nan
    before = {name: snapshot(agent, name) for name in PARTS if name != part}
    assert update(agent, make_batch())["skipped"] == 1
    assert all(same(before[name], snapshot(agent, name)) for name in before)


# saving


@pytest.mark.parametrize("make, planner", [(make_agent, PLANNERS[1]), (make_planet, CEM)])
def test_a_restored_agent_goes_on_bit_for_bit(make, planner):
    (name, settings), agent, batch = planner, make(), make_batch()
    for seed in range(2):
        update(agent, batch, seed)
    state = copy.deepcopy(agent.state_dict())
    other = make(seed=9)
    other.load_state_dict(state)
    for seed in range(2):
        metrics = [update(a, make_batch(seed + 1), seed) for a in (agent, other)]
        torch.testing.assert_close(*metrics, rtol=0, atol=0)
    assert same(snapshot(agent), snapshot(other))
    planner = make_planner(name, **settings)
    assert torch.equal(act(agent, planner, range(3))[0], act(other, planner, range(3))[0])


def test_loading_shares_no_tensor_and_weights_load_alone():
    agent, other, bare, batch = make_agent(), make_agent(seed=9), make_agent(seed=9), make_batch()
    update(agent, batch)
    state = agent.state_dict()
    before = copy.deepcopy(state)
    other.load_state_dict(state)
    bare.load_state_dict({"model": state["model"]})
    assert same(snapshot(agent), snapshot(bare)) and not any(x.state for x in bare.optimizers.values())
    for each in (other, bare):
        assert update(each, batch)["skipped"] == 0
    torch.testing.assert_close(agent.state_dict(), before, rtol=0, atol=0)


# PlaNet: an agent without behaviour


def test_planet_has_a_world_model_and_nothing_else():
    agent = make_planet()
    assert {name.split(".")[0] for name in agent.state_dict()["model"]} == {"world_model"}
    assert list(agent.optimizers) == list(agent.state_dict()["optimizers"]) == ["world_model"]
    assert not hasattr(agent.model, "policy") and not hasattr(agent.model, "value")


def test_planet_s_world_model_is_the_dreamer_s():
    """Same seed, same batches, same world model, bit for bit: behaviour only reads it."""
    agents = [make_planet(), make_agent()]
    assert same(*(snapshot(agent, "world_model") for agent in agents))
    for seed in range(3):
        planet, dreamer = (update(agent, make_batch(seed), seed) for agent in agents)
        torch.testing.assert_close(planet, {name: dreamer[name] for name in planet}, rtol=0, atol=0)
        assert not any(word in name for name in planet for word in ("actor", "critic", "value", "imagined"))
    assert same(*(snapshot(agent, "world_model") for agent in agents))


def test_weights_of_one_kind_of_agent_do_not_load_into_the_other():
    for agent, other in ((make_planet(), make_agent()), (make_agent(), make_planet())):
        with pytest.raises(RuntimeError, match="actor"):
            agent.load_state_dict(other.state_dict())


# capture


def test_captured_on_a_cpu_calls_the_function():
    calls = []

    def function(*args):
        calls.append(args)
        return {"sum": args[0] + 1}

    captured, x = Captured(function), torch.ones(2)
    for _ in range(6):
        assert torch.equal(captured(x, None, [x])["sum"], torch.full((2,), 2.0))
    assert len(calls) == 6
    assert all(call[0] is x and call[1] is None for call in calls)
    assert captured.recordings == {}


def test_an_agent_on_a_cpu_captures_nothing_and_stays_in_fp32():
    agent = make_agent()
    assert not agent.capture
    assert not agent.bf16
