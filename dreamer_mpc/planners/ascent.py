"""Gradient ascent on action sequences through the world model: what the three gradient planners are."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from dreamer_mpc.planners.objective import Objective
from dreamer_mpc.planners.protocol import LatentDynamics, Memory, Plan, choose
from dreamer_mpc.planners.rollout import (
    OffersNoise,
    Proposals,
    closed_loop,
    draw_noise,
    joined,
    policy_rollout,
    rollout,
)
from dreamer_mpc.planners.shooting import Shooting
from dreamer_mpc.util.checks import check_range, check_ranges


class Evaluated(NamedTuple):
    """Action sequences, X for each of N candidates, and what M draws of the model's noise say of them."""

    actions: Float[Tensor, "B N X H A"]  # where the policy takes the rest: the mean over draws of what it takes
    values: Float[Tensor, "B N X M"]  # J under each draw
    grad: Float[Tensor, "B N X h A"] | None  # of their mean, in the actions that are ascended

    def pick(self, index: Int64[Tensor, "B N"]) -> "Evaluated":
        """One of the X for each candidate."""

        def taken(x: Float[Tensor, "B N X *s"]) -> Float[Tensor, "B N 1 *s"]:
            shape = (*index.shape, 1, *[1] * (x.dim() - 3))
            return x.gather(2, index.view(shape).expand(-1, -1, 1, *x.shape[3:]))

        return Evaluated(*(None if x is None else taken(x) for x in self))


