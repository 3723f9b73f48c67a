"""The contract of every planner, its settings, and the parts of a model that it needs."""

import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from jaxtyping import TypeCheckError

from dreamer_mpc.planners import PLANNERS, LatentModel, Planner, Policy, make_planner, reset_memory
from tests.support.latent_models import Bare, Broken, Noisy, Quadratic, Smooth
from tests.support.planning import (
    ASCENDING,
    SEARCHING,
    SMALL,
    TENSORS,
    kind,
    marked,
    memory_for,
    near,
    plan,
    previous_plan,
    same,
    small,
    start,
)

every_planner = pytest.mark.parametrize("name", SMALL)
every_search = pytest.mark.parametrize("name", SEARCHING)


def test_the_planners_tested_here_are_all_there_are():
    assert list(dict.fromkeys(map(kind, SMALL))) == list(PLANNERS)


# The contract of a plan


@every_planner
@pytest.mark.parametrize("seed", [0, 1])
def test_a_plan_is_of_finite_actions_within_bounds_and_says_how_it_was_chosen(name, seed):
    planner, state = small(name), 3 * start(rows=5)
    result = plan(planner, Smooth(std=2.0), state, memory_for(planner, rows=5), seed)
    n, h = getattr(planner, "candidates", 1), getattr(planner, "horizon", 1)
    assert result.action.shape == (5, 2) and result.actions.shape == (5, h, 2)
    assert result.candidates.shape == (5, n, h, 2) and result.candidate_values.shape == (5, n)
    assert all(getattr(result, part).isfinite().all() for part in TENSORS)
    assert all(x.abs().max() <= 1 for x in (result.action, result.actions, result.candidates))
    assert torch.equal(result.action, result.actions[:, 0])
    best = result.candidate_values.max(1).values
    if name in ("cem", "mppi"):
        assert (result.value <= best).all() and (result.value > result.candidate_values.median(1).values).all()
    else:
        assert torch.equal(result.value, best)
    assert not result.fallback.any() and isinstance(planner, Planner)


@every_planner
@pytest.mark.parametrize("settings", [{}, {"latent_noise": "fixed", "objective": "lambda-return"}], ids=str)
@pytest.mark.parametrize("change", [3.0, torch.nan, 1e300])
def test_a_row_does_not_influence_the_others(name, change, settings):
    planner, model, state = small(name, **settings if name != "policy" else {}), Noisy(), start(rows=3)
    before = plan(planner, model, state, memory_for(planner, rows=3))
    other = state.clone()
    other[1] = change
    after = plan(planner, model, other, memory_for(planner, rows=3))
    same(before, after, rows=[0, 2])
    assert not torch.equal(before.candidate_values[1], after.candidate_values[1])


@every_planner
def test_planning_leaves_parameters_inputs_and_grad_mode_alone(name):
    planner, model, state = small(name), Smooth(), start()
    memory = memory_for(planner)
    model.push.grad = torch.ones_like(model.push)
    kept = [state.clone(), *(x.clone() for x in memory or [])]
    result = plan(planner, model, state, memory)
    assert torch.equal(model.push.grad, torch.ones_like(model.push))
    assert all(p.grad is None for part, p in model.named_parameters() if part != "push")
    assert all(torch.equal(x, y) for x, y in zip(kept, [state, *(memory or [])], strict=True))
    assert not any(getattr(result, part).requires_grad for part in TENSORS)
    assert not any(x.requires_grad for x in result.memory or [])
    assert torch.is_grad_enabled() and all(p.requires_grad for p in model.parameters())


@every_planner
def test_plans_the_same_under_no_grad_and_with_frozen_parameters_or_a_state_that_has_a_graph(name):
    planner, model, state = small(name), Smooth(), start()
    expected = plan(planner, model, state)
    with torch.no_grad():
        same(plan(planner, model, state), expected)
    leaf = state.clone().requires_grad_()
    same(plan(planner, model, leaf * 1.0), expected)
    assert leaf.grad is None
    near(plan(planner, model.requires_grad_(False), state), expected)


