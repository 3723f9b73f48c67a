"""Dream-MPC: a few policy rollouts, refined by gradient ascent through the world model."""

from dataclasses import dataclass

from dreamer_mpc.planners.policy_grad_mpc import PolicyGradMPC


@dataclass(frozen=True)
class DreamMPC(PolicyGradMPC):
    """Dream-MPC (Spieler & Behnke, ICML 2026, arXiv:2605.04568): policy rollouts, ascent, penalty, reuse."""

    horizon: int = 15
    """Steps of a plan, H (paper: 15)."""
    candidates: int = 5
    """Action sequences refined in parallel, N (paper: 5)."""
    iterations: int = 1
    """Steps of gradient ascent, I (paper: 1); 0 only chooses among the policy's rollouts."""
    step_size: float = 0.1
    """Length of a step along the clipped gradient of J, alpha (paper: 0.1)."""
    reuse: float = 0.1
    """Weight of the previous plan, shifted by one step, in the candidates, rho (paper: 0.1)."""
    discount: float = 0.99
    """Discount per agent step (paper: 0.99)."""
    uncertainty: float = 0.1
    """Weight of the spread of the value heads in J, lambda_u (ours); 0 switches the penalty off."""
