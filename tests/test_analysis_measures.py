"""Every measure of `run.py analyze` in a linear world with closed forms (tests/support/linear_world.py)."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dreamer_mpc.analysis.ablate import Ablate
from dreamer_mpc.analysis.bad_model import BadModel, PlansIn, perturbed, turning_point
from dreamer_mpc.analysis.bench import POLICY
from dreamer_mpc.analysis.estimate import estimate, per_episode
from dreamer_mpc.analysis.finite_differences import FiniteDifferences, beside, paired
from dreamer_mpc.analysis.gradient_snr import GradientSNR, ratio
from dreamer_mpc.analysis.groups import group_of
from dreamer_mpc.analysis.model_error import QUANTITIES, ModelError, calibration
from dreamer_mpc.analysis.true_gain import TrueGain, by_prediction, correlation
from dreamer_mpc.evaluation.episodes import evaluate
from dreamer_mpc.planners import make_planner
from dreamer_mpc.report import panels
from dreamer_mpc.util.intervals import mean_interval, strata_interval
from tests.support import linear_world as world
from tests.support.agents import make_agent

DISCOUNT = 0.9
PLAIN = dict(
    objective="return", uncertainty=0.0, discount=DISCOUNT, draws=1, line_search=(), step_scale="gradient",
    open_loop=0, caution=0.0, candidates=1, grad_clip=1e6,
)  # fmt: skip


def ascent(**settings):
    """Dream-MPC of one sequence, from the policy's mode, without a search."""
    return make_planner("dream-mpc", **PLAIN | settings)


def starts(seed, rows, steps):
    """x of each row after `steps` steps of the policy."""
    begins = [world.start(seed + row) for row in range(rows)]
    return [world.policy_walk(x, steps)[1][-1] for x in begins] if steps else begins


def of(rows, **keys):
    return [row for row in rows if all(row[name] == value for name, value in keys.items())]


# The bench


def test_a_visit_s_states_are_those_of_the_episode_and_a_plan_s_outcome_is_real():
    bench = world.bench(3)
    visits = bench.visit(POLICY, 5, (0, 4), snapshots=True)
    for visit, steps in zip(visits, (0, 4)):
        assert visit.step == steps and visit.alive.all()
        np.testing.assert_allclose(visit.state, starts(5, 3, steps), rtol=0, atol=1e-15)
    actions = torch.rand(3, 6, 2, generator=torch.Generator().manual_seed(0)).double() - 0.5
    bench.envs.set_states(visits[1].snapshots)
    executed = bench.execute(visits[1].state, actions, answered=4)
    for row, x in enumerate(starts(5, 3, 4)):
        states = world.walk(x, actions[row, :4].numpy())
        states = np.concatenate([states, world.policy_walk(states[-1], 2)[1]])
        np.testing.assert_allclose(executed.state[row], states, rtol=0, atol=1e-12)
        np.testing.assert_allclose(executed.reward[row], world.reward(states), rtol=0, atol=1e-12)
        value = world.reward(states) + states @ world.HEADS.mean(0)
        np.testing.assert_allclose(bench.value(executed)[row], value, rtol=0, atol=1e-12)
    assert executed.reached.tolist() == [6, 6, 6] and executed.going.all() and executed.whole.all()


def test_a_plan_that_the_time_limit_cuts_off_is_not_whole_and_ended_rows_stand_back():
    bench = world.bench(2)
    bench.envs.envs[0].unwrapped.length = 3
    visits = bench.visit(POLICY, 0, (0, 2, 5), snapshots=True)
    assert [visit.alive.tolist() for visit in visits] == [[True, True], [True, True], [False, True]]
    assert (visits[2].state[0] == visits[2].state[1]).all(), "another row's state stands in"
    bench.envs.set_states(visits[1].snapshots)
    executed = bench.execute(visits[1].state, torch.zeros(2, 4, 2).double())
    assert executed.reached.tolist() == [1, 4] and executed.whole.tolist() == [False, True]
    assert executed.going.tolist() == [False, True] and (executed.reward[0, 1:] == 0).all()


