"""Shared code of the planner tests: small settings, small problems, and J in plain numbers."""

from dataclasses import asdict

import torch

from dreamer_mpc.config import load_presets
from dreamer_mpc.planners import Memory, Plan, make_planner

PAPER = asdict(load_presets("planner/dream-mpc-paper").dream_mpc)  # Dream-MPC's settings there
SMALL = {
    "policy": {},
    "dream-mpc": PAPER | dict(horizon=4, candidates=3, iterations=1, uncertainty=0.3, discount=0.9),
    "dream-mpc as it is": dict(horizon=4, candidates=3, open_loop=2, uncertainty=0.3, discount=0.9, reuse=0.1),
    "policy-grad-mpc": dict(horizon=4, candidates=3, iterations=2, discount=0.9),
    "grad-mpc": dict(horizon=4, candidates=3, iterations=2, discount=0.9),
    "cem": dict(horizon=4, candidates=16, iterations=2, elites=6, reuse=0.4, discount=0.9, objective="return"),
    "mppi": dict(horizon=4, candidates=16, iterations=2, elites=6, policy_candidates=4, discount=0.9),
}
SEARCHING = [name for name in SMALL if name != "policy"]
ASCENDING = ["dream-mpc", "policy-grad-mpc", "grad-mpc"]
TENSORS = ["action", "actions", "value", "candidates", "candidate_values"]


def small(name, **settings):
    return make_planner(kind(name), **SMALL[name] | settings)


def kind(name):
    """The name of the planner, for an entry with a suffix."""
    return name.split()[0]


def start(rows=2, size=3, seed=0):
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def marked(state, row, mark=20.0):
    """`state` with the entry that `Broken` reads: `mark` in one row, 0 in the others."""
    marks = torch.zeros(len(state), 1, dtype=state.dtype)
    marks[row] = mark
    return torch.cat([state, marks], dim=1)


def previous_plan(rows=2, horizon=4, seed=1):
    draw = torch.Generator().manual_seed(seed)
    actions = torch.rand(rows, horizon, 2, generator=draw, dtype=torch.float64) * 1.8 - 0.9
    return Memory(actions, torch.ones(rows, dtype=torch.bool))


def memory_for(planner, rows=2):
    """A previous plan of the planner's horizon; None for the policy, which has no memory."""
    return previous_plan(rows, planner.horizon) if hasattr(planner, "horizon") else None


def plan(planner, model, state, memory=None, seed=0) -> Plan:
    torch.manual_seed(seed)
    return planner.plan(model, state, memory)


def same(a: Plan, b: Plan, rows=slice(None)):
    """Equal bit for bit in `rows`."""
    assert all(torch.equal(getattr(a, name)[rows], getattr(b, name)[rows]) for name in [*TENSORS, "fallback"])
    assert (a.memory is None) == (b.memory is None)
    if a.memory is not None:
        assert all(torch.equal(x[rows], y[rows]) for x, y in zip(a.memory, b.memory, strict=True))


def near(a: Plan, b: Plan):
    """Equal up to rounding: torch multiplies matrices in another way where parameters need no gradient, and whether
    its last bits are the same depends on the CPU.
    """
    for name in TENSORS:
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=1e-11, atol=1e-11)
    assert torch.equal(a.fallback, b.fallback)


def plain_j(model, state, actions, planner):
    """J of one sequence, computed number by number from the settings of `planner`."""
    gains, penalties, states = [], [], []
    for action in actions:
        state = model.step(state, action)
        penalty = 0.0
        if planner.uncertainty != 0:
            heads = model.value(state)
            spread = (heads - heads.mean()).square().mean().sqrt().item()
            penalty = planner.uncertainty * spread * (heads.mean().item() if planner.scale_penalty else 1)
        gains.append(model.reward(state).item() - penalty)
        penalties.append(penalty)
        states.append(state)

    def after(steps):  # so many rewards, then the value
        total = sum(planner.discount**k * gain for k, gain in enumerate(gains[:steps]))
        if steps == len(states):
            return total
        return total + planner.discount**steps * (model.value(states[steps]).mean().item() - penalties[steps])

    last, lambda_ = len(states) - 1, planner.return_lambda
    if planner.objective == "rewards":
        return after(last + 1)
    if planner.objective == "return" or last == 0:
        return after(last)
    mixed = sum((1 - lambda_) * lambda_ ** (n - 1) * after(n) for n in range(1, last))
    return mixed + lambda_ ** (last - 1) * after(last)


def plain_gradient(model, state, actions, planner, epsilon=1e-6):
    """dJ/da of one sequence by central differences."""
    slope = torch.zeros_like(actions)
    for k in range(actions.shape[0]):
        for i in range(actions.shape[1]):
            up, down = actions.clone(), actions.clone()
            up[k, i] += epsilon
            down[k, i] -= epsilon
            slope[k, i] = plain_j(model, state, up, planner) - plain_j(model, state, down, planner)
    return slope / (2 * epsilon)


def plain_ascent(model, state, actions, planner):
    """(one sequence after the planner's gradient steps, J before the last of them)."""
    for _ in range(planner.iterations):
        value = plain_j(model, state, actions, planner)
        slope = plain_gradient(model, state, actions, planner)
        slope = slope * min(1.0, planner.grad_clip / slope.square().sum().sqrt().item())
        actions = (actions + planner.step_size * slope).clamp(-1, 1)
    return actions, value


def clamp(x):
    return max(-1.0, min(1.0, x))


def plain_mean_and_std(elites, weights):
    """Weighted mean and standard deviation of each entry [H][A] of the elites, number by number."""
    means, stds = [], []
    for k in range(len(elites[0])):
        mean = [sum(w * e[k][i] for w, e in zip(weights, elites)) for i in range(len(elites[0][k]))]
        var = [sum(w * (e[k][i] - m) ** 2 for w, e in zip(weights, elites)) for i, m in enumerate(mean)]
        means.append(mean)
        stds.append([v**0.5 for v in var])
    return means, stds
