"""finite-differences: the model's gradient beside the simulator's own, and a planner that ascends the latter."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from dreamer_mpc.analysis.bench import POLICY, Bench
from dreamer_mpc.analysis.estimate import grouped, of_line, summarised
from dreamer_mpc.analysis.gradient_snr import policy_plan
from dreamer_mpc.analysis.ledger import Measured
from dreamer_mpc.analysis.measure import Line, Measure, visited
from dreamer_mpc.planners import Planner
from dreamer_mpc.planners.steps import scaled
from dreamer_mpc.report.panels import Panel
from dreamer_mpc.util.device import preserved_rng

GRADIENT, SIMULATOR = "gradient", "simulator-ascent"
QUANTITIES = ("cosine", "agreement", "norm_ratio")
LENGTHS = (0.0, 0.01, 0.03, 0.1, 0.3)  # of the control's steps, the unmoved plan included
SHOWN = (1, 3, 5, 10, 15)  # depths of the table
LEAST = 1e-6  # of an entry of the simulator's gradient: below it are the rounding and the solver's tolerance


@dataclass(frozen=True)
class FiniteDifferences(Measure):
    """d(real return)/da at the policy's plans, by central differences; and returns of the control beside planners."""

    usual: ClassVar[str] = "dream-mpc-default"
    caption: ClassVar[str] = (
        "gradients of the return of k steps, model beside simulator: cosine, share of entries of equal sign, ratio of "
        "norms; states: those where no moved plan ended its episode before step k; the control plans on the simulator, "
        "with the critic's value at the end"
    )
    copies_states: ClassVar[bool] = True

    visited: tuple[int, ...]
    depth: int
    draws: int
    epsilon: float
    steps: int
    lookahead: int

    @classmethod
    def make(cls, config: Any, subject: Any, planners: dict[str, Planner], models: Any) -> "FiniteDifferences":
        """See `Measure.make`."""
        sizes = (config.depth or 15, config.draws, config.epsilon, config.steps, config.lookahead)
        return cls(planners, visited(config), *sizes)

    @property
    def parts(self) -> Sequence[str]:
        """The gradients, and the control with what stands beside it."""
        return (GRADIENT, "policy", *self.planners, SIMULATOR) if self.steps else (GRADIENT,)

    @torch.no_grad()
    def measure(self, bench: Bench, part: str, count: int, seed: int) -> list[Measured]:
        """Gradients: a row for each state, number of draws and depth. Control: a row for each episode."""
        if part == GRADIENT:
            return self._gradients(bench, count, seed)
        planner = POLICY if part == "policy" else self.planners.get(part)
        returns = self._returns(bench, planner, seed)
        empty = dict.fromkeys(("step", "depth", *QUANTITIES))
        return [
            {"episode": row, "part": "control", "method": part, **empty, "return": float(returns[row]), "reached": None}
            for row in range(count)
        ]

    def _gradients(self, bench: Bench, count: int, seed: int) -> list[Measured]:
        planner, model, rows = next(iter(self.planners.values())), bench.agent.model, []
        of_rewards = replace(planner, objective="rewards", uncertainty=0.0, open_loop=0, habits=())
        for visit in bench.visit(POLICY, seed, self.visited, snapshots=True):
            plan = policy_plan(replace(of_rewards, horizon=self.depth), model, visit.state)  # [B, H, A]
            slopes, reached = simulator_slopes(bench, visit.snapshots, plan, self.epsilon)
            for depth in range(1, self.depth + 1):
                real = gradient_of_return(slopes, depth, planner.discount)  # [B, depth, A]
                with preserved_rng(bench.agent.device):
                    torch.manual_seed(seed + visit.step)
                    judge = replace(of_rewards, horizon=depth)
                    _, grad = judge.judge(model, visit.state, plan[:, :depth], self.draws, climbs=True)
                for averaged in dict.fromkeys((1, self.draws)):
                    found = beside(_blocks(grad, averaged), real)
                    rows += [
                        {"episode": row, "part": GRADIENT, "method": drawn(averaged), "step": visit.step,
                         "depth": depth, **{name: float(values[row]) for name, values in found.items()}, "return": None,
                         "reached": int(reached[row])}
                        for row in np.flatnonzero(visit.alive & (reached >= depth)).tolist() if row < count
                    ]  # fmt: skip
        return rows

    def _returns(self, bench: Bench, planner: Planner | None, seed: int) -> Float[np.ndarray, " B"]:
        """Returns of the first `steps` steps of episodes; without a planner, under the control."""
        with preserved_rng(bench.agent.device):
            torch.manual_seed(seed)
            rows = bench.envs.num_envs
            image, _ = bench.envs.reset(seed=[seed + row for row in range(rows)])
            carry, alive, total = bench.agent.initial(rows), np.ones(rows, dtype=bool), np.zeros(rows)
            for step in range(self.steps):
                carry, action = bench.act(planner or POLICY, carry, image, first=step == 0)
                if planner is None:
                    planned = self._control(bench, carry.state, alive, seed + step)
                    carry, action = carry._replace(action=planned), planned.cpu().numpy()
                image, reward, terminated, truncated = bench.step(action, alive)
                total, alive = total + reward, alive & ~(terminated | truncated)
                if not alive.any():
                    break
            return total

    def _control(
        self, bench: Bench, state: Float[Tensor, "B S"], alive: np.ndarray, seed: int
    ) -> Float[Tensor, "B A"]:
        """The first action of the policy's plan after a step up the simulator's gradient.

        J is the real return of the plan with the critic's value of its last state, as `Bench.worth` has it where the
        episode ends on the way. The best of several lengths along the gradient is taken by that same J, so that no
        model of the dynamics has a say.
        """
        template = next(iter(self.planners.values()))
        horizon = replace(template, horizon=self.lookahead, open_loop=0)
        plan, here = policy_plan(horizon, bench.agent.model, state), bench.envs.get_states()

        def real(tried: Float[Tensor, "B H A"]) -> Float[np.ndarray, " B"]:
            bench.envs.go_to(here)
            return bench.worth(bench.execute(state, tried, seed=seed, alive=alive), template.discount)

        slope = torch.zeros_like(plan)
        for k in range(plan.shape[1]):
            for i in range(plan.shape[2]):
                up, down = shifted(plan, k, i, self.epsilon)
                difference = torch.from_numpy(real(up) - real(down)).to(plan)
                slope[:, k, i] = difference / (up - down)[:, k, i]
        move = scaled(slope, (plan.shape[1] * plan.shape[2]) ** 0.5)
        trials = [(plan + length * move).clamp(-1, 1) for length in LENGTHS]
        best = np.stack([real(trial) for trial in trials]).argmax(0)
        bench.envs.go_to(here)
        rows = torch.arange(len(plan), device=plan.device)
        return torch.stack(trials)[torch.from_numpy(best).to(plan.device), rows, 0]

    def summary(self, rows: list[Measured]) -> list[Line]:
        """Gradients by number of draws and depth; returns, and their differences to the policy, by planner."""
        gradients = [row | _log(row) for row in rows if row["part"] == GRADIENT]
        controls = paired([row for row in rows if row["part"] == "control"], "policy")
        states = {key: len(own) for key, own in grouped(gradients, "method", "depth").items()}
        lines = [
            line | _unlog(line) | {"states": states[line["method"], line["depth"]]}
            for line in summarised(gradients, ("part", "method", "depth"), QUANTITIES)
        ]
        lines += summarised(controls, ("part", "method"), ("return", "difference"))
        both = [f"{name}{end}" for name in (*QUANTITIES, "return", "difference") for end in ("", "_low", "_high")]
        empty = dict.fromkeys(("part", "method", "depth", *both, "episodes", "checkpoints", "states"))
        return [empty | line for line in lines]

    def table(self, summary: list[Line]) -> list[dict[str, str]]:
        """Some depths of each number of draws; then the control."""
        depths = [k for k in SHOWN if k <= self.depth]
        names = (*QUANTITIES, "return", "difference")
        return [
            {"": line["method"], "depth k": str(line["depth"] or "–"), "states": str(line["states"] or "–")}
            | {name: "–" if line[name] is None else str(of_line(line, name)) for name in names}
            for line in summary if line["depth"] in (*depths, None)
        ]  # fmt: skip

    def panels(self, summary: list[Line]) -> list[Panel]:
        """Cosine and agreement by depth, and the control's differences to the policy."""
        cosine = Panel("model's gradient and the simulator's", "depth k, agent steps", "cosine", reference=0.0)
        signs = Panel("entries of equal sign", "depth k, agent steps", "share", reference=0.5)
        norms = Panel("norms", "depth k, agent steps", "model's over simulator's", reference=1.0, log=(False, True))
        panels = dict(zip(QUANTITIES, (cosine, signs, norms), strict=True))
        control = [line for line in summary if line["part"] == "control" and line["method"] != "policy"]
        returns = Panel(
            f"planned on the simulator, {self.steps} steps", "", "return minus the policy's", reference=0.0,
            names=[line["method"] for line in control], joined=False,
        )  # fmt: skip
        for line in summary:
            for name, panel in panels.items():
                if line["part"] == GRADIENT:
                    panel.add(line["method"], line["depth"], of_line(line, name))
        for place, line in enumerate(control):
            returns.add(line["method"], place, of_line(line, "difference"))
        return [*panels.values(), *([returns] if control else [])]