def test_a_plan_s_worth_has_the_value_of_its_last_state_unless_it_terminates():
    bench, actions = world.bench(3), torch.full((3, 4, 2), 0.5).double()
    (visit,) = bench.visit(POLICY, 0, (0,), snapshots=True)
    walks = [world.walk(world.start(row), actions[row].numpy()) for row in range(3)]
    edge = walks[1][:3, 0].max() - 1e-6
    assert walks[1][:2, 0].max() < edge, "it is passed with the third action"
    bench.envs.envs[0].unwrapped.length, bench.envs.envs[1].unwrapped.edge = 2, edge
    bench.envs.set_states(visit.snapshots)
    executed = bench.execute(visit.state, actions)
    assert executed.reached.tolist() == [2, 3, 4] and executed.terminated.tolist() == [False, True, False]
    expected = [
        world.worth(walks[0][:2], DISCOUNT),
        DISCOUNT ** np.arange(3) @ world.reward(walks[1][:3]),
        world.worth(walks[2], DISCOUNT),
    ]
    np.testing.assert_allclose(bench.worth(executed, DISCOUNT), expected, rtol=0, atol=1e-12)


# gradient-snr


def test_the_signal_to_noise_ratio_is_the_closed_form():
    bench = world.bench(2, std=0.3)
    measure = GradientSNR({"dream-mpc": ascent(horizon=9)}, steps=(0, 3), depth=3, draws=4096, averaged=(1, 16))
    rows = measure.measure(bench, "dream-mpc", 2, 7)
    assert len(rows) == 2 * 3 * 2
    for episode in range(2):
        for horizon in (1, 2, 3):
            ratios = []
            for x in (starts(7, 2, 0)[episode], starts(7, 2, 3)[episode]):
                actions, _ = world.policy_walk(x, horizon, world.MODEL_A, world.MODEL_B)
                mean = world.slope(x, actions, DISCOUNT, world.MODEL_A, world.MODEL_B)
                noise = world.slope_deviation(horizon, DISCOUNT, world.MODEL_A, world.MODEL_B, 0.3)
                ratios.append(np.abs(mean) / noise)
            for averaged in (1, 16):
                (row,) = of(rows, episode=episode, horizon=horizon, averaged=averaged)
                expected = averaged**0.5 * np.array([[each.mean(), each[0].mean()] for each in ratios]).mean(0)
                np.testing.assert_allclose((row["snr"], row["snr_first"]), expected, rtol=0.06)


def test_grad_mpc_starts_from_noise_and_dream_mpc_from_the_policy():
    bench = world.bench(1, std=0.3)
    planners = {"dream-mpc": ascent(), "grad-mpc": make_planner("grad-mpc", discount=DISCOUNT)}
    measure = GradientSNR(planners, steps=(0,), depth=2, draws=64, averaged=(1,))
    rows = [row for part in measure.parts for row in measure.measure(bench, part, 1, 0)]
    assert of(rows, method="dream-mpc", horizon=2)[0]["snr"] != of(rows, method="grad-mpc", horizon=2)[0]["snr"]
    again = measure.measure(bench, "grad-mpc", 1, 0)
    assert again == of(rows, method="grad-mpc"), "the same seed, the same rows"


def test_a_ratio_of_few_blocks_is_right_on_average():
    draw = torch.Generator().manual_seed(0)
    grad = 3 + 2 * torch.randn(20_000, 16, 1, 1, generator=draw, dtype=torch.float64)
    assert ratio(grad, 4).mean().item() == pytest.approx(2 * 1.5, rel=0.03)
    assert ratio(grad, 1).mean().item() == pytest.approx(1.5, rel=0.02)
    assert ratio(torch.zeros(1, 8, 1, 1), 1).item() == 0 and ratio(torch.ones(1, 8, 1, 1), 1).isnan().item()


# model-error


def test_the_errors_of_the_model_are_the_closed_form():
    bench = world.bench(3)
    planner = ascent(iterations=0)
    measure = ModelError({"dream-mpc": planner}, plans=2, depth=4, draws=2, weights=(0.0, 1.0), discount=DISCOUNT)
    assert measure.parts == ("penalty 0", "penalty 1")
    rows = measure.measure(bench, "penalty 1", 2, 3)
    assert len(rows) == 2 * 2 * 4, "the third row of the environments is not asked for"
    for episode in range(2):
        x = world.start(3 + episode)
        for plan in range(2):
            actions, model = world.policy_walk(x, 4, world.MODEL_A, world.MODEL_B)
            real = world.walk(x, actions)
            difference = world.reward(model) - world.reward(real)
            values = difference + (model - real) @ world.HEADS.mean(0)
            returns = np.cumsum(DISCOUNT ** np.arange(4) * difference)
            for k in range(4):
                (row,) = of(rows, episode=episode, plan=plan, depth=k + 1)
                expected = {
                    "reward_error": abs(difference[k]), "return_error": abs(returns[k]), "return_bias": returns[k],
                    "value_error": abs(values[k]), "value_bias": values[k],
                    "spread": (model[k] @ world.HEADS.T).std(),
                    "image_error": rmse(world.grey(model[k]), world.picture(real[k])),
                }  # fmt: skip
                for name, value in expected.items():
                    close = 0.05 if name == "image_error" else 1e-9  # the last bits of x are pixels, too
                    assert row[name] == pytest.approx(value, abs=close), name
            x = real[-1]


