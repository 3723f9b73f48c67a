"""The spread of J among Dream-MPC's candidates, and the effect of its ascent on J, on states of one episode.

    python -m benchmarks.ascent pretrained/cheetah-run

40 states, every fifth of the first 200 of an episode under the policy (environment seed 10000), rendered as in the
agent's training; 5 candidates each. First the choice, with the paper's settings, then the ascent:

- The candidates of a state start from the same state and so, with a narrow policy, from nearly the same first action.
  Their later actions depend on each candidate's own latent draw, and J evaluates a candidate on that draw. So J is also
  taken in expectation (mean over 512 draws shared by all candidates of a state), and on one new draw for each, as in a
  later iteration of the ascent. Standard deviations over the five candidates of a state are averaged over states, and
  so is the correlation of both J in a state. Then the value heads: the correlation of each pair over the last states
  of all candidates, and the penalty of these states relative to their values.
- Candidates before and after the ascent come from the same draws; both J are computed under the prior's mean, so that
  they differ only by the actions.
"""

import argparse
import dataclasses
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from dreamer_mpc.agents.dreamer import Dreamer
from dreamer_mpc.config import config_from_dict, load_presets
from dreamer_mpc.config.make import load_agent, make_envs
from dreamer_mpc.planners import DreamMPC, Policy
from dreamer_mpc.planners.objective import ensemble_std
from dreamer_mpc.planners.rollout import draw_noise, rollout
from dreamer_mpc.runs.checkpoint import load_checkpoint

DRAWS = 512
AT_ONCE = 16  # draws rolled out at once


class Choice(NamedTuple):
    """The candidates of a planner in B states."""

    seen: Float[Tensor, "B N"]  # J of the proposals as computed by the planner, each on its own draw
    expected: Float[Tensor, "B N"]  # J of the same actions, mean over draws that all candidates share
    deviation: Float[Tensor, "B N"]  # standard deviation of J over those draws
    again: Float[Tensor, "R B N"]  # J of the same actions, each candidate on its own new draw, R times
    first: Float[Tensor, "B N A"]  # first actions of the proposals
    last: Float[Tensor, "B N A"]  # last actions of the proposals
    heads: Float[Tensor, "K BN"]  # value heads in the last states of all proposals


def episode_states(agent: Dreamer, envs, steps: int = 200, every: int = 5) -> Float[Tensor, "B S"]:
    """Posterior states along one episode under the policy."""
    torch.manual_seed(0)  # states are samples
    image, _ = envs.reset(seed=[10_000])
    carry, states = agent.initial(1), []
    for t in range(steps):
        act = agent.act(Policy(), carry, torch.from_numpy(image), torch.tensor([t == 0]))
        carry = act.carry
        if t % every == 0:
            states.append(carry.state)
        image, *_ = envs.step(act.action.numpy())
    return torch.cat(states)


@torch.no_grad()
def choice(agent: Dreamer, planner: DreamMPC, states: Float[Tensor, "B S"], draws: int = DRAWS) -> Choice:
    """The proposals of `planner` before any ascent, and their J in the three forms."""
    torch.manual_seed(0)
    proposed = dataclasses.replace(planner, iterations=0).plan(agent.model, states)
    objective, values = planner.objective_function(), []
    for done in range(0, draws, AT_ONCE):
        noise = _shared_noise(agent, planner, states, min(AT_ONCE, draws - done))
        count = len(noise) // len(states)
        actions = proposed.candidates.repeat(count, 1, 1, 1)  # [D * B, N, H, A]
        reached = rollout(agent.model, states.repeat(count, 1), actions, noise)
        values.append(objective(agent.model, reached).unflatten(0, (count, -1)))
    heads, actions = agent.model.value(reached[: len(states), :, -1]).flatten(1), proposed.candidates
    values = torch.cat(values)  # [draws, B, N]
    again = torch.stack([objective(agent.model, rollout(agent.model, states, actions)) for _ in range(AT_ONCE)])
    first, last = actions[:, :, 0], actions[:, :, -1]
    return Choice(proposed.candidate_values, values.mean(0), values.std(0), again, first, last, heads)


def _shared_noise(
    agent: Dreamer, planner: DreamMPC, states: Float[Tensor, "B S"], draws: int
) -> Float[Tensor, "M N H Z"]:
    """Noise of each step: `draws` draws for every state, the same for all candidates of a state."""
    drawn = draw_noise(agent.model, states.repeat(draws, 1), planner.horizon, "fixed")
    return drawn[:, None].expand(-1, planner.candidates, -1, -1)