def drawn(count: int) -> str:
    """`1 draw`, `mean of 256 draws`."""
    return "1 draw" if count == 1 else f"mean of {count} draws"


def shifted(
    plan: Float[Tensor, "B H A"], k: int, i: int, epsilon: float
) -> tuple[Float[Tensor, "B H A"], Float[Tensor, "B H A"]]:
    """The plan with entry (k, i) moved up and down, as far as actions go."""
    up, down = plan.clone(), plan.clone()
    up[:, k, i] = (up[:, k, i] + epsilon).clamp(-1, 1)
    down[:, k, i] = (down[:, k, i] - epsilon).clamp(-1, 1)
    return up, down


def simulator_slopes(
    bench: Bench, snapshots: Sequence[Any], plan: Float[Tensor, "B H A"], epsilon: float
) -> tuple[Float[np.ndarray, "B H A H"], Int[np.ndarray, " B"]]:
    """d r_j / d a_k of every reward and action, and the number of first steps that no plan's episode ended before.

    Behind them slopes are NaN: where one plan has ended and another has not, the return jumps.
    """
    horizon, size = plan.shape[1:]
    pairs = [shifted(plan, k, i, epsilon) for k in range(horizon) for i in range(size)]
    tried = torch.stack([plan, *(one for pair in pairs for one in pair)], dim=1).double().cpu().numpy()
    rewards = bench.envs.try_plans(snapshots, tried)  # [B, 1 + 2 H A, H]
    differences = (rewards[:, 1::2] - rewards[:, 2::2]).reshape(len(plan), horizon, size, horizon)
    distances = (tried[:, 1::2] - tried[:, 2::2]).sum((2, 3)).reshape(len(plan), horizon, size, 1)
    reached = np.isfinite(rewards).all(1)  # [B, H]
    return np.where(reached[:, None, None], differences / distances, np.nan), reached.sum(1)