def test_model_error_goes_as_far_as_the_episode_whose_value_is_kept_at_the_time_limit_alone():
    measure = ModelError({"p": ascent(iterations=0)}, plans=2, depth=4, draws=2, weights=(0.0,), discount=DISCOUNT)
    x = world.start(3)
    actions, model = world.policy_walk(x, 4, world.MODEL_A, world.MODEL_B)
    real, imagined = world.walk(x, actions)[2], model[2]
    assert real[0] > world.walk(x, actions)[:2, 0].max() + 1e-6, "the edge is passed with the third action"
    values = world.reward(imagined) + imagined @ world.HEADS.mean(0)
    for end, value in (
        (dict(length=3), world.reward(real) + real @ world.HEADS.mean(0)),
        (dict(edge=real[0] - 1e-6), world.reward(real)),
    ):
        bench = world.bench(1)
        world.ends_at(bench, **end)
        rows = measure.measure(bench, "penalty 0", 1, 3)
        assert [(row["plan"], row["depth"]) for row in rows] == [(0, 1), (0, 2), (0, 3)]
        assert rows[-1]["value_bias"] == pytest.approx(values - value, abs=1e-9)
    lines = measure.summary([row | {"group": "g", "checkpoint": "c"} for row in [*rows, rows[0] | {"episode": 1}]])
    assert [line["plans"] for line in lines if line["part"] == "error"] == [2, 1, 1]


def rmse(level, image):
    return np.sqrt(np.square(level - image.astype(float)).mean())


def test_the_model_s_noise_is_averaged_out():
    bench = world.bench(1, std=0.2, a=world.A, b=world.B)
    measure = ModelError({"p": ascent(iterations=0)}, plans=1, depth=2, draws=20_000, weights=(0.0,), discount=1.0)
    rows = measure.measure(bench, "penalty 0", 1, 3)
    spread = 0.2**2 * np.eye(2)
    expected = [-np.trace(world.Q @ spread) / 2, -np.trace(world.Q @ (spread + world.A @ spread @ world.A.T)) / 2]
    assert rows[0]["return_bias"] == pytest.approx(expected[0], abs=2e-3)
    assert rows[1]["return_bias"] == pytest.approx(sum(expected), abs=4e-3)


def test_the_penalty_changes_the_plans():
    bench = world.bench(1)
    measure = ModelError({"p": ascent()}, plans=1, depth=3, draws=2, weights=(0.0, 3.0), discount=DISCOUNT)
    spreads = [measure.measure(bench, part, 1, 3)[-1]["spread"] for part in measure.parts]
    assert spreads[1] < spreads[0]


def test_calibration_is_spearman_s_at_equal_depth():
    draw = np.random.default_rng(0)
    rows = []
    for depth in (1, 2):
        for episode in range(10):
            spread = draw.normal() ** 2 * depth**3
            rows.append({
                "group": "g", "checkpoint": "c", "method": "m", "episode": episode, "depth": depth, "spread": spread,
                "value_error": (spread**3 if depth == 1 else 1 / spread),
            })
    found = calibration(rows)
    ranks = [np.mean([row["rank_correlation"] for row in own]) for own in (found[:10], found[10:])]
    assert ranks == pytest.approx([1, -1])
    errors = [np.mean([row["relative_error"] for row in found[:10] if row["bin"] == place]) for place in range(1, 6)]
    assert errors == sorted(errors) and np.mean(errors) == pytest.approx(1)
    assert [sum(row["bin"] == place for row in found[:10]) for place in range(1, 6)] == [2] * 5


def test_tasks_are_grouped_by_their_domain():
    assert [group_of(name) for name in ("cheetah-run", "acrobot-swingup", "my.env:make")] == [
        "contact-rich", "smooth", "other",
    ]  # fmt: skip


# true-gain