def describe(found: Choice, uncertainty: float) -> list[str]:
    """The summary of `found` in lines; `uncertainty` is the weight of the penalty."""
    seen, expected = (x - x.mean(1, keepdim=True) for x in (found.seen, found.expected))
    both = (seen * expected).sum(1) / (seen.norm(dim=1) * expected.norm(dim=1)).clamp_min(1e-12)
    rows, best = torch.arange(len(found.seen)), found.seen.argmax(1)
    optimism = (found.seen - found.expected)[rows, best].mean()
    off = torch.triu_indices(len(found.heads), len(found.heads), offset=1)
    heads = torch.corrcoef(found.heads)[off[0], off[1]]
    penalty = uncertainty * ensemble_std(found.heads).mean()
    return [
        f"J of a candidate, in expectation: {found.expected.mean():.2f}; from draw to draw its standard deviation is "
        f"{found.deviation.mean():.2f}",
        f"standard deviation of J over the candidates of a state: {found.seen.std(1).mean():.2f} as seen, "
        f"{found.expected.std(1).mean():.2f} in expectation, correlation of the two {both.mean():.2f}; "
        f"{found.again.std(2).mean():.2f} on new draws, one for each",
        f"the candidate with the best J as seen: {optimism:.2f} less in expectation than seen; in expectation "
        f"{expected[rows, best].mean():+.2f} beside the mean candidate, the best one {expected.amax(1).mean():+.2f}",
        f"standard deviation of an action over the candidates: {found.first.std(1).mean():.4f} the first, "
        f"{found.last.std(1).mean():.4f} the last",
        f"value heads: correlation of two {heads.min():.4f} to {heads.max():.4f}, mean {heads.mean():.4f}; the penalty "
        f"of a last state is {penalty:.3f}, {100 * penalty / found.heads.mean().abs():.2f} % of its value",
    ]


@torch.no_grad()
def change(
    agent: Dreamer, planner: DreamMPC, states: Float[Tensor, "B S"]
) -> tuple[Float[Tensor, "B N"], Float[Tensor, "B N"]]:
    """For every candidate: the change of J by the ascent, and the change of its first action (Euclidean norm)."""
    values, first = [], []
    for variant in (dataclasses.replace(planner, iterations=0), planner):
        torch.manual_seed(0)
        candidates = variant.plan(agent.model, states).candidates
        noise = torch.zeros(*candidates.shape[:3], agent.model.noise_dim)
        values.append(planner.objective_function()(agent.model, rollout(agent.model, states, candidates, noise)))
        first.append(candidates[:, :, 0])
    return values[1] - values[0], (first[1] - first[0]).norm(dim=-1)


def main(argv: list[str] | None = None) -> None:
    """Measure the choice and a few settings of the ascent, and print both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--draws", type=int, default=DRAWS, help="latent draws that the expected J is the mean of")
    args = parser.parse_args(argv)
    checkpoint = load_checkpoint(args.checkpoint)
    config = config_from_dict(checkpoint.config, "checkpoint")
    device = torch.device("cpu")
    envs = make_envs(config, 1, device)
    agent = load_agent(checkpoint, config, envs.single_action_space.shape[0], device)
    states = episode_states(agent, envs)
    envs.close()
    print(f"{args.checkpoint}, {config.env}, rendered {config.render_quality}: {len(states)} states")
    planner = load_presets("planner/dream-mpc-paper").dream_mpc
    print(*describe(choice(agent, planner, states, args.draws), planner.uncertainty), sep="\n")
    print("latent_noise  iterations  grad_clip   mean dJ  median dJ  share up  first action")
    for noise in ("fresh", "mean"):
        for iterations, clip in [(1, 0.3), (1, 1.0), (1, 3.0), (1, 10.0), (5, 1.0)]:
            variant = dataclasses.replace(planner, latent_noise=noise, iterations=iterations, grad_clip=clip)
            d, moved = change(agent, variant, states)
            numbers = f"{d.mean():8.3f}  {d.median():9.3f}  {(d > 0).float().mean():8.2f}  {moved.mean():12.3f}"
            print(f"{noise:12}  {iterations:10}  {clip:9}  {numbers}")


if __name__ == "__main__":
    main()