@every_planner
def test_a_seed_repeats_a_plan_and_another_seed_does_not(name):
    planner, model, state = small(name), Noisy(), start()
    seven = plan(planner, model, state, seed=7)
    plan(planner, Noisy(seed=3), start(rows=5, seed=4), memory_for(planner, rows=5))  # no state is carried over
    same(plan(planner, model, state, seed=7), seven)
    assert torch.equal(plan(planner, model, state, seed=8).action, seven.action) == (name == "policy")


@every_planner
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_of_the_state_is_that_of_the_plan(name, dtype):
    planner, model, state = small(name), Smooth().to(dtype), start().to(dtype)
    first = plan(planner, model, state)
    second = plan(planner, model, state, first.memory)
    for result in (first, second):
        assert all(getattr(result, part).dtype == dtype for part in TENSORS)
        assert result.memory is None or result.memory.actions.dtype == dtype
        assert result.action.isfinite().all() and result.action.abs().max() <= 1


@every_planner
def test_any_state_size_and_any_action_size(name):
    class Wide(Quadratic):
        action_dim = 7

        def step(self, state, action):
            return state + action.repeat(*[1] * (action.ndim - 1), 2)

        def policy(self, state):
            return super().policy(state[..., :7])

    planner, model = small(name), Wide((0.1,) * 14)
    assert isinstance(model, LatentModel)
    assert plan(planner, model, start(size=14)).actions.shape == (2, getattr(planner, "horizon", 1), 7)


# The previous plan


@every_search
def test_rows_that_are_reset_start_over_and_the_others_do_not(name):
    planner, model, state, memory = small(name, reuse=0.5), Smooth(), start(rows=3), previous_plan(rows=3)
    fresh, kept = plan(planner, model, state), plan(planner, model, state, memory)
    mixed = plan(planner, model, state, reset_memory(memory, torch.tensor([False, True, False])))
    same(mixed, fresh, rows=[1])
    same(mixed, kept, rows=[0, 2])
    assert not torch.equal(fresh.candidates[0], kept.candidates[0])
    assert memory.valid.all() and reset_memory(None, torch.tensor([True])) is None
    forgot = memory.reset(torch.tensor([True, False, False]))
    assert forgot.reset(torch.tensor([False, False, True])).valid.tolist() == [False, True, False], "for good"


@every_search
def test_what_a_forgotten_row_of_the_memory_holds_does_not_matter(name):
    planner, model, state, memory = small(name, reuse=0.5), Smooth(), start(), previous_plan()
    fresh = plan(planner, model, state)
    memory.actions[1] = torch.nan
    same(plan(planner, model, state, memory.reset(torch.tensor([False, True]))), fresh, rows=[1])


@every_search
def test_without_reuse_the_memory_does_not_matter(name):
    planner, model, state = small(name, reuse=0.0), Smooth(), start()
    same(plan(planner, model, state, previous_plan()), plan(planner, model, state))


@every_search
def test_a_shifted_plan_of_one_step_is_its_action_again_or_for_cem_and_mppi_zero(name):
    planner, model, state = small(name, horizon=1, reuse=0.5), Smooth(), start()
    kept = plan(planner, model, state, previous_plan(horizon=1)).candidates
    assert torch.equal(kept, plan(planner, model, state).candidates) == (name in ("cem", "mppi"))


@every_search
@pytest.mark.parametrize("rows, horizon", [(2, 3), (2, 5), (3, 4), (1, 4)])
def test_memory_of_another_shape_is_an_error(name, rows, horizon):
    with pytest.raises(ValueError, match="memory has actions"):
        small(name).plan(Smooth(), start(), previous_plan(rows, horizon))


# Models that return something not finite


BREAKS = [(part, bad) for part in ("reward", "value") for bad in (torch.nan, torch.inf, -torch.inf)]
BREAKS += [("step", torch.nan)]
BROKEN = [
    *[("policy", part, bad, {}) for part, bad in BREAKS if part == "value"],  # the only part it uses besides the mode
    *[(name, part, bad, {}) for name in SEARCHING for part, bad in BREAKS],
    *[(name, part, bad, {"choose_by": "after"}) for name in ASCENDING for part, bad in BREAKS],
    *[("dream-mpc", "reward", bad, {"uncertainty": 0.0}) for _, bad in BREAKS[:3]],
]