@dataclass(frozen=True)
class Ascent(Shooting):
    """Propose N sequences, climb J's gradient I times, execute the best; `propose` is left to the planner."""

    step_size: float = 0.1
    """Length of a step along the clipped gradient of J, alpha; unused with line_search."""
    grad_clip: float = 10.0
    """Largest norm of a candidate's gradient over its H x A entries (ours)."""
    penalty_gradient: bool = True
    """Let the ascent see the penalty; the released code of Dream-MPC cuts its gradient."""
    choose_by: Literal["before", "after"] = "before"
    """J that picks the executed candidate: before the last step, or after it for one more rollout."""
    mode_candidate: bool = False
    """Roll the policy's mode out as the first of the candidates."""
    draws: int = 1
    """Draws of the model's noise that all candidates, steps and iterations of a call share, M; J is their mean. 1: as
    latent_noise says."""
    line_search: tuple[float, ...] = ()
    """Lengths of a step that are tried at once; the best J stays, that of the unmoved plan included, all on the call's
    own draws. Empty: one step of step_size, taken whatever J it leads to."""
    step_scale: Literal["gradient", "unit"] = "gradient"
    """What a length multiplies: the clipped gradient, or the gradient scaled to norm sqrt(H A), which is 1 an entry."""
    direction: Literal["gradient", "random"] = "gradient"
    """Where a step goes; random, of the gradient's length, is the control that tells what the gradient is worth."""
    open_loop: int = 0
    """First actions of a plan that are ascended; the policy's mode takes the rest in the states that each draw reaches,
    and its answers count as constants in the gradient. 0: all H are ascended."""
    caution: float = 0.0
    """Standard errors over draws by which a step, or another candidate than the first, must raise J to be taken."""

    fewest_iterations: ClassVar[int] = 0  # without ascent, the best of the proposals is executed

    def __post_init__(self):
        super().__post_init__()
        check_ranges(self, step_size=(0, None), grad_clip=(0, None), draws=(1, None), caution=(0, None))
        check_range("open_loop", self.open_loop, 0, self.horizon)
        for length in self.line_search:
            check_range("line_search", length, 0, None)

    def propose(self, model: LatentDynamics, state: Float[Tensor, "B N S"]) -> Float[Tensor, "B N A"]:
        """Actions that the candidates take in the states they have reached, before any ascent."""
        raise NotImplementedError

    @torch.no_grad()
    def plan(self, model: LatentDynamics, state: Float[Tensor, "B S"], memory: Memory | None = None) -> Plan:
        """Plan for B environments; see `Planner.plan`.

        Where each candidate has draws of its own, the first rollout proposes and evaluates at once: actions are
        proposed in the states that the blended actions lead to, and J's gradient is taken through those same steps.
        Where draws are shared, sequences are proposed along the prior's mean first.
        """
        if torch.is_inference_mode_enabled():
            raise RuntimeError("plan under torch.no_grad(): torch.inference_mode() leaves the ascent no gradients")
        noise = self._draws(model, state)
        previous, weight = self._previous(model, state, memory, repeat_last=True)
        climbs = self.iterations > 0
        if self._proposes_first:
            mean = torch.zeros_like(noise[:, :, 0]).expand(-1, self.candidates, -1, -1) if noise is not None else None
            with torch.no_grad():
                leaves, _ = self._proposals(model, state, self.ascended, previous, weight, mean)
            best = self._evaluate(model, state, joined(leaves)[:, :, None], noise, climbs)
        else:
            with torch.set_grad_enabled(climbs):
                given = None if noise is None else noise[:, :, 0]
                leaves, states = self._proposals(model, state, self.horizon, previous, weight, given)
                best = self._evaluated(model, leaves, states, 1, 1)
        for left in reversed(range(self.iterations)):
            trials = self._trials(best)  # [B, N, X, h, A]
            if self.line_search:
                tried = self._evaluate(model, state, trials, noise, left > 0)
                best = self._better(best, tried)
            elif left or self.choose_by == "after":
                best = self._evaluate(model, state, trials, noise, left > 0)
            else:
                best = best._replace(actions=torch.cat([trials, best.actions[:, :, :, self.ascended :]], dim=3))
        values = self._scores(best.values[:, :, 0])  # [B, N]
        return choose(model, state, best.actions[:, :, 0], values, self.model_evaluations)

    @property
    def ascended(self) -> int:
        """Actions of a plan that are ascended, h."""
        return self.open_loop or self.horizon

    @property
    def _proposes_first(self) -> bool:
        return self.draws > 1 or 0 < self.open_loop < self.horizon

    @property
    def model_evaluations(self) -> int:
        """`step` calls of a plan, one candidate each.

        N * max(I, 1) * H, and N * H more to choose after the ascent; with draws and a line search of X lengths,
        N * M * H * (1 + I * X), and N * (h - 1) for the proposals.
        """
        tried = len(self.line_search) or 1
        rounds = self.iterations if self.line_search or self.choose_by == "after" else max(self.iterations - 1, 0)
        count = self.candidates * self.draws * self.horizon * (1 + rounds * tried)
        return count + self.candidates * (self.ascended - 1) * self._proposes_first

    @property
    def requires(self) -> tuple[str, ...]:
        """Which of the model's `value` and `policy` are used."""
        acts = self.mode_candidate or 0 < self.open_loop < self.horizon
        return (*super().requires, "policy") if acts else super().requires

    def objective_function(self) -> Objective:
        """J as the settings define it."""
        return replace(super().objective_function(), penalty_gradient=self.penalty_gradient)

    def _draws(self, model: LatentDynamics, state: Float[Tensor, "B S"]) -> Float[Tensor, "B N M H Z"] | None:
        """Noise of a call: M draws that candidates share (N is 1), or one for each candidate; None draws afresh."""
        if self.draws > 1:
            shared = state[:, None].expand(-1, self.draws, -1)
            return draw_noise(model, shared, self.horizon, "fixed")[:, None]
        held = self.line_search and self.latent_noise == "fresh" and isinstance(model, OffersNoise)
        noise = draw_noise(model, self._expand(state), self.horizon, "fixed" if held else self.latent_noise)
        return None if noise is None else noise[:, :, None]

    def _evaluate(
        self,
        model: LatentDynamics,
        state: Float[Tensor, "B S"],
        actions: Float[Tensor, "B N X h A"],
        noise: Float[Tensor, "B _ M H Z"] | None,
        climbs: bool,
    ) -> Evaluated:
        """J of each sequence under each draw; with its gradient if the ascent `climbs` on."""
        (_, n, x), m = actions.shape[:3], self.draws
        rows = actions[:, :, :, None].expand(-1, -1, -1, m, -1, -1).flatten(1, 3)  # [B, N X M, h, A]
        if noise is not None:
            noise = noise[:, :, None].expand(-1, n, x, -1, -1, -1).flatten(1, 3)  # [B, N X M, H, Z]
        with torch.set_grad_enabled(climbs):
            if self.ascended == self.horizon:
                leaves = (rows.requires_grad_(climbs),)
                states = rollout(model, state, rows, noise)
            else:
                rest = self.horizon - self.ascended
                given = torch.nn.functional.pad(rows, (0, 0, 0, rest))
                share = torch.ones_like(given[..., 0])
                share[..., self.ascended :] = 0
                start = state[:, None].expand(-1, rows.shape[1], -1)
                leaves, states = policy_rollout(model, start, self.horizon, given, share, noise, mode=True)
            return self._evaluated(model, leaves, states, x, m)

    def _evaluated(
        self, model: LatentDynamics, leaves: tuple[Tensor, ...], states: Float[Tensor, "B R H S"], x: int, m: int
    ) -> Evaluated:
        """What rollouts of N X M rows say; J's gradient where it is asked for."""
        values = self.objective_function()(model, states)  # [B, R]
        grad = None
        if torch.is_grad_enabled():
            grad = gradient(values, leaves)[:, :, : self.ascended]
            grad = grad.unflatten(1, (-1, x, m)).mean(3)
        actions = joined(leaves).detach().unflatten(1, (-1, x, m))
        actions = actions[:, :, :, 0] if self.ascended == self.horizon else actions.mean(3)
        return Evaluated(actions, values.detach().unflatten(1, (-1, x, m)), grad)

    def _trials(self, best: Evaluated) -> Float[Tensor, "B N X h A"]:
        """Where steps of each length lead."""
        actions, grad = best.actions[:, :, :, : self.ascended], best.grad
        if self.direction == "random":
            grad = _of_norm(torch.randn_like(grad), _norm(grad))
        if self.step_scale == "unit":
            grad = _of_norm(grad, torch.full_like(_norm(grad), (self.ascended * grad.shape[-1]) ** 0.5))
            return torch.cat([ascend(actions, grad, length, torch.inf) for length in self._lengths], dim=2)
        return torch.cat([ascend(actions, grad, length, self.grad_clip) for length in self._lengths], dim=2)

    @property
    def _lengths(self) -> tuple[float, ...]:
        return self.line_search or (self.step_size,)

    def _better(self, best: Evaluated, tried: Evaluated) -> Evaluated:
        """Per candidate the best of what was tried, or what there was."""
        grad = None if tried.grad is None else torch.cat([best.grad, tried.grad], dim=2)
        actions, values = (torch.cat(pair, dim=2) for pair in zip(best[:2], tried[:2], strict=True))
        return Evaluated(actions, values, grad).pick(self._scores(values).argmax(2))

    def _scores(self, values: Float[Tensor, "*b K M"]) -> Float[Tensor, "*b K"]:
        """Mean J over draws, lessened for all but the first by `caution` standard errors of the difference to it."""
        mean = values.mean(-1)
        if self.caution > 0 and self.draws > 1:
            spread = (values - values[..., :1, :]).std(-1)  # 0 for the first
            mean = mean - self.caution * spread / self.draws**0.5
        return torch.where(mean.isfinite(), mean, -torch.inf)

    def _proposals(
        self,
        model: LatentDynamics,
        state: Float[Tensor, "B S"],
        horizon: int,
        previous: Float[Tensor, "B H A"],
        weight: Float[Tensor, "B 1 1"],
        noise: Float[Tensor, "B N _ Z"] | None,
    ) -> Proposals:
        """Proposals, each blended with the previous plan's action, and the states they lead to."""
        blend = ()
        if self.reuse > 0:
            blend = self._expand(previous[:, :horizon]), self._expand(weight)[..., 0].expand(-1, -1, horizon)
        noise = None if noise is None else noise[:, :, :horizon]
        return self._walk(model, self._expand(state), horizon, *blend, noise=noise)

    def _walk(
        self,
        model: LatentDynamics,
        state: Float[Tensor, "B N S"],
        horizon: int,
        previous: Float[Tensor, "B N h A"] | None = None,
        weight: Float[Tensor, "B N h"] | None = None,
        noise: Float[Tensor, "B N h Z"] | None = None,
    ) -> Proposals:
        """`propose` in the loop; the policy's mode is the first candidate where that is asked for."""

        def act(state: Float[Tensor, "B N S"]) -> Float[Tensor, "B N A"]:
            action = self.propose(model, state)
            if not self.mode_candidate:
                return action
            return torch.cat([model.policy(state[:, :1]).mode, action[:, 1:]], dim=1)

        return closed_loop(model, state, horizon, act, previous, weight, noise)


