"""Parts of the two families in every combination: each learns, and acts with every planner."""

from dataclasses import replace
from itertools import product

import pytest
import torch

from dreamer_mpc.agents.dreamer import Dreamer
from dreamer_mpc.agents.optimizers import OptimizerConfig
from dreamer_mpc.config import Config, planner_from, planner_presets
from dreamer_mpc.planners import CEM, MPPI, GradMPC, Policy, PolicyGradMPC
from dreamer_mpc.world_model import Batch, make_world_model
from tests.support.agents import ACTION_DIM, CATEGORICAL, WORLD, check_mirror_images, make_agent, make_batch

WORLDS = {
    "gaussian": WORLD, "gaussian that ends": replace(WORLD, continuation=True), "categorical": CATEGORICAL,
    "categorical without ends": replace(CATEGORICAL, continuation=False),
    "barlow": replace(CATEGORICAL, representation="barlow"),
}  # fmt: skip
PLANNERS = {
    "policy": Policy(), "sampled policy": Policy(sample=True),
    "grad-mpc": GradMPC(horizon=3, candidates=3, iterations=2),
    "cem": CEM(horizon=3, candidates=12, iterations=2, elites=3), "policy-grad-mpc": PolicyGradMPC(horizon=3),
    "mppi": MPPI(horizon=3, candidates=12, iterations=2, elites=3, policy_candidates=2),
    **{name: planner_from(Config(), name) for name in planner_presets()},
}  # fmt: skip
WITHOUT_ACTOR = {"cem": PLANNERS["cem"], "grad-mpc": GradMPC(horizon=3, candidates=3, objective="rewards")}
OPTIMIZERS = {"adam": {}, "laprop": {"kind": "laprop", "lr": 1e-3, "warmup": 1}}
AMP = torch.autocast("cpu", enabled=False)


def make_planet(world, **optimizer):
    torch.manual_seed(0)
    return Dreamer(ACTION_DIM, world, None, OptimizerConfig(**optimizer))


def learn(agent, updates=3):
    """Updates from a batch whose rows go on from a state of the agent, one of them with an episode's end."""
    batch = make_batch(first=[(0, 0), (3, 1)])
    batch.is_terminal[2, 1] = True
    batch = batch._replace(state=agent.update(batch).states[-1])
    for _ in range(updates):
        metrics = agent.update(batch).metrics
        assert not metrics["skipped"] and all(value.isfinite() for value in metrics.values()), metrics


def act(agent, planners, noise=0.0):
    """Two actions with each planner, the second from the first one's carry, in two environments."""
    image = make_batch(length=2).image[:, :2]
    for name, planner in planners.items():
        carry = agent.initial(2)
        for step in range(2):
            taken = agent.act(planner, carry, image[step], torch.full((2,), step == 0), noise)
            carry = taken.carry
            assert taken.action.shape == (2, ACTION_DIM) and (taken.action.abs() <= 1).all(), name  # so it is finite
            assert carry.state.isfinite().all(), name


@pytest.mark.parametrize("behavior, optimizer", list(product(["dreamer", "v3"], OPTIMIZERS)))
@pytest.mark.parametrize("world", WORLDS)
def test_every_weight_of_every_combination_learns(world, behavior, optimizer):
    agent = make_agent(behavior={"kind": behavior}, world=WORLDS[world], **OPTIMIZERS[optimizer])
    before = {name: weight.clone() for name, weight in agent.model.named_parameters()}
    learn(agent)
    still = [name for name, weight in agent.model.named_parameters() if torch.equal(weight, before[name])]
    assert still == []


@pytest.mark.parametrize("behavior", ["dreamer", "v3"])
@pytest.mark.parametrize("world", ["gaussian", "categorical"])
def test_every_combination_acts_with_every_planner(world, behavior):
    agent = make_agent(behavior={"kind": behavior, "exploration": "policy"}, world=WORLDS[world])
    learn(agent, updates=1)
    act(agent, PLANNERS)


@pytest.mark.parametrize("exploration", ["noise", "policy"])
@pytest.mark.parametrize("behavior", ["dreamer", "v3"])
def test_exploration_keeps_actions_in_their_range(behavior, exploration):
    agent = make_agent(behavior={"kind": behavior, "exploration": exploration})
    act(agent, {"policy": Policy()}, noise=3.0)


@pytest.mark.parametrize("setting", [
    {"discount": 0.0}, {"discount": 1.0}, {"return_lambda": 0.0}, {"slow_rate": 0.0}, {"slow_rate": 1.0},
    {"bootstrap": 0.0}, {"value_heads": 1}, {"return_rate": 1.0}, {"horizon": 2},
], ids=str)  # fmt: skip
def test_the_second_family_learns_at_the_ends_of_its_ranges(setting):
    learn(make_agent(behavior={"kind": "v3"} | setting, world=CATEGORICAL, **OPTIMIZERS["laprop"]), updates=2)


@pytest.mark.parametrize("setting", [
    {"unimix": 0.0}, {"unimix": 1.0}, {"classes": 1}, {"stoch": 1}, {"blocks": 1}, {"hidden": 1}, {"free_nats": 0.0},
], ids=str)  # fmt: skip
def test_categorical_states_learn_at_the_ends_of_their_ranges(setting):
    learn(make_agent(behavior={"kind": "v3"}, world=replace(CATEGORICAL, **setting)), updates=2)


@pytest.mark.parametrize("threads", [1, 2])
def test_mirror_images_of_bins_that_were_never_a_target_stay_equal(threads):
    """Sums over rows may take some columns in another order, and others with more threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        agent = make_agent(behavior={"kind": "v3"}, world=CATEGORICAL, kind="laprop", lr=1e-3, warmup=0)
        for seed in range(15):
            agent.update(make_batch(seed, 12, 8))
    finally:
        torch.set_num_threads(before)
    check_mirror_images(agent)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_planet_learns_and_plans_in_categorical_states(optimizer):
    agent = make_planet(CATEGORICAL, **OPTIMIZERS[optimizer])
    learn(agent)
    act(agent, WITHOUT_ACTOR, noise=0.3)


@pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "plain"])
@pytest.mark.parametrize("config", [WORLD, CATEGORICAL], ids=["gaussian", "categorical"])
def test_a_sequence_begins_after_the_state_that_it_is_given_unless_an_episode_begins(config, kernels):
    torch.manual_seed(0)
    world = make_world_model(config, ACTION_DIM, kernels, bf16=False)
    batch, cut = make_batch(first=[(2, 0)]), 2
    whole = world.infer(batch, AMP)
    rest = Batch(*(x[cut:] for x in batch[:-1]), state=whole.states[cut - 1])
    # The prior of the first step depends on the state before it and the action alone, not on random numbers.
    given, without = (first_prior(world, each) for each in (rest, rest._replace(state=None)))
    for expected, one, other in zip(prior_at(world, whole, cut), given, without, strict=True):
        torch.testing.assert_close(one, expected)
        assert torch.equal(one[0], other[0]), "an episode begins"
        assert not torch.isclose(one[1:], other[1:]).all()


def first_prior(world, batch):
    return prior_at(world, world.infer(batch, AMP), 0)


def prior_at(world, inference, t):
    """Mean and standard deviation of a Gaussian, or log-probabilities."""
    prior = world.rssm.prior(inference.states[..., : world.rssm.deter])
    return [part[t] for part in (prior if isinstance(prior, tuple) else [prior])]