@pytest.mark.parametrize("name, part, bad, options", BROKEN, ids=str)
def test_a_broken_row_falls_back_to_the_policys_mode(name, part, bad, options):
    planner, state = small(name, **options), marked(start(rows=3), row=1)
    memory = memory_for(planner, rows=3)
    result = plan(planner, Broken(part, bad), state, memory)
    healthy = plan(planner, Broken("nothing"), state, memory)
    assert result.fallback.tolist() == [False, True, False]
    same(result, healthy, rows=[0, 2])
    assert torch.equal(result.action[1], Broken(part).policy(state[1]).mode)
    assert torch.equal(result.actions[1], result.action[1].expand_as(result.actions[1]))
    assert result.candidate_values[1].eq(-torch.inf).all() and result.value[1] == -torch.inf
    assert all(x.isfinite().all() and x.abs().max() <= 1 for x in (result.action, result.actions, result.candidates))
    if result.memory is not None:
        assert result.memory.valid.tolist() == [True, False, True] and result.memory.actions.isfinite().all()


@every_search
def test_a_fallback_is_not_blended_into_the_next_plan(name):
    planner, state = small(name, reuse=0.5), marked(start(), row=1)
    first = plan(planner, Broken("reward"), state)
    whole = Broken("nothing")
    second, fresh = plan(planner, whole, state, first.memory), plan(planner, whole, state)
    same(second, fresh, rows=[1])
    assert not torch.equal(second.candidates[0], fresh.candidates[0])


@pytest.mark.parametrize("name, more", [("grad-mpc", {}), ("cem", {}), ("mppi", {"policy_candidates": 0})], ids=str)
def test_on_dynamics_and_reward_alone_the_fallback_is_the_zero_action(name, more):
    result = plan(small(name, objective="rewards", **more), Bare(), marked(start(3), row=1))
    assert result.fallback.tolist() == [False, True, False]
    assert not result.actions[1].any() and result.actions[[0, 2]].any(-1).all()


@every_planner
def test_actions_are_finite_even_where_the_policy_is_not(name):
    state = marked(start(), row=1)
    result = plan(small(name), Broken("policy"), state)
    same(result, plan(small(name), Broken("nothing"), state), rows=[0])
    assert result.action.isfinite().all() and result.candidates.isfinite().all()
    assert result.fallback.tolist() == [False, kind(name) in ("policy", "dream-mpc", "policy-grad-mpc")]
    if name == "mppi":  # its samples are finite
        assert result.candidate_values[1].isfinite().tolist() == 4 * [False] + 12 * [True]


# The parts of a model that a planner needs


REQUIRES = [
    ("policy", {}, "value policy"),
    ("dream-mpc", {}, "value policy"),
    ("dream-mpc", {"objective": "rewards"}, "value policy"),  # for the penalty
    ("dream-mpc", {"objective": "rewards", "uncertainty": 0.0}, "policy"),
    ("policy-grad-mpc", {}, "value policy"),
    ("policy-grad-mpc", {"objective": "rewards"}, "policy"),
    ("policy-grad-mpc", {"objective": "rewards", "mode_candidate": True}, "policy"),
    ("grad-mpc", {}, "value"),
    ("grad-mpc", {"objective": "lambda-return"}, "value"),
    ("grad-mpc", {"objective": "rewards"}, ""),
    ("grad-mpc", {"objective": "rewards", "uncertainty": -0.1}, "value"),
    ("grad-mpc", {"objective": "rewards", "mode_candidate": True}, "policy"),
    ("cem", {"objective": "rewards"}, ""),
    ("cem", {"objective": "rewards", "uncertainty": 0.1}, "value"),
    ("cem", {"objective": "return"}, "value"),
    ("mppi", {}, "value policy"),
    ("mppi", {"policy_candidates": 0}, "value"),
    ("mppi", {"objective": "rewards"}, "policy"),
    ("mppi", {"objective": "rewards", "policy_candidates": 0}, ""),
]


def part_of_a_model(*members):
    whole = Smooth()
    return SimpleNamespace(action_dim=2, **{name: getattr(whole, name) for name in ("step", "reward", *members)})


