"""Dream-MPC: a few policy rollouts, refined by gradient ascent through the world model."""

from dataclasses import dataclass
from typing import Literal

from dreamer_mpc.planners.objective import ObjectiveKind
from dreamer_mpc.planners.policy_grad_mpc import PolicyGradMPC


@dataclass(frozen=True)
class DreamMPC(PolicyGradMPC):
    """Dream-MPC (Spieler & Behnke, ICML 2026, arXiv:2605.04568): the policy's plan, refined by ascent of a penalised J.

    The settings are those that were found to play better than the policy (docs/planning.md): the policy's mode is
    ascended under draws that all steps share, with a line search, and the policy stays in the loop behind the first
    actions. The paper's own are the preset `planner/dream-mpc-paper`, those of the authors' code
    `planner/dream-mpc-released`.
    """

    horizon: int = 10
    """Steps of a plan, H (paper: 15)."""
    candidates: int = 1
    """Action sequences refined in parallel, N (paper: 5)."""
    iterations: int = 2
    """Steps of gradient ascent, I (paper: 1); 0 only chooses among the policy's rollouts."""
    objective: ObjectiveKind = "lambda-return"
    """J: discounted rewards and a terminal value (return: the paper's), Dreamer's lambda-return, or rewards alone."""
    return_lambda: float = 0.9
    """Lambda of the lambda-return; read only with that objective."""
    step_size: float = 0.1
    """Length of a step, alpha, in units of step_scale; unused with line_search (paper: 0.1, without)."""
    reuse: float = 0.0
    """Weight of the previous plan, shifted by one step, in the candidates, rho (paper: 0.1)."""
    discount: float = 0.99
    """Discount per agent step (paper: 0.99)."""
    uncertainty: float = 1.0
    """Weight of the spread of the value heads in J, lambda_u (0.1 in dream-mpc-paper); 0 switches the penalty off."""
    mode_candidate: bool = True
    """Roll the policy's mode out as the first of the candidates (paper: samples alone)."""
    draws: int | None = None
    """Draws of the model's noise that all candidates, steps and iterations of a call share, M; J is their mean. 1: as
    latent_noise says (paper). None: 16 where the model offers its noise, else 1."""
    line_search: tuple[float, ...] = (0.3, 0.1, 0.03, 0.01)
    """Lengths of a step that are tried at once, on the call's own draws; the best mean J stays, the unmoved plan's
    included, so that J never falls. Empty: one step of step_size, whatever J it leads to (paper)."""
    step_scale: Literal["gradient", "unit"] = "unit"
    """What a length multiplies: the clipped gradient (paper), or the gradient scaled to norm sqrt(H A), 1 an entry."""
    open_loop: int = 5
    """First actions of a plan that are ascended; the policy's mode takes the rest, in the states that each draw leads
    to, and its answers count as constants in the gradient. 0, or H and more: all are ascended (paper)."""
    caution: float = 1.0
    """Standard errors over draws that a step, or a candidate other than the first, must raise J by to be preferred
    (paper: 0)."""
