"""Gradient ascent on action sequences through the world model: what the three gradient planners are."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
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
from dreamer_mpc.planners.steps import Evaluated, ascend, clipped, gradient, norm_of, scaled
from dreamer_mpc.util.checks import check_each, check_range, check_ranges

SHARED_DRAWS = 16  # of a planner that leaves it open, on a model that can share them
WIDE = 20  # dimensions of an action from which the released code takes two more steps
Habit = Literal["blend", "clamp", "clip", "heads", "own-plan", "penalty", "wide"]


@dataclass(frozen=True)
class Ascent(Shooting):
    """Propose N sequences, climb J's gradient I times, execute the best; `propose` is left to the planner."""

    step_size: float = 0.1
    """Length of a step, alpha, in units of step_scale; unused with line_search."""
    grad_clip: float = 10.0
    """Largest norm of a candidate's gradient over its H x A entries (ours)."""
    penalty_gradient: bool = True
    """Let the ascent see the penalty; the released code of Dream-MPC cuts its gradient."""
    choose_by: Literal["before", "after"] = "before"
    """J that picks the executed candidate: before the last step, or after it for one more rollout."""
    mode_candidate: bool = False
    """Roll the policy's mode out as the first of the candidates."""
    draws: int | None = 1
    """Draws of the model's noise that all candidates, steps and iterations of a call share, M; J is their mean. 1: as
    latent_noise says. None: 16 where the model offers its noise, else 1."""
    line_search: tuple[float, ...] = ()
    """Lengths of a step that are tried at once, on the call's own draws; the best mean J stays, the unmoved plan's
    included, so that J never falls. Empty: one step of step_size, whatever J it leads to."""
    step_scale: Literal["gradient", "unit"] = "gradient"
    """What a length multiplies: the clipped gradient, or the gradient scaled to norm sqrt(H A), which is 1 an entry."""
    direction: Literal["gradient", "random"] = "gradient"
    """Where a step goes. random, of the gradient's length: the control that tells what the gradient is worth."""
    open_loop: int = 0
    """First actions of a plan that are ascended; the policy's mode takes the rest, in the states that each draw leads
    to, and its answers count as constants in the gradient. 0, or H and more: all are ascended."""
    caution: float = 0.0
    """Standard errors over draws that a step, or a candidate other than the first, must raise J by to be preferred."""
    habits: tuple[str, ...] = ()
    """Of the authors' released code, each by name. blend: whole sequences are blended with the previous plan, after
    the policy's rollout; clamp: after the last step alone; clip: the gradient's norm over all candidates together;
    heads: the terminal value is the mean of two value heads drawn at random; own-plan: each candidate is blended with
    its own previous one; penalty: unbiased spread, not discounted, counted twice at the end; wide: two more iterations
    where an action has 20 dimensions or more."""

    fewest_iterations: ClassVar[int] = 0  # without ascent, the best of the proposals is executed
    proposes_policy: ClassVar[bool] = False  # `propose` is a sample of the policy

    def __post_init__(self):
        super().__post_init__()
        check_ranges(self, step_size=(0, None), grad_clip=(0, None), caution=(0, None), line_search=(0, None))
        check_range("open_loop", self.open_loop, 0, None)
        check_each("habits", self.habits, Habit)
        if self.draws is not None:
            check_range("draws", self.draws, 1, None)
            if self.draws > 1 and self.latent_noise == "mean":
                raise ValueError(f"draws must be 1 with latent_noise mean, which draws nothing, got {self.draws}")

    def propose(self, model: LatentDynamics, state: Float[Tensor, "B N S"]) -> Float[Tensor, "B N A"]:
        """Actions that the candidates take in the states they have reached, before any ascent."""
        raise NotImplementedError

    @torch.no_grad()
    def plan(self, model: LatentDynamics, state: Float[Tensor, "B S"], memory: Memory | None = None) -> Plan:
        """Plan for B environments; see `Planner.plan`."""
        if torch.is_inference_mode_enabled():
            raise RuntimeError("plan under torch.no_grad(): torch.inference_mode() leaves the ascent no gradients")
        return self._for(model)._plan(model, state, memory)

    @torch.no_grad()
    def judge(
        self,
        model: LatentDynamics,
        state: Float[Tensor, "B S"],
        actions: Float[Tensor, "B h A"],
        draws: int,
        climbs: bool = False,
    ) -> tuple[Float[Tensor, "B M"], Float[Tensor, "B M h A"] | None]:
        """J of one sequence for each row under each of M draws of the model's noise; if it `climbs`, each gradient.

        `actions` are the first ones, which are ascended: behind them the policy answers, where the settings say so. It
        is for measuring a plan, not for making one: every draw is of its own.
        """
        alone = replace(self, candidates=draws, draws=1)
        found = alone._evaluate(model, state, actions[:, None, None].expand(-1, draws, 1, -1, -1), None, climbs)
        return found.values[:, :, 0, 0], None if found.grad is None else found.grad[:, :, 0]

    def _for(self, model: LatentDynamics) -> "Ascent":
        """With the settings decided that depend on the model."""
        draws, iterations = self.draws, self.iterations
        if draws is None:
            draws = SHARED_DRAWS if isinstance(model, OffersNoise) and self.latent_noise != "mean" else 1
        if "wide" in self.habits and model.action_dim >= WIDE:
            iterations += 2
        return replace(self, draws=draws, iterations=iterations)

    def _plan(self, model: LatentDynamics, state: Float[Tensor, "B S"], memory: Memory | None) -> Plan:
        noise = self._draws(model, state)
        best = self._start(model, state, memory, noise)
        for left in reversed(range(self.iterations)):
            trials = self._trials(best, last=left == 0)  # [B, N, X, h, A]
            if self.line_search:
                best = best.join(self._evaluate(model, state, trials, noise, climbs=left > 0))
                best = best.pick(self._scores(best.values).argmax(2))
            elif left or self.choose_by == "after":
                best = self._evaluate(model, state, trials, noise, climbs=left > 0)
            else:
                best = best._replace(actions=torch.cat([trials, best.actions[..., self.ascended :, :]], dim=3))
        candidates, values = best.actions[:, :, 0], self._scores(best.values[:, :, 0])
        plan = choose(model, state, candidates, values, self.model_evaluations)
        if "own-plan" in self.habits:
            plan.memory = Memory(plan.candidates, ~plan.fallback)
        return plan

    def _start(
        self,
        model: LatentDynamics,
        state: Float[Tensor, "B S"],
        memory: Memory | None,
        noise: Float[Tensor, "B _ M H Z"] | None,
    ) -> Evaluated:
        """The proposals and their J.

        Where each candidate has draws of its own, one rollout proposes and evaluates: actions are proposed in the
        states that the blended actions lead to, and J's gradient is taken through those same steps. Where draws are
        shared, sequences are proposed first, along the prior's mean.
        """
        blend, climbs, h = self._blend(model, state, memory), self.iterations > 0, self.ascended
        along = None if noise is None else noise[:, :, 0]  # [B, _, H, Z]
        if not self._proposes_first:
            with torch.set_grad_enabled(climbs):
                leaves, states = self._walk(model, self._expand(state), self.horizon, *blend, noise=along)
                return self._evaluated(model, leaves, states, tried=1)
        if along is not None:
            along = torch.zeros_like(along) if self.draws > 1 else along
            along = along.expand(-1, self.candidates, -1, -1)[:, :, :h]
        blend = tuple(x[:, :, :h] for x in blend)
        in_rollout, afterwards = ((), blend) if "blend" in self.habits else (blend, ())
        leaves, _ = self._walk(model, self._expand(state), h, *in_rollout, noise=along)
        actions = joined(leaves)
        if afterwards:
            previous, share = afterwards[0], afterwards[1][..., None]
            actions = share * previous + (1 - share) * actions
        return self._evaluate(model, state, actions[:, :, None], noise, climbs)

    def _blend(self, model: LatentDynamics, state: Float[Tensor, "B S"], memory: Memory | None) -> tuple[Tensor, ...]:
        """The previous plan for each candidate, [B, N, H, A], and its weight, [B, N, H]; nothing without reuse."""
        own = "own-plan" in self.habits
        previous, weight = self._previous(model, state, memory, repeat_last=True, each=own)
        previous = previous if own else self._expand(previous)
        return (previous, weight.expand_as(previous[..., 0])) if self.reuse > 0 else ()

    @property
    def ascended(self) -> int:
        """Actions of a plan that are ascended, h."""
        return min(self.open_loop or self.horizon, self.horizon)

    @property
    def _answers(self) -> bool:
        """Whether the policy takes the last actions of a plan."""
        return self.ascended < self.horizon

    @property
    def _proposes_first(self) -> bool:
        return self._most_draws > 1 or self._answers or "blend" in self.habits

    @property
    def _most_draws(self) -> int:
        return SHARED_DRAWS if self.draws is None else self.draws

    @property
    def model_evaluations(self) -> int:
        """`step` calls of a plan, one candidate each.

        N M H (1 + X rounds): X lengths in each round of trials, of which there are I, or I - 1 where the last step's J
        is not asked for; and N h more where sequences are proposed first.
        """
        rounds = self.iterations if self.line_search or self.choose_by == "after" else max(self.iterations - 1, 0)
        count = self.candidates * self._most_draws * self.horizon * (1 + rounds * len(self._lengths))
        return count + self.candidates * self.ascended * self._proposes_first

    @property
    def requires(self) -> tuple[str, ...]:
        """Which of the model's `value` and `policy` are used."""
        return (*super().requires, "policy") if self.mode_candidate or self._answers else super().requires

    def objective_function(self) -> Objective:
        """J as the settings define it."""
        released = {"released_penalty": "penalty" in self.habits, "two_heads": "heads" in self.habits}
        return replace(super().objective_function(), penalty_gradient=self.penalty_gradient, **released)

    def _draws(self, model: LatentDynamics, state: Float[Tensor, "B S"]) -> Float[Tensor, "B _ M H Z"] | None:
        """Noise of a call: M draws for all candidates, or one for each of N; None: each rollout draws its own."""
        if self.draws > 1:
            shared = state[:, None].expand(-1, self.draws, -1)
            return draw_noise(model, shared, self.horizon, "fixed", f"draws={self.draws}")[:, None]
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
        n, tried = actions.shape[1:3]
        rows = actions[:, :, :, None].expand(-1, -1, -1, self.draws, -1, -1).flatten(1, 3)  # [B, N X M, h, A]
        if noise is not None:
            noise = noise[:, :, None].expand(-1, n, tried, -1, -1, -1).flatten(1, 3)  # [B, N X M, H, Z]
        with torch.set_grad_enabled(climbs):
            if self._answers:
                given = torch.nn.functional.pad(rows, (0, 0, 0, self.horizon - self.ascended))
                share = torch.ones_like(given[..., 0])
                share[..., self.ascended :] = 0
                start = state[:, None].expand(-1, rows.shape[1], -1)
                leaves, states = policy_rollout(model, start, self.horizon, given, share, noise, mode=True)
            else:
                leaves = (rows.requires_grad_(climbs),)
                states = rollout(model, state, rows, noise)
            return self._evaluated(model, leaves, states, tried)

    def _evaluated(
        self, model: LatentDynamics, leaves: tuple[Tensor, ...], states: Float[Tensor, "B R H S"], tried: int
    ) -> Evaluated:
        """What rollouts of R = N X M rows say; J's gradient where gradients are on."""
        each = (-1, tried, self.draws)
        values, grad = self.objective_function()(model, states), None  # [B, R]
        if torch.is_grad_enabled():
            grad = gradient(values, leaves)[:, :, : self.ascended].unflatten(1, each).mean(3)
        actions = joined(leaves).detach().unflatten(1, each)
        actions = actions.mean(3) if self._answers else actions[:, :, :, 0]
        return Evaluated(actions, values.detach().unflatten(1, each), grad)

    def _trials(self, best: Evaluated, last: bool) -> Float[Tensor, "B N X h A"]:
        """Where steps of each length lead; actions stay in [-1, 1]."""
        actions, grad = best.actions[..., : self.ascended, :], best.grad
        if self.direction == "random":
            grad = scaled(torch.randn_like(grad), norm_of(grad))
        if self.step_scale == "unit":
            grad = scaled(grad, (self.ascended * grad.shape[-1]) ** 0.5)
        else:
            norm = norm_of(grad)
            norm = norm.square().sum(1, keepdim=True).sqrt() if "clip" in self.habits else norm
            grad = clipped(grad, self.grad_clip, norm)
        trials = ascend(actions, grad, self._lengths)
        return trials.clamp(-1, 1) if last or "clamp" not in self.habits else trials

    @property
    def _lengths(self) -> tuple[float, ...]:
        return tuple(self.line_search) or (self.step_size,)

    def _scores(self, values: Float[Tensor, "*b K M"]) -> Float[Tensor, "*b K"]:
        """Mean J, for all but the first of K less `caution` standard errors of the difference to the first."""
        score = values.mean(-1)
        if self.caution > 0 and values.shape[-1] > 1:
            spread = (values - values[..., :1, :]).std(-1)
            score = score - self.caution * spread / values.shape[-1] ** 0.5
        return torch.where(score.isfinite(), score, -torch.inf)

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
        one_rule = self.candidates == 1 or not self.mode_candidate
        if self.proposes_policy and one_rule:  # two rules in one rollout need a loop over steps
            return policy_rollout(model, state, horizon, previous, weight, noise, self.mode_candidate)

        def act(state: Float[Tensor, "B N S"]) -> Float[Tensor, "B N A"]:
            action = self.propose(model, state)
            if not self.mode_candidate:
                return action
            return torch.cat([model.policy(state[:, :1]).mode, action[:, 1:]], dim=1)

        return closed_loop(model, state, horizon, act, previous, weight, noise)