@pytest.mark.parametrize("name, settings, requires", REQUIRES, ids=str)
def test_requires_is_what_the_planner_uses(name, settings, requires):
    """It plans on a model with only these parts as on a complete one, and refuses a model that lacks one of them."""
    planner, required, state = small(name, **settings), requires.split(), start()
    assert sorted(planner.requires) == sorted(required)
    result = plan(planner, part_of_a_model(*required), state)
    assert not result.fallback.any()
    same(result, plan(planner, Smooth(), state))
    for member in required:
        less = part_of_a_model(*(other for other in required if other != member))
        # A type error if the tests' check of signatures comes first.
        with pytest.raises((AttributeError, TypeCheckError), match=f"{member}|LatentModel"):
            planner.plan(less, state)


@every_search
@pytest.mark.parametrize("noise", ["fixed", "mean"])
def test_a_model_without_noise_says_so(name, noise):
    with pytest.raises(ValueError, match="Smooth has no noise method"):
        small(name, latent_noise=noise).plan(Smooth(), start())


@every_search
def test_mean_noise_plans_in_the_model_without_noise(name):
    model = Noisy()
    model.noise = torch.ones_like  # must not be used
    same(plan(small(name, latent_noise="mean"), model, start()), plan(small(name), Smooth(), start()))
    assert model.given and not any(draw.any() for draw in model.given)


@pytest.mark.parametrize("name", [name for name in SEARCHING if name != "dream-mpc as it is"])
def test_fixed_noise_is_the_same_in_every_iteration(name):
    model, planner = Noisy(), small(name, iterations=3, latent_noise="fixed")
    plan(planner, model, start())
    given = [draw for draw in model.given if draw.shape[1] == planner.candidates]
    given = torch.stack(given).unflatten(0, (3, 4))  # [rollout, H, B, N, S]
    assert all(torch.equal(given[0], again) for again in given[1:])
    assert given[0].unique().numel() == given[0].numel()


EVALUATIONS = {
    "policy": 0, "dream-mpc": 95, "policy-grad-mpc": 75, "grad-mpc": 120_000, "cem": 120_000, "mppi": 9264,
}  # fmt: skip


@pytest.mark.parametrize("name, expected", EVALUATIONS.items())
@pytest.mark.parametrize("rows", [1, 2])
def test_model_evaluations_at_the_defaults_are_the_steps_that_the_model_counts(name, expected, rows):
    planner, model = make_planner(name), Smooth(size=1, heads=1).requires_grad_(False)
    result = planner.plan(model, start(rows, size=1))
    assert model.count == rows * expected and result.model_evaluations == expected


COUNTED = [{}, {"iterations": 3}, {"horizon": 1}, {"objective": "rewards"}, {"latent_noise": "fixed"}]
COUNTED = [(name, more) for name in SEARCHING for more in COUNTED]
COUNTED += [(name, {"iterations": i, "choose_by": "after"}) for name in ASCENDING for i in (0, 3)]
COUNTED += [("mppi", {"policy_candidates": p}) for p in (0, 16)]


@pytest.mark.parametrize("name, settings", COUNTED, ids=str)
def test_model_evaluations_are_the_steps_that_the_model_counts(name, settings):
    planner, model = small(name, **settings), Noisy()
    first = plan(planner, model, start())
    assert model.count == 2 * first.model_evaluations == 2 * planner.model_evaluations > 0
    second = plan(planner, model, start(), first.memory)
    assert model.count == 2 * (first.model_evaluations + second.model_evaluations)


# Settings


SHOOTING = [
    *[({}, {name: x}) for name, x in dict(horizon=3, candidates=18, iterations=3, discount=0.4).items()],
    *[({}, {name: x}) for name, x in dict(uncertainty=1.0, reuse=0.7, latent_noise="fixed").items()],
    ({"objective": "lambda-return", "return_lambda": 0.2}, {"objective": "return"}),
    ({"objective": "return"}, {"objective": "rewards"}),
    ({"objective": "lambda-return"}, {"return_lambda": 0.2}),
    ({"uncertainty": 1.0}, {"scale_penalty": True}),
    ({"latent_noise": "fixed"}, {"latent_noise": "mean"}),
]
ASCENT = SHOOTING + [
    *[({}, {name: x}) for name, x in dict(step_size=0.3, grad_clip=0.1, choose_by="after").items()],
    ({}, {"mode_candidate": True}),
    ({"uncertainty": 0.3}, {"penalty_gradient": False}),
    ({}, {"draws": 3}),
    ({"draws": 3}, {"line_search": (0.5, 0.1)}),
    ({"line_search": (0.1,)}, {"line_search": (0.5, 0.1)}),
    ({}, {"step_scale": "unit"}),
    ({}, {"direction": "random"}),
    ({"draws": 3}, {"open_loop": 2}),
    ({"draws": 5, "line_search": (0.3, 0.1), "step_scale": "unit"}, {"caution": 3.0}),
    ({"reuse": 0.5}, {"habits": ("blend",)}),
    *[({"iterations": 3, "step_size": 1.0, "grad_clip": 0.4}, {"habits": (habit,)}) for habit in ("clamp", "clip")],
    *[({"uncertainty": 1.0}, {"habits": (habit,)}) for habit in ("heads", "penalty")],
]
SAMPLING = dict(elites=3, policy_candidates=6, temperature=5.0, min_std=1.0, max_std=0.5)
CHANGES = {
    "policy": [({}, {"sample": True})],
    **{name: ASCENT for name in ASCENDING},
    "cem": SHOOTING + [({}, {"elites": 3})],
    "mppi": SHOOTING + [({}, {name: value}) for name, value in SAMPLING.items()],
}


