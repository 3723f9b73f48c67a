"""Whether the value heads' spread is larger where they err: spread and error of V on states of a checkpoint.

    python -m benchmarks.heads CHECKPOINT [CHECKPOINT ...] [--episodes 32] [--num-envs 16] [--out FILE.json]

`on-policy`: every tenth state of episodes under the actor's mode. `perturbed`: the state after ten steps with N(0, 1)
added to the actions; from there the actor acts without noise; repeated every 160 steps. The error is that of the heads'
mean against the discounted rewards of the next 150 steps plus the value after them; environment seeds count up from
20000. `heads' correlation`: mean over pairs of heads of the correlation of their values over states. `agreement`:
Spearman's rank correlation of spread and |error|. `top tenth`: the mean spread in the tenth of states with the largest
error, divided by that in the others.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from scipy import stats

from dreamer_mpc.agents.dreamer import Dreamer
from dreamer_mpc.config import trained_config
from dreamer_mpc.config.make import load_agent, make_envs
from dreamer_mpc.envs.rows import RowVectorEnv
from dreamer_mpc.planners import Policy
from dreamer_mpc.runs.checkpoint import load_newest
from dreamer_mpc.util.device import choose_device
from dreamer_mpc.util.errors import UserError

SEED = 20_000
PERTURBED_STEPS, AHEAD, EVERY = 10, 150, 10
NOISE = 1.0  # standard deviation, added to actions in [-1, 1]


def play(
    agent: Dreamer, envs: RowVectorEnv, episodes: int, perturb: bool
) -> tuple[Float[np.ndarray, "K T E"], Float[np.ndarray, "T E"]]:
    """Values of the heads in the state of every step, and the reward on arriving there, of episodes of equal length."""
    torch.manual_seed(SEED)
    values, rewards = [], []
    for first in range(0, episodes, envs.num_envs):
        image, _ = envs.reset(seed=SEED + first)
        carry, done, reward, step = agent.initial(envs.num_envs), False, np.zeros(envs.num_envs), 0
        heads, paid = [], []
        while not done:
            noise = NOISE if perturb and step % (PERTURBED_STEPS + AHEAD) < PERTURBED_STEPS else 0.0
            is_first = torch.full((envs.num_envs,), step == 0, device=agent.device)
            act = agent.act(Policy(), carry, torch.from_numpy(image).to(agent.device), is_first, noise)
            carry = act.carry
            with torch.no_grad():
                heads.append(agent.model.value(carry.state).cpu().numpy())
            paid.append(reward)
            image, reward, terminated, truncated, _ = envs.step(act.action.cpu().numpy())
            over = terminated | truncated
            if over.any() and not over.all():
                raise UserError("the episodes of this environment differ in length, which this measure does not take")
            done, step = bool(over.all()), step + 1
        values.append(np.stack(heads, axis=1))  # [K, T, B]
        rewards.append(np.stack(paid))
    return np.concatenate(values, axis=-1)[..., :episodes], np.concatenate(rewards, axis=-1)[..., :episodes]


def realised(
    values: Float[np.ndarray, "K T E"], rewards: Float[np.ndarray, "T E"], times: np.ndarray, discount: float
) -> Float[np.ndarray, "N E"]:
    """Returns from the steps `times`: AHEAD rewards, the state's own first, then the heads' mean."""
    weights = discount ** np.arange(AHEAD)
    sums = [weights @ rewards[t : t + AHEAD] for t in times]
    return np.stack(sums) + discount**AHEAD * values.mean(0)[times + AHEAD]


def measure(agent: Dreamer, envs: RowVectorEnv, episodes: int, discount: float, perturb: bool) -> dict[str, float]:
    """One row of the table."""
    values, rewards = play(agent, envs, episodes, perturb)
    last = values.shape[1] - AHEAD
    times = np.arange(PERTURBED_STEPS, last, PERTURBED_STEPS + AHEAD) if perturb else np.arange(0, last, EVERY)
    at = values[:, times]  # [K, N, E]
    error = np.abs(at.mean(0) - realised(values, rewards, times, discount)).ravel()
    spread = at.std(0).ravel()
    large = error >= np.quantile(error, 0.9)
    heads = np.corrcoef(at.reshape(len(at), -1))
    return {
        "states": spread.size,
        "value": float(at.mean()),
        "error": float(error.mean()),
        "spread": float(spread.mean()),
        "heads_correlation": float(heads[np.triu_indices(len(at), 1)].mean()),
        "agreement": float(stats.spearmanr(spread, error).statistic),
        "top_tenth": float(spread[large].mean() / spread[~large].mean()),
    }


def main(argv: Sequence[str] | None = None) -> list[dict]:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT")
    parser.add_argument("--episodes", type=int, default=32)
    parser.add_argument("--num-envs", type=int, default=16)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    device = choose_device(args.device)
    rows = []
    print(
        f"{'checkpoint':44}{'targets':>8}{'states of':>11}{'V':>8}{'|error|':>9}{'spread':>8}"
        f"{'heads corr.':>13}{'agreement':>11}{'top tenth':>11}"
    )
    for name in args.checkpoints:
        file, checkpoint, _ = load_newest(name)
        config = trained_config(checkpoint, str(file))
        envs = make_envs(config, args.num_envs, device)
        try:
            agent = load_agent(checkpoint, config, envs.single_action_space.shape[0], device)
            for perturb in (False, True):
                row = measure(agent, envs, args.episodes, config.behavior.discount, perturb)
                kind = "perturbed" if perturb else "on-policy"
                rows.append({"checkpoint": name, "targets": config.behavior.head_targets, "kind": kind} | row)
                print(
                    f"{name:44}{config.behavior.head_targets:>8}{kind:>11}{row['value']:8.1f}{row['error']:9.2f}"
                    f"{row['spread']:8.3f}{row['heads_correlation']:13.4f}{row['agreement']:11.2f}{row['top_tenth']:11.2f}",
                    flush=True,
                )
        finally:
            envs.close()
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1) + "\n")
    return rows


if __name__ == "__main__":
    main()