@pytest.mark.parametrize("uncertainty", [0.0, 0.5])
def test_the_true_gain_is_the_closed_form(uncertainty):
    bench, horizon = world.bench(3), 4
    planner = ascent(horizon=horizon, iterations=1, step_size=0.05, uncertainty=uncertainty, penalty_gradient=False)
    rows = TrueGain({"p": planner}, steps=(0, 2), draws=2).measure(bench, "p", 2, 11)
    assert [(row["episode"], row["step"]) for row in rows] == [(0, 0), (1, 0), (0, 2), (1, 2)]
    for row in rows:
        x = starts(11, 2, row["step"])[row["episode"]]
        plan, _ = world.policy_walk(x, horizon, world.MODEL_A, world.MODEL_B)
        slopes = [world.slope(x, plan, DISCOUNT, *ab) for ab in ((world.A, world.B), (world.MODEL_A, world.MODEL_B))]
        move = 0.05 * slopes[1]
        assert (np.abs(plan + move) < 1).all()
        curves = [0.0, 0.0]
        for each, (a, b) in enumerate(((world.A, world.B), (world.MODEL_A, world.MODEL_B))):
            bends = world.walk(0 * x, move, a, b)  # what the move does to the states, in a linear world
            curves[each] = -sum(DISCOUNT**k * bend @ world.Q @ bend / 2 for k, bend in enumerate(bends))
        real, predicted = ((slope * move).sum() + curve for slope, curve in zip(slopes, curves))
        assert row["real"] == pytest.approx(real, abs=1e-9) and row["predicted"] == pytest.approx(predicted, abs=1e-9)
        walks = [world.walk(x, each, world.MODEL_A, world.MODEL_B) for each in (plan, plan + move)]
        spreads = [sum(DISCOUNT**k * (s @ world.HEADS.T).std() for k, s in enumerate(walk)) for walk in walks]
        assert row["promised"] == pytest.approx(predicted - uncertainty * (spreads[1] - spreads[0]), abs=1e-6)
        rewards = [DISCOUNT ** np.arange(horizon) @ world.reward(world.walk(x, each)) for each in (plan, plan + move)]
        assert row["real_rewards"] == pytest.approx(rewards[1] - rewards[0], abs=1e-9)
        assert row["moved"] == 1 and row["improved"] == (real > 0)


def test_behind_the_ascended_actions_the_policy_acts_in_the_real_world():
    bench = world.bench(1)
    planner = ascent(horizon=5, open_loop=2, iterations=1, step_size=0.05)
    (row,) = TrueGain({"p": planner}, steps=(0,), draws=2).measure(bench, "p", 1, 11)
    x = world.start(11)
    plan, _ = world.policy_walk(x, 2, world.MODEL_A, world.MODEL_B)
    refined = planner.plan(bench.agent.model, torch.tensor(x)[None]).actions[0, :2].numpy()
    worths = []
    for actions in (plan, refined):
        states = world.walk(x, actions)
        worths.append(world.worth(np.concatenate([states, world.policy_walk(states[-1], 3)[1]]), DISCOUNT))
    assert row["real"] == pytest.approx(worths[1] - worths[0], abs=1e-9) and row["real"] != 0


def test_a_plan_that_the_ascent_leaves_alone_gains_nothing_and_is_not_counted_as_improved():
    measure = TrueGain({"p": ascent(horizon=3, iterations=1, step_size=0.0, draws=4)}, steps=(0,), draws=2)
    (row,) = measure.measure(world.bench(1, std=0.3), "p", 1, 0)  # both plans are judged on the same draws
    assert (row["promised"], row["predicted"], row["real"], row["moved"]) == (0, 0, 0, 0)
    assert np.isnan(row["improved"])
    line = measure.summary([row | {"checkpoint": "c"}])[0]
    assert line["moved"] == 0 and line["improved"] is None


def test_a_plan_that_terminates_the_episode_is_worth_its_rewards_and_no_value():
    bench, horizon = world.bench(1), 4
    planner = ascent(horizon=horizon, iterations=1, step_size=0.3)
    x = world.start(11)
    plan, _ = world.policy_walk(x, horizon, world.MODEL_A, world.MODEL_B)
    refined = planner.plan(bench.agent.model, torch.tensor(x)[None]).actions[0].numpy()
    stays, falls = world.walk(x, plan), world.walk(x, refined)
    edge = falls[2, 0] - 1e-6
    assert edge > max(stays[:, 0].max(), falls[:2, 0].max()), "the refined plan passes it with its third action"
    world.ends_at(bench, edge=edge)
    measure = TrueGain({"p": planner}, steps=(0,), draws=2)
    (row,) = measure.measure(bench, "p", 1, 11)
    rewards = DISCOUNT ** np.arange(3) @ world.reward(falls[:3])
    assert row["real"] == pytest.approx(rewards - world.worth(stays, DISCOUNT), abs=1e-9)
    assert row["real_rewards"] == pytest.approx(
        rewards - DISCOUNT ** np.arange(4) @ world.reward(world.walk(x, plan)), abs=1e-9
    )
    assert (row["terminated"], row["cut_off"]) == (1, 0)
    line = measure.summary([row | {"checkpoint": "c"}])[0]
    assert (line["states"], line["cut_off"], line["terminated"]) == (1, 0, 1)