@pytest.mark.parametrize("name", PLANNERS)
def test_every_setting_is_in_the_list_of_changes(name):
    assert is_dataclass(PLANNERS[name])
    assert {key for _, change in CHANGES[name] for key in change} == {field.name for field in fields(PLANNERS[name])}


@pytest.mark.parametrize(
    "name, base, change", [(name, *pair) for name, pairs in CHANGES.items() for pair in pairs], ids=str
)
def test_every_setting_changes_the_plan(name, base, change):
    """The candidates of the last iteration; for `choose_by`, the values by which one of them is chosen."""
    model, state = Noisy(), start()
    memory = None if "horizon" in change else memory_for(small(name))
    results = [plan(small(name, **base | more), model, state, memory) for more in ({}, change)]
    a, b = (r.candidate_values if "choose_by" in change else r.candidates for r in results)
    if {"horizon", "candidates"} & set(change):
        assert b.shape == (2, change.get("candidates", a.shape[1]), change.get("horizon", 4), 2) != a.shape
    else:
        assert a.shape == b.shape and not torch.allclose(a, b, rtol=0, atol=1e-6)


def test_make_planner_passes_settings_on():
    for name, settings in SMALL.items():
        planner = make_planner(kind(name), **settings)
        assert type(planner) is PLANNERS[kind(name)]
        assert all(getattr(planner, key) == value for key, value in settings.items())


@pytest.mark.parametrize("name", PLANNERS)
def test_an_unknown_setting_is_an_error_that_lists_the_known(name):
    with pytest.raises(ValueError) as error:
        make_planner(name, horizn=3)
    known = ", ".join(field.name for field in fields(PLANNERS[name])) or "none"
    assert str(error.value) == f"{name} has no setting horizn: known are {known}"


def test_an_unknown_planner_is_an_error_that_lists_the_known():
    with pytest.raises(ValueError, match=f"unknown planner 'dreem-mpc'.*{', '.join(PLANNERS)}"):
        make_planner("dreem-mpc")


NAN, INF = float("nan"), float("inf")
BAD = {
    "horizon": [0, -1],
    "candidates": [0, -1],
    "iterations": [-1],
    "discount": [-0.01, 1.01, NAN],
    "return_lambda": [-0.01, 1.01, NAN],
    "uncertainty": [NAN, INF, -INF],
    "reuse": [-0.01, 1.01, NAN],
    "step_size": [-0.01, NAN, INF],
    "draws": [0, -1],
    "line_search": [(-0.01,), (0.1, NAN), (INF,)],
    "open_loop": [-1],
    "caution": [-0.01, NAN, INF],
    "habits": [("clop",)],
    "grad_clip": [-0.01, NAN, INF],
    "elites": [0, -1, 17],  # 16 candidates
    "policy_candidates": [-1, 17],
    "temperature": [-0.01, NAN, INF],
    "min_std": [-0.01, NAN, INF],
    "max_std": [-0.01, 0.04, NAN, INF],  # min_std is 0.05
}
CHOICES = ["objective", "latent_noise", "choose_by", "step_scale", "direction"]
SWITCHES = ["scale_penalty", "penalty_gradient", "mode_candidate", "sample"]


