"""Videos and pictures of observations, reconstructions and open-loop imagination."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from dreamer_mpc.agents.latents import LatentWorld
from dreamer_mpc.agents.protocol import Agent
from dreamer_mpc.evaluation.episodes import EpisodeRecording, Evaluation
from dreamer_mpc.planners import PLANNERS, Ascent, Planner
from dreamer_mpc.planners.rollout import rollout
from dreamer_mpc.report.video import decision_picture, side_by_side, write_mp4
from dreamer_mpc.util.device import preserved_rng
from dreamer_mpc.util.errors import in_one_line

DREAM_STEPS = 50  # open-loop steps before imagination starts again from the posterior


@torch.no_grad()
def imagine_open_loop(
    model: LatentWorld, state: Float[Tensor, "T S"], action: Float[Tensor, "T A"]
) -> Float[Tensor, "T S"]:
    """Open-loop states under the executed actions, started again from the posterior every `DREAM_STEPS` steps."""
    imagined = []
    for start in range(0, len(state), DREAM_STEPS):
        taken = action[start : min(start + DREAM_STEPS, len(state)) - 1]
        mean = state.new_zeros(1, 1, len(taken), model.noise_dim)  # zero noise: the prior's mean
        imagined.append(state[start, None])
        if len(taken):
            imagined.append(rollout(model, state[start, None], taken[None, None], mean)[0, 0])
    return torch.cat(imagined)


def write_visuals(
    stem: Path, agent: Agent, planner: Planner, evaluation: Evaluation, env: str, of: str, say: Callable[[str], None]
) -> list[Path]:
    """Write `<stem>.mp4` of a recorded episode and `<stem>-decision.png` of a step in its middle; gives the paths.

    Whatever goes wrong with one of them costs that one: `say` gets a line, with `of` for what it would have shown.
    """
    video, picture = stem.with_name(f"{stem.name}.mp4"), stem.with_name(f"{stem.name}-decision.png")
    recording = evaluation.recording
    makers = {
        "video": lambda: episode_video(video, agent, recording) or video,
        "picture": lambda: (
            decision(picture, agent, planner, recording, len(recording.image) // 2, env) and picture
        ),
    }
    written = []
    for what, make in makers.items():
        try:
            written.append(make())
        except Exception as error:
            say(f"no {what} {of}: {in_one_line(error)}")
    return [path for path in written if path]


@torch.no_grad()
def episode_video(path: Path, agent: Agent, recording: EpisodeRecording, fps: int = 25) -> None:
    """One MP4: real frame, reconstruction, and open-loop imagination from the same start, side by side.

    Each frame shows J of its plan (-inf where the planner fell back to the policy) and the return so far.
    """
    state, action = torch.stack(recording.state), torch.stack(recording.action)  # [T, S], [T, A]
    imagined = imagine_open_loop(agent.model, state, action)
    expected = agent.model.reward(imagined).tolist()
    paid = np.array([0.0, *recording.reward])  # the reward on arriving at frame t
    so_far = paid.cumsum()
    footer = [
        f"step {t:3d}   J {recording.value[t]:.1f}   return so far {so_far[t]:.1f}   "
        f"dreaming {t % DREAM_STEPS:2d} steps ahead   reward {paid[t]:.2f}   dreamed {expected[t]:.2f}"
        for t in range(len(state))
    ]
    columns = {
        "real": _shown(agent, np.stack(recording.image)),
        "reconstruction": _decode(agent, state),
        "imagination": _decode(agent, imagined),
    }
    write_mp4(path, side_by_side(columns, footer=footer), fps)


def _decode(agent: Agent, state: Float[Tensor, "T S"], chunk: int = 250) -> UInt8[np.ndarray, "T H W 3"]:
    images = [agent.model.world_model.decode(part).cpu().numpy() for part in state.split(chunk)]
    return _shown(agent, np.concatenate(images))


def _shown(agent: Agent, images: UInt8[np.ndarray, "*t H W C"]) -> UInt8[np.ndarray, "*t H W 3"]:
    """The newest frame of stacked ones, and gray as three equal channels."""
    channels = agent.model.world_model.images.channels
    newest = images[..., -channels:]
    return np.repeat(newest, 3, axis=-1) if channels == 1 else newest


@torch.no_grad()
def decision(path: Path, agent: Agent, planner: Planner, recording: EpisodeRecording, t: int, env: str) -> bool:
    """One picture of a plan from the state at step `t`: decoded before and after the ascent, with J under each.

    The plan is computed again with new draws, which also give the candidates before the ascent. Both J are computed
    under the prior's mean, so that they differ only by the actions. For a planner without ascent, nothing is drawn
    and False is returned.
    """
    if not isinstance(planner, Ascent) or planner.iterations == 0:
        return False
    state = recording.state[t][None]
    after = _replan(agent, planner, state, recording.memory[t])
    before = _replan(agent, dataclasses.replace(planner, iterations=0), state, recording.memory[t])
    chosen = after.candidate_values[0].argmax()
    objective = planner.objective_function()
    frames, values, actions = [], [], []
    for candidates in (before.candidates, after.candidates):
        sequence = candidates[:, chosen, None]  # [1, 1, H, A]
        mean = state.new_zeros(1, 1, planner.horizon, agent.model.noise_dim)
        states = rollout(agent.model, state, sequence, mean)  # [1, 1, H, S]
        frames.append(_decode(agent, states[0, 0]))
        values.append(float(objective(agent.model, states)))
        actions.append(sequence[0, 0].cpu().numpy())
    name = next((name for name, kind in PLANNERS.items() if type(planner) is kind), type(planner).__name__)
    title = f"{env}, step {t}: one decision of {name} (N = {planner.candidates}, I = {planner.iterations})"
    decision_picture(path, *frames, *values, *actions, real=_shown(agent, recording.image[t]), title=title)
    return True


def _replan(agent: Agent, planner: Ascent, state: Float[Tensor, "1 S"], memory):
    with preserved_rng(agent.device):
        torch.manual_seed(0)
        return planner.plan(agent.model, state, memory)