def test_states_whose_plans_the_time_limit_cuts_off_are_left_out_and_counted():
    bench, whole = world.bench(2), world.bench(2)
    world.ends_at(bench, length=5)
    measure = TrueGain({"p": ascent(horizon=3, iterations=1, step_size=0.05)}, steps=(0, 2, 3, 4, 9), draws=2)
    rows = measure.measure(bench, "p", 2, 11)
    assert [(row["step"], row["cut_off"]) for row in rows] == [
        (0, 0), (0, 0), (2, 0), (2, 0), (3, 1), (3, 1), (4, 1), (4, 1),
    ], "an end with the last action cuts nothing off; behind the episode there are no states"  # fmt: skip
    assert rows[:4] == measure.measure(whole, "p", 2, 11)[:4], "nor does it take the value away"
    assert all(row[name] is None for row in rows[4:] for name in ("real", "predicted", "promised", "moved", "improved"))
    rows = [row | {"checkpoint": "c"} for row in rows]
    line, kept = measure.summary(rows)[0], measure.summary(rows[:4])[0]
    assert (line["states"], line["cut_off"], line["terminated"]) == (4, 4, 0)
    assert all(line[name] == kept[name] for name in ("real", "predicted", "realised", "correlation", "moved"))
    assert measure.summary(rows[4:]) == [], "nothing was measured"
    (cells,) = measure.table([line])
    assert cells["states,\ncut off,\nterminated"] == "4, 4, 0"
    old = [{key: row[key] for key in row if key not in ("cut_off", "terminated")} for row in rows[:4]]
    line = measure.summary(old)[0]
    assert (line["states"], line["cut_off"], line["terminated"]) == (4, None, None), "not known of older rows"