@pytest.mark.parametrize("name", PLANNERS)
def test_every_setting_that_is_not_a_switch_has_values_that_are_refused(name):
    assert {field.name for field in fields(PLANNERS[name])} <= {*BAD, *CHOICES, *SWITCHES}


OUT_OF_RANGE = [
    (name, field.name, bad)
    for name, kind in PLANNERS.items()
    for field in fields(kind)
    for bad in BAD.get(field.name, [])
]


@pytest.mark.parametrize("name, setting, value", [*OUT_OF_RANGE, ("cem", "iterations", 0), ("mppi", "iterations", 0)])
def test_a_value_out_of_range_is_an_error_that_names_it(name, setting, value):
    last = value[-1] if isinstance(value, tuple) else value
    with pytest.raises(ValueError, match=f"{setting} must be .*{last}"):
        small(name, **{setting: value})


@pytest.mark.parametrize("settings", [{"min_std": 0.5, "max_std": 0.4}, {"max_std": 0.01}], ids=str)
def test_bounds_of_the_spread_that_cross_are_an_error(settings):
    with pytest.raises(ValueError, match="max_std must be at least"):
        small("mppi", **settings)


@pytest.mark.parametrize("name", ["cem", "mppi"])
def test_a_part_that_is_larger_than_the_whole_is_an_error_also_by_a_smaller_whole(name):
    with pytest.raises(ValueError, match="elites must be between 1 and 5, got 6"):
        small(name, candidates=5)


@pytest.mark.parametrize(
    "name, settings",
    [
        *[(name, {"iterations": 0}) for name in ASCENDING],
        *[(name, {"step_size": 0.0, "grad_clip": 0.0}) for name in ASCENDING],
        *[(name, {"reuse": 1.0, "discount": 0.0}) for name in SEARCHING],
        *[(name, {"horizon": 1, "reuse": 0.0, "discount": 1.0, "uncertainty": -1.0}) for name in SEARCHING],
        *[(name, {"candidates": 6, "elites": 6}) for name in ("cem", "mppi")],
        ("cem", {"candidates": 1, "elites": 1}),
        ("mppi", {"candidates": 1, "elites": 1, "policy_candidates": 1}),
        ("mppi", {"policy_candidates": 16, "temperature": 0.0}),
        ("mppi", {"min_std": 0.0, "max_std": 0.0}),
    ],
    ids=str,
)
def test_values_at_the_edge_of_the_range_make_plans(name, settings):
    result = plan(small(name, **settings), Smooth(), start())
    assert result.action.isfinite().all() and result.value.isfinite().all() and not result.fallback.any()


REFUSED = """
from dataclasses import fields
from dreamer_mpc.planners import PLANNERS, make_planner
for planner, kind in PLANNERS.items():
    for name in {"objective", "choose_by", "latent_noise"} & {field.name for field in fields(kind)}:
        try:
            make_planner(planner, **{name: "frozen"})
        except ValueError as error:
            assert name in str(error) and "frozen" in str(error), error
            print(planner, name)
        else:
            raise AssertionError(f"{planner} accepts {name}='frozen'")
"""


def test_a_choice_that_does_not_exist_is_an_error_that_names_it():
    """In a separate process, without the tests' check of annotations."""
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", REFUSED], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3 * len(ASCENDING) + 2 * 2


# The policy


def test_the_policy_executes_its_mode_for_no_evaluation():
    model, state = Smooth(), start(rows=4)
    result = plan(Policy(), model, state)
    assert torch.equal(result.action, model.policy(state).mode)
    assert torch.equal(result.actions[:, 0], result.action)
    assert result.actions.shape == (4, 1, 2) and result.candidates.shape == (4, 1, 1, 2)
    torch.testing.assert_close(result.value, model.value(state).mean(0).detach())
    assert result.model_evaluations == model.count == 0 and result.memory is None


def test_the_policy_executes_samples_where_that_is_asked_for():
    model, state = Smooth(), start()
    result = plan(Policy(sample=True), model, state, seed=3)
    torch.manual_seed(3)
    torch.testing.assert_close(result.action, model.policy(state).rsample().detach())
    assert not torch.allclose(result.action, model.policy(state).mode)
    assert (result.action - plan(Policy(sample=True), model, state, seed=4).action).abs().min() > 0