def _norm(grad: Float[Tensor, "*b h A"]) -> Float[Tensor, "*b 1 1"]:
    return grad.flatten(-2).norm(dim=-1)[..., None, None]


def _of_norm(grad: Float[Tensor, "*b h A"], norm: Float[Tensor, "*b 1 1"]) -> Float[Tensor, "*b h A"]:
    return grad * (norm / _norm(grad).clamp_min(torch.finfo(grad.dtype).tiny))


def gradient(values: Float[Tensor, "B N"], leaves: tuple[Tensor, ...]) -> Float[Tensor, "B N H A"]:
    """d values / d actions, and nothing left on any parameter; 0 where the model ignores the actions."""
    if not values.requires_grad:
        return torch.zeros_like(joined(leaves))
    return joined(torch.autograd.grad(values.sum(), leaves, materialize_grads=True))


def ascend(
    actions: Float[Tensor, "*b H A"], grad: Float[Tensor, "*b H A"], step_size: float, grad_clip: float
) -> Float[Tensor, "*b H A"]:
    """One step up the gradient, whose norm is clipped per candidate; actions stay in [-1, 1].

    A candidate whose gradient is not finite stays where it is.
    """
    norm = _norm(grad)
    scale = (grad_clip / norm.clamp_min(torch.finfo(grad.dtype).tiny)).clamp(max=1)
    step = torch.where(norm.isfinite(), step_size * scale * grad, 0.0)
    return (actions + step).clamp(-1, 1)
