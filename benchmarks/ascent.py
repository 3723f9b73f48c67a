"""Does the ascent raise J? The change of J by Dream-MPC's gradient step, over states of one episode of a checkpoint.

    python -m benchmarks.ascent pretrained/cheetah-run

Candidates before and after come from the same draws; both J are taken under the prior's mean, so they differ by the
actions alone. 40 states, every fifth of an episode driven by the policy (environment seed 10000), 5 candidates each.
"""

import argparse
import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from dreamer_mpc.agent import Dreamer
from dreamer_mpc.checkpoint import load_checkpoint
from dreamer_mpc.config import config_from_dict
from dreamer_mpc.make import load_agent, make_envs
from dreamer_mpc.planners import DreamMPC, Policy
from dreamer_mpc.planners.objective import rollout


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
def change(
    agent: Dreamer, planner: DreamMPC, states: Float[Tensor, "B S"]
) -> tuple[Float[Tensor, "B N"], Float[Tensor, "B N"]]:
    """Of every candidate: J after the ascent minus J before it, and how far its first action moved (Euclidean norm)."""
    values, first = [], []
    for variant in (dataclasses.replace(planner, iterations=0), planner):
        torch.manual_seed(0)
        candidates = variant.plan(agent.model, states).candidates
        noise = [torch.zeros(*candidates.shape[:2], agent.model.world_model.rssm.stoch)] * planner.horizon
        values.append(planner.objective_function()(agent.model, rollout(agent.model, states, candidates, noise)))
        first.append(candidates[:, :, 0])
    return values[1] - values[0], (first[1] - first[0]).norm(dim=-1)


def main() -> None:
    """Measure a few settings and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    payload = load_checkpoint(parser.parse_args().checkpoint)
    config = dataclasses.replace(config_from_dict(payload["config"], "checkpoint"), render_quality="fast")
    device = torch.device("cpu")
    envs = make_envs(config, 1, device)
    agent = load_agent(payload, config, envs.single_action_space.shape[0], device)
    states = episode_states(agent, envs)
    print("latent_noise  iterations  grad_clip   mean dJ  median dJ  share up  first action")
    for noise in ("fresh", "mean"):
        for iterations, clip in [(1, 0.3), (1, 1.0), (1, 3.0), (1, 10.0), (5, 1.0)]:
            planner = DreamMPC(latent_noise=noise, iterations=iterations, grad_clip=clip)
            d, moved = change(agent, planner, states)
            numbers = f"{d.mean():8.3f}  {d.median():9.3f}  {(d > 0).float().mean():8.2f}  {moved.mean():12.3f}"
            print(f"{noise:12}  {iterations:10}  {clip:9}  {numbers}")


if __name__ == "__main__":
    main()