def gradient_of_return(
    slopes: Float[np.ndarray, "B H A H"], depth: int, discount: float
) -> Float[np.ndarray, "B d A"]:
    """The gradient of the discounted return of the first `depth` steps."""
    return slopes[:, :depth, :, :depth] @ discount ** np.arange(depth)


def _blocks(grad: Float[Tensor, "B M d A"], averaged: int) -> Float[np.ndarray, "B b d A"]:
    """Means of `averaged` draws each, 16 of them at most."""
    count = min(grad.shape[1] // averaged, 16)
    return grad[:, : count * averaged].unflatten(1, (count, averaged)).mean(2).double().cpu().numpy()


def beside(
    model: Float[np.ndarray, "B b d A"], real: Float[np.ndarray, "B d A"]
) -> dict[str, Float[np.ndarray, " B"]]:
    """Cosine, share of equal signs and ratio of norms of gradients; NaN where the simulator's is 0. Means over b.

    Entries of the simulator's gradient below `LEAST` are 0: a reward that has reached its bound does not change.
    """
    flat, target = model.reshape(*model.shape[:2], -1), real.reshape(len(real), 1, -1)
    target = np.where(np.abs(target) < LEAST, 0.0, target)
    norms, size = np.linalg.norm(flat, axis=2), np.linalg.norm(target, axis=2)
    counts = (target != 0).sum(2)
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "cosine": ((flat * target).sum(2) / (norms * size)).mean(1),
            "agreement": (((flat * target) > 0).sum(2) / counts).mean(1),
            "norm_ratio": np.where(size[:, 0] > 0, (norms / size).mean(1), np.nan),
        }


def _log(row: Measured) -> Measured:
    """A ratio's mean is geometric: few states whose real gradient is small would else decide it."""
    ratio = row["norm_ratio"]
    return {"norm_ratio": float(np.log(ratio)) if ratio is not None and ratio > 0 else None}


def _unlog(line: Line) -> Line:
    logs = {name: line[name] for name in ("norm_ratio", "norm_ratio_low", "norm_ratio_high")}
    return {name: None if value is None else float(np.exp(value)) for name, value in logs.items()}


def paired(rows: list[Measured], baseline: str) -> list[Measured]:
    """The rows with their difference to the baseline's return of the same episode."""
    returns = {(row["checkpoint"], row["episode"]): row["return"] for row in rows if row["method"] == baseline}
    found = []
    for row in rows:
        other = returns.get((row["checkpoint"], row["episode"]))
        alone = other is None or row["method"] == baseline
        found.append(row | {"difference": None if alone else row["return"] - other})
    return found