def test_correlation_and_fifths_are_within_a_checkpoint():
    rows = [
        {"checkpoint": name, "method": "m", "episode": 0, "moved": 1.0, "predicted": x + 100 * number, "real": sign * x}
        for number, (name, sign) in enumerate([("a", 1), ("b", 1)])
        for x in map(float, range(10))
    ]
    assert correlation(rows) == pytest.approx(1)
    assert [row["bin"] for row in by_prediction(rows)] == 2 * [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


# finite-differences


def test_gradients_are_those_of_the_simulator_and_of_the_model():
    bench, depth = world.bench(2), 3
    sizes = dict(visited=(0, 2), depth=depth, draws=4, epsilon=0.05, steps=0, lookahead=1)
    measure = FiniteDifferences({"p": ascent()}, **sizes)
    assert measure.parts == ("gradient",)
    rows = measure.measure(bench, "gradient", 2, 4)
    assert len(rows) == 2 * 2 * 3 * 2
    for row in rows:
        x = starts(4, 2, row["step"])[row["episode"]]
        plan, _ = world.policy_walk(x, depth, world.MODEL_A, world.MODEL_B)
        assert np.abs(plan).max() < 0.95, "so that no perturbed action is clipped"
        real, model = (
            world.slope(x, plan[: row["depth"]], DISCOUNT, *ab, value=False).ravel()
            for ab in ((world.A, world.B), (world.MODEL_A, world.MODEL_B))
        )
        norms = np.linalg.norm(model), np.linalg.norm(real)
        assert row["cosine"] == pytest.approx(model @ real / np.prod(norms), abs=1e-7)
        assert row["agreement"] == pytest.approx((model * real > 0).mean())
        assert row["norm_ratio"] == pytest.approx(norms[0] / norms[1], abs=1e-7)


def test_the_simulator_s_gradient_is_right_at_the_bounds_of_the_actions():
    bench = world.bench(1, gain=np.array([[5.0, 0.0], [0.0, -5.0]]))
    measure = FiniteDifferences({"p": ascent()}, (0,), 1, 2, 0.1, 0, 1)
    x, (row, _) = world.start(2), measure.measure(bench, "gradient", 1, 2)
    plan = np.clip(np.array([5 * x[0], -5 * x[1]]), -1, 1)[None]
    assert np.abs(plan).max() == 1
    model = world.slope(x, plan, DISCOUNT, world.MODEL_A, world.MODEL_B, value=False).ravel()
    ends = [(np.clip(plan[0] + 0.1 * e, -1, 1), np.clip(plan[0] - 0.1 * e, -1, 1)) for e in np.eye(2)]
    real = [
        (world.reward(world.walk(x, [up])[0]) - world.reward(world.walk(x, [down])[0])) / (up - down).sum()
        for up, down in ends
    ]
    assert row["cosine"] == pytest.approx(model @ real / np.linalg.norm(model) / np.linalg.norm(real), abs=1e-6)
    assert row["norm_ratio"] == pytest.approx(np.linalg.norm(model) / np.linalg.norm(real), abs=1e-6)


def test_gradients_are_compared_up_to_the_first_end_of_a_moved_plan():
    measure = FiniteDifferences({"p": ascent()}, visited=(0,), depth=3, draws=1, epsilon=0.05, steps=0, lookahead=1)
    whole = measure.measure(world.bench(1), "gradient", 1, 1)
    assert [(row["depth"], row["reached"]) for row in whole] == [(1, 3), (2, 3), (3, 3)]
    x = world.start(1)
    plan, _ = world.policy_walk(x, 3, world.MODEL_A, world.MODEL_B)
    furthest = [
        max(world.walk(x, plan + sign * 0.05 * np.eye(6)[entry].reshape(3, 2))[step, 0]
            for entry in range(6) for sign in (-1, 1))
        for step in range(3)
    ]  # fmt: skip
    edge = furthest[1] - 1e-6
    assert edge > max(furthest[0], world.walk(x, plan)[:2, 0].max()), "one moved plan passes it with its second action"
    for end, reached in ((dict(length=2), 2), (dict(edge=edge), 2), (dict(length=1), 1)):
        bench = world.bench(1)
        world.ends_at(bench, **end)
        rows = measure.measure(bench, "gradient", 1, 1)
        assert rows == [row | {"reached": reached} for row in whole[:reached]]
    rows = [row | {"checkpoint": "c"} for row in (*whole, rows[0] | {"episode": 1})]
    assert [line["states"] for line in measure.summary(rows)] == [2, 1, 1]
    assert [cells["states"] for cells in measure.table(measure.summary(rows))] == ["2", "1"], "of depths 1 and 3"


def test_a_gradient_of_rounding_is_none_and_ratios_have_a_geometric_mean():
    model, real = np.ones((2, 1, 1, 2)), np.array([[[1e-9, -1e-12]], [[1e-9, 2.0]]])
    found = beside(model, real)
    assert all(np.isnan(values[0]) for values in found.values()), "the reward of the first row does not change"
    assert found["agreement"][1] == 1 and found["norm_ratio"][1] == pytest.approx(2**0.5 / 2)
    measure = FiniteDifferences({"p": ascent()}, (0,), 1, 2, 0.1, 0, 1)
    row = {"checkpoint": "c", "part": "gradient", "method": "1 draw", "depth": 1, "cosine": 1.0, "agreement": 1.0}
    rows = [row | {"episode": 0, "norm_ratio": ratio, "return": None} for ratio in (0.01, 1.0, 100.0, np.nan, 0.0)]
    (line,) = measure.summary(rows)
    assert line["norm_ratio"] == pytest.approx(1)


def test_the_control_ascends_the_real_return_and_value():
    bench, steps = world.bench(2), 4
    measure = FiniteDifferences({"p": ascent()}, (0,), 1, 2, 0.05, steps, 2)
    assert measure.parts == ("gradient", "policy", "p", "simulator-ascent")
    rows = measure.measure(bench, "simulator-ascent", 2, 9) + measure.measure(bench, "policy", 2, 9)
    for episode in range(2):
        x, total = world.start(9 + episode), 0.0
        for _ in range(steps):
            plan, _ = world.policy_walk(x, 2, world.MODEL_A, world.MODEL_B)
            slope = world.slope(x, plan, DISCOUNT, world.A, world.B)
            move = slope * 2 / np.linalg.norm(slope)
            trials = [np.clip(plan + length * move, -1, 1) for length in (0.0, 0.01, 0.03, 0.1, 0.3)]
            best = max(trials, key=lambda trial: world.worth(world.walk(x, trial), DISCOUNT))
            x = world.walk(x, best[:1])[0]
            total += world.reward(x)
        (row,) = of(rows, method="simulator-ascent", episode=episode)
        assert row["return"] == pytest.approx(total, abs=1e-6)
        (row,) = of(rows, method="policy", episode=episode)
        assert row["return"] == pytest.approx(world.reward(world.policy_walk(world.start(9 + episode), steps)[1]).sum())


def test_the_control_s_plans_have_the_value_of_the_state_at_the_time_limit():
    bench = world.bench(1)
    world.ends_at(bench, length=1)
    (row,) = FiniteDifferences({"p": ascent()}, (0,), 1, 2, 0.05, 3, 2).measure(bench, "simulator-ascent", 1, 9)
    x = world.start(9)
    plan, _ = world.policy_walk(x, 2, world.MODEL_A, world.MODEL_B)
    slope = world.slope(x, plan[:1], DISCOUNT, world.A, world.B)  # of the only action that is executed
    move = np.concatenate([slope, 0 * slope]) * 2 / np.linalg.norm(slope)
    trials = [np.clip(plan + length * move, -1, 1)[:1] for length in (0.0, 0.01, 0.03, 0.1, 0.3)]
    best = max(trials, key=lambda trial: world.worth(world.walk(x, trial), DISCOUNT))
    assert row["return"] == pytest.approx(world.reward(world.walk(x, best)[0]), abs=1e-6)


def test_differences_are_paired_by_episode():
    rows = [
        {"checkpoint": "c", "episode": e, "method": m, "return": r}
        for m, returns in (("policy", (1.0, 5.0)), ("p", (2.0, 8.0))) for e, r in enumerate(returns)
    ]  # fmt: skip
    assert [row["difference"] for row in paired(rows, "policy")] == [None, None, 1.0, 3.0]


# bad-model


def test_a_model_whose_actions_point_the_other_way_loses_what_the_true_one_gains():
    """With rewards that are linear near 0, one step and one ascent: the gain of every action changes its sign."""
    planner, returns = ascent(horizon=1, iterations=1, step_size=1e-6), {}
    bench = world.bench(2, a=world.A, b=world.B)
    flipped = PlansIn(planner, world.LinearModel(world.A, -world.B))
    still = world.LinearModel(world.A, -world.B)
    assert flipped.candidates == 1
    for name, each in (("policy", POLICY), ("true", planner), ("flipped", flipped)):
        returns[name] = evaluate(bench.agent, each, bench.envs, 2, 3).returns
    assert (returns["true"] != returns["policy"]).all()
    state = torch.tensor(world.start(3))[None]
    own, other = planner.plan(bench.agent.model, state), flipped.plan(bench.agent.model, state)
    mode = bench.agent.model.policy(state).mode
    assert torch.equal(other.action, planner.plan(still, state).action)
    assert ((own.action - mode) * (other.action - mode)).sum() < 0, "it climbs down"


def test_noise_is_relative_to_each_weight_and_leaves_actor_critic_and_the_agent_alone():
    agent = make_agent()
    before = {name: weight.clone() for name, weight in agent.model.state_dict().items()}
    wrong, worse = perturbed(agent, 0.1).state_dict(), perturbed(agent, 0.2).state_dict()
    for name, weight in agent.model.state_dict().items():
        assert torch.equal(weight, before[name])
        if weight.dtype == torch.bool:
            continue
        noise = wrong[name] - weight
        if name.startswith("world_model.") and weight.numel() > 200:
            assert (noise.square().mean() / weight.square().mean()).sqrt().item() == pytest.approx(0.1, rel=0.2), name
            torch.testing.assert_close(worse[name] - weight, 2 * noise, rtol=1e-3, atol=1e-6)
        elif not name.startswith("world_model."):
            assert torch.equal(wrong[name], weight), name


def test_the_agent_infers_its_state_with_its_own_world_model():
    agent, seen = make_agent(), []

    class Watching:
        def plan(self, model, state, memory=None):
            seen.append((model, state.clone()))
            return POLICY.plan(model, state, memory)

    image, first = torch.zeros(2, 64, 64, 3, dtype=torch.uint8), torch.ones(2, dtype=torch.bool)
    for planner in (Watching(), PlansIn(Watching(), perturbed(agent, 1.0))):
        torch.manual_seed(0)
        agent.act(planner, agent.initial(2), image, first)
    assert seen[0][0] is agent.model and seen[1][0] is not agent.model
    assert torch.equal(seen[0][1], seen[1][1])


def test_planning_without_noise_is_planning_as_it_is():
    bench, planner = world.bench(2, std=0.1), ascent(horizon=3)
    bench.agent.model.world_model = torch.nn.Identity()
    measure = BadModel({"p": planner}, {"noise 0": 0.0})
    rows = measure.measure(bench, "p, noise 0", 2, 5)
    assert [row["return"] for row in rows] == evaluate(bench.agent, planner, bench.envs, 2, 5).returns.tolist()
    assert measure.parts == ("policy", "p, noise 0")


def test_the_turning_point_is_between_the_levels():
    lines = [{"model": f"noise {x}", "difference": d} for x, d in ((0.3, -4.0), (0, 10.0), (0.1, 4.0), (1, 5.0))]
    assert turning_point([*lines, {"model": "model of x", "difference": -9.0}]) == pytest.approx(0.2)
    assert turning_point(lines[1:3]) is None


# ablate


def test_differences_are_to_the_planner_with_all_settings_and_corrected():
    draw = np.random.default_rng(0)
    rows = []
    for checkpoint in "ab":
        base = draw.normal(size=8)
        for method, shift in (("policy", -1.0), ("all settings", 0.0), ("caution", -2.0), ("penalty", 0.0)):
            returns = base + shift + 0.1 * draw.normal(size=8) * (method != "all settings")
            rows += [
                {"checkpoint": checkpoint, "episode": e, "method": method, "return": r} for e, r in enumerate(returns)
            ]
    lines = {
        line["method"]: line for line in Ablate.summary(SimpleNamespace(), rows) if line["scope"] == "all"
    }
    assert lines["caution"]["difference"] == pytest.approx(-2, abs=0.1)
    assert lines["policy"]["p"] is None
    assert lines["caution"]["p_holm"] == pytest.approx(2 * lines["caution"]["p"], rel=1e-9, abs=0)
    assert lines["caution"]["p_holm"] < 1e-6 < 0.05 < lines["penalty"]["p_holm"]
    assert lines["all settings"]["difference"] is None


def test_what_is_taken_away_is_said_and_the_policy_is_no_setting():
    rows = [
        {"checkpoint": "a/checkpoints/x", "episode": e, "method": method, "return": float(e)}
        for method in ("policy", "all settings", "caution") for e in range(6)
    ]  # fmt: skip
    summary = Ablate.summary(SimpleNamespace(), rows)
    said = [row["without"] for row in Ablate.table(SimpleNamespace(), summary)]
    assert said == ["all of it (the policy)", "nothing (all settings)", "caution"]
    assert [panel.names for panel in Ablate.panels(SimpleNamespace(), summary)] == [said[::2]] * 2


def test_a_panel_without_lines_says_why(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(panels, "save", lambda figure, path: figures.append(figure))
    measured = {"group": "smooth", "checkpoint": "a", "method": "penalty 0", **dict.fromkeys(QUANTITIES, 1.0)}
    rows = [measured | {"depth": depth, "episode": e} for depth in (1, 2) for e in range(4)]
    drawn = ModelError.panels(SimpleNamespace(), ModelError.summary(SimpleNamespace(), rows))
    panels.panels_picture(tmp_path / "a.png", drawn, "model-error: a title that is long enough")
    *others, empty = [axes for axes in figures[0].axes if axes.axison]
    assert [text.get_text() for text in empty.texts] == ["too few plans: 5 of a\ncheckpoint are needed at a\ndepth"]
    assert not len(empty.get_xticks()) and not len(empty.get_yticks()) and not empty.lines
    assert others and not any(axes.texts for axes in others)


# statistics


def test_estimates_are_over_the_episodes_of_checkpoints():
    draw = np.random.default_rng(0)
    scores = draw.normal(size=(6, 2))
    rows = [
        {"checkpoint": c, "episode": e, "x": scores[e, c] + shift}
        for c in range(2) for e in range(6) for shift in (-1.0, 1.0)
    ]  # fmt: skip
    found = estimate(rows, "x")
    np.testing.assert_allclose(found[1:], mean_interval(scores), rtol=1e-12)
    assert found.mean == pytest.approx(scores.mean())
    rows.append({"checkpoint": 1, "episode": 6, "x": np.nan})
    rows.append({"checkpoint": 1, "episode": 7, "x": None})
    assert [len(stratum) for stratum in per_episode(rows, "x")] == [6, 6] and estimate([], "x") is None
    assert estimate([row for row in rows if row["episode"] < 4], "x").low is None


def test_strata_of_different_sizes_have_welch_s_interval():
    draw = np.random.default_rng(0)
    a, b = draw.normal(size=7), 3 * draw.normal(size=12)
    low, high = strata_interval([a, b])
    u, v = a.var(ddof=1) / 7, b.var(ddof=1) / 12
    freedom = (u + v) ** 2 / (u**2 / 6 + v**2 / 11)
    from scipy import stats

    half = stats.t.ppf(0.975, freedom) * np.sqrt(u + v) / 2
    assert (low, high) == pytest.approx(((a.mean() + b.mean()) / 2 - half, (a.mean() + b.mean()) / 2 + half))
