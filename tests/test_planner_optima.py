"""Every planner finds the optimum of problems with a closed-form solution; gradients find the nearest optimum."""

import pytest
import torch

from dreamer_mpc.planners import Memory, make_planner
from dreamer_mpc.planners.rollout import rollout
from tests.support.latent_models import Ledge, Linear, Slope, TwoBumps
from tests.support.planning import PAPER, plan

# Budgets that come close to the optimum of a smooth problem of a few steps in a fraction of a second. The ascent
# converges below 2 / 14, where 14 is the largest curvature of J among the problems below.
ASCENT = dict(iterations=150, step_size=0.12, choose_by="after")
BUDGETS = {
    "dream-mpc": PAPER | dict(candidates=5) | ASCENT,
    "policy-grad-mpc": dict(candidates=5) | ASCENT,
    "grad-mpc": dict(candidates=5) | ASCENT,
    "cem": dict(candidates=300, elites=20, iterations=12),
    "mppi": dict(candidates=300, elites=30, iterations=12, min_std=0.003, temperature=3.0),
}
every_search = pytest.mark.parametrize("name", BUDGETS)


def matrix(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def executed_gap(name):
    """Largest distance of an action from the optimum: gradients converge, CEM's Gaussian shrinks, MPPI's stays wide."""
    return {"cem": 3e-3, "mppi": 5e-3}.get(name, 1e-4)


# A concave quadratic whose optimum no action reaches


def quadratic(cost=0.2):
    """Two coupled coordinates, an unreachable goal, and a cost of actions."""
    a, b = matrix([0.9, 0.3], [-0.2, 0.8]), matrix([0.5, 0.1], [0.0, 0.4])
    goal = torch.tensor([0.4, -0.3], dtype=torch.float64)
    nothing = torch.zeros(2, 2, dtype=torch.float64)
    return Linear(a, b, torch.eye(2, dtype=torch.float64), goal, cost, 0.9, nothing, gain=nothing)


@every_search
def test_where_the_optimum_is_out_of_bounds_the_action_is_at_the_bound(name):
    """A goal of (6, -5) needs actions far beyond 1 and -1."""
    model = quadratic(cost=0.0)
    model.goal = torch.tensor([6.0, -5.0], dtype=torch.float64)
    result = plan(make_planner(name, **dict(BUDGETS[name], horizon=1)), model, torch.zeros(1, 4, dtype=torch.float64))
    torch.testing.assert_close(result.action, matrix([1.0, -1.0]), rtol=0, atol=executed_gap(name))


# A double integrator: the gain and the value of the Riccati recursion


STEP, COST, DISCOUNT = 0.5, 0.3, 0.95
A, B = matrix([1.0, STEP], [0.0, 1.0]), matrix([0.5 * STEP**2], [STEP])
C = torch.diag(torch.tensor([1.0, 0.5], dtype=torch.float64))


def riccati(steps, p):
    """(P, gain): the cost to go x' P x and the action -(gain x), `steps` before the cost to go is x' p x.

    An action's step costs discount^k (|C x'|^2 + COST |a|^2), for the x' that it leads to.
    """
    for _ in range(steps):
        m = C.T @ C + DISCOUNT * p
        gain = torch.linalg.solve(COST + B.T @ m @ B, B.T @ m @ A)
        p = A.T @ m @ (A - B @ gain)
    return p, gain


NOTHING = torch.zeros(2, 2, dtype=torch.float64)
STATIONARY, GAIN = riccati(500, NOTHING)


def double_integrator(p=STATIONARY, gain=0.0, std=0.3):
    goal = torch.zeros(2, dtype=torch.float64)
    return Linear(A, B, C, goal, COST, DISCOUNT, p, gain * GAIN, std)


def at(*points):
    """States at rest of action."""
    return torch.cat([matrix(*points), torch.zeros(len(points), 1, dtype=torch.float64)], dim=1)


def cost_to_go(p, state):
    return (state[:, :2] @ p * state[:, :2]).sum(1)


def test_the_closed_form_is_a_fixed_point_and_stabilises():
    torch.testing.assert_close(riccati(1, STATIONARY)[0], STATIONARY)
    assert torch.linalg.eigvals(A - B @ GAIN).abs().max() < 0.8
    assert torch.linalg.eigvals(A).abs().max() == 1


@every_search
@pytest.mark.parametrize("objective", ["return", "lambda-return", "rewards"])
def test_the_first_action_is_the_linear_quadratic_regulators(name, objective):
    """With the stationary value at the end, the plan of 4 steps is the beginning of the infinite-horizon plan."""
    planner = make_planner(name, **dict(BUDGETS[name], horizon=4, discount=DISCOUNT, objective=objective))
    p, gain = riccati(4, NOTHING if objective == "rewards" else STATIONARY)
    state = at([0.4, 0.0], [-0.2, 0.3])
    best = -state[:, :2] @ gain.T
    assert 0.2 < best.abs().min() and best.abs().max() < 0.6
    result = plan(planner, double_integrator(), state)
    torch.testing.assert_close(result.action, best, rtol=0, atol=executed_gap(name))
    x = state[:, :2]
    for k in range(4):  # the whole plan, by the gains for the remaining steps
        best = -x @ riccati(4 - k, NOTHING if objective == "rewards" else STATIONARY)[1].T
        torch.testing.assert_close(result.actions[:, k], best, rtol=0, atol=executed_gap(name))
        x = x @ A.T + best @ B.T
    torch.testing.assert_close(result.value, -cost_to_go(p, state), rtol=0, atol=2e-5)
    assert (result.value <= -cost_to_go(p, state) + 1e-12).all()


@every_search
def test_the_terminal_value_is_what_makes_one_step_enough(name):
    state = at([0.4, 0.0], [-0.2, 0.3])
    settings = dict(BUDGETS[name], horizon=1, discount=DISCOUNT, objective="return")
    result = plan(make_planner(name, **settings), double_integrator(), state)
    torch.testing.assert_close(result.action, -state[:, :2] @ GAIN.T, rtol=0, atol=executed_gap(name))
    myopic = plan(make_planner(name, **settings), double_integrator(p=NOTHING), state)
    torch.testing.assert_close(myopic.action, -state[:, :2] @ riccati(1, NOTHING)[1].T, rtol=0, atol=executed_gap(name))
    assert (result.action - myopic.action).abs().min() > 0.1


def drive(planner, model, state, steps):
    """(the state after `steps`, the discounted sum of rewards) in closed loop, with memory."""
    memory, total = None, 0.0
    torch.manual_seed(0)
    for k in range(steps):
        decision = planner.plan(model, state, memory)
        state, memory = model.step(state, decision.action), decision.memory
        total = total + planner.discount**k * model.reward(state)
    return state, total


CLOSED_LOOP = {
    "dream-mpc": dict(iterations=8, step_size=0.4),
    "policy-grad-mpc": dict(iterations=8, step_size=0.4),
    "grad-mpc": dict(iterations=8, step_size=0.4, candidates=20),
    "cem": dict(iterations=4, candidates=100, elites=10, objective="return"),
    "mppi": dict(iterations=4, candidates=100, elites=10, temperature=3.0, min_std=0.01),
}


@every_search
def test_the_closed_loop_drives_the_state_to_the_origin_at_nearly_the_optimal_cost(name):
    planner = make_planner(name, **CLOSED_LOOP[name], horizon=2, discount=DISCOUNT)
    state = at([0.8, 0.0], [-0.3, 0.5])
    end, total = drive(planner, double_integrator(), state, steps=12)
    assert end[:, :2].norm(dim=1).max() < 0.06
    cost = cost_to_go(STATIONARY, state)
    assert (-total > 0.99 * cost).all() and (-total < 1.1 * cost).all()


@pytest.mark.parametrize("settings", [{}, PAPER], ids=["as it is", "the paper's"])
def test_dream_mpc_earns_more_than_the_policy_it_starts_from(settings):
    """From a policy that is noise around zero; the paper: H = 15, N = 5, one step of ascent, rho = 0.1."""
    model = quadratic()
    x = torch.rand(20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    state = torch.cat([x, torch.zeros_like(x)], dim=1)
    still = settings | {"iterations": 0}
    _, planned = drive(make_planner("dream-mpc", **settings), model, state, steps=8)
    _, chosen = drive(make_planner("dream-mpc", **still), model, state, steps=8)
    _, idle = drive(make_planner("dream-mpc", **still | {"candidates": 1}), model, state, steps=8)
    assert planned.mean() > 0.7 * chosen.mean()
    assert chosen.mean() > 0.9 * idle.mean() or not settings, "there is one candidate"


# Two bumps: the ascent ends at the bump near its start


def bumps(name, memory=None, rows=3, **settings):
    """(executed actions [B], J [B]) on `TwoBumps` with a plan of one step."""
    state = torch.zeros(rows, 1, dtype=torch.float64)
    result = plan(make_planner(name, **settings | {"horizon": 1}), TwoBumps(), state, memory)
    return result.action[:, 0], result.value


ON_BUMPS = dict(iterations=100, step_size=0.01, choose_by="after")


@pytest.mark.parametrize("name", ["dream-mpc", "policy-grad-mpc"])
def test_an_ascent_from_the_policy_climbs_the_bump_it_starts_at(name):
    paper = PAPER if name == "dream-mpc" else {}
    action, value = bumps(name, **paper | ON_BUMPS | {"candidates": 50})
    torch.testing.assert_close(action, torch.full_like(action, TwoBumps.low), rtol=0, atol=1e-3)
    torch.testing.assert_close(value, torch.full_like(value, 0.5), rtol=0, atol=1e-4)


@pytest.mark.parametrize("reuse, peak", [(0.8, TwoBumps.high), (0.1, TwoBumps.low)])
def test_a_previous_plan_on_the_higher_bump_is_kept_by_much_reuse_and_lost_by_little(reuse, peak):
    """The blend of a plan at 0.7 and samples about -0.6 lies on the slope of one bump or the other."""
    memory = Memory(torch.full((3, 1, 1), 0.7, dtype=torch.float64), torch.ones(3, dtype=torch.bool))
    action, _ = bumps("dream-mpc", memory, **PAPER | ON_BUMPS | {"reuse": reuse})
    torch.testing.assert_close(action, torch.full_like(action, peak), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    "name, settings", [("grad-mpc", ON_BUMPS), ("cem", {}), ("mppi", dict(min_std=0.005, temperature=3.0))]
)
def test_random_samples_find_the_higher_bump(name, settings):
    action, value = bumps(name, **settings)
    torch.testing.assert_close(action, torch.full_like(action, TwoBumps.high), rtol=0, atol=0.01)
    torch.testing.assert_close(value, torch.ones_like(value), rtol=0, atol=0.01)


def test_a_lone_random_start_climbs_the_bump_that_it_is_at():
    """Grad-MPC with one start in place of its thousand."""
    begin, _ = bumps("grad-mpc", rows=40, candidates=1, iterations=0)
    end, _ = bumps("grad-mpc", rows=40, candidates=1, **ON_BUMPS)
    for peak in (TwoBumps.low, TwoBumps.high):
        near = (begin - peak).abs() < 0.31
        assert 3 < near.sum() < 30
        torch.testing.assert_close(end[near], torch.full_like(end[near], peak), rtol=0, atol=1e-3)


# A cliff: J rises up to its edge, and goes on rising behind it only where continuation is not known


@pytest.mark.parametrize("objective", ["return", "rewards"])
@every_search
def test_planners_stay_on_a_cliff_if_the_model_says_that_it_ends_the_episode(name, objective):
    iterations = min(40, BUDGETS[name]["iterations"])
    settings = BUDGETS[name] | dict(iterations=iterations, horizon=5, discount=0.9, objective=objective)
    state = torch.zeros(8, 1, dtype=torch.float64)
    for model in (Ledge(), Slope()):
        actions = plan(make_planner(name, **settings), model, state).actions
        before_last = rollout(model, state, actions[:, None])[:, 0, :-1, 0]  # [B, 4]; a fall at the end may pay
        highest = before_last.max(dim=1).values
        if isinstance(model, Ledge):
            assert (highest < model.top).all() and (highest > 0.5).all(), "close to the edge, never behind it"
        else:
            assert (highest > 1.5).all(), "the same without continuation runs over it"
