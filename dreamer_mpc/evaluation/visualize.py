"""Videos and pictures of observations, reconstructions and open-loop imagination."""

import dataclasses
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from dreamer_mpc.agents.latents import LatentWorld
from dreamer_mpc.agents.protocol import Agent
from dreamer_mpc.evaluation.episodes import EpisodeRecording, Evaluation
from dreamer_mpc.planners import Ascent, Planner
from dreamer_mpc.planners.rollout import rollout
from dreamer_mpc.report.styles import style
from dreamer_mpc.report.video import Decision, Page, decision_picture, write_mp4
from dreamer_mpc.report.words import plural
from dreamer_mpc.util.device import preserved_rng
from dreamer_mpc.util.encode import from_jpeg
from dreamer_mpc.util.errors import in_one_line

DREAM_STEPS = 50  # open-loop steps before imagination starts again from the posterior
UNKNOWN_SPEED = 25.0  # steps of a second of a video, where the environment does not say its own
JUDGING_DRAWS = 64


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
    stem: Path,
    agent: Agent,
    planner: Planner,
    method: str,
    evaluation: Evaluation,
    title: str,
    say: Callable[[str], None],
) -> list[Path]:
    """Write `<stem>.mp4` of a recorded episode and `<stem>-decision.png` of a step in its middle; gives the paths.

    `method` is the planner's name, whose colour they have, and `title` says what is shown. Whatever goes wrong with one
    of them costs that one: `say` gets a line.
    """
    video, picture = stem.with_name(f"{stem.name}.mp4"), stem.with_name(f"{stem.name}-decision.png")
    recording, color = evaluation.recording, style(method).color
    makers = {
        "video": lambda: episode_video(video, agent, recording, title, color) or video,
        "picture": lambda: (
            decision(picture, agent, planner, recording, len(recording.image) // 2, title, color) and picture
        ),
    }
    written = []
    for what, make in makers.items():
        try:
            written.append(make())
        except Exception as error:
            say(f"no {what} of {title}: {in_one_line(error)}")
    return [path for path in written if path]


@torch.no_grad()
def episode_video(path: Path, agent: Agent, recording: EpisodeRecording, title: str, color: str) -> None:
    """One MP4 at real speed: the frame at full size, and what the agent sees, its reconstruction and its imagination.

    Each frame also has the time, the rewards, and J of its plan (-inf where the planner fell back to the policy).
    """
    state, action = torch.stack(recording.state), torch.stack(recording.action)  # [T, S], [T, A]
    imagined = imagine_open_loop(agent.model, state, action)
    panels = [_shown(agent, np.stack(recording.image)), _decode(agent, state), _decode(agent, imagined)]
    names = [f"agent sees, {panels[0].shape[1]} pixels", "reconstruction", "imagination"]
    views = (_view(agent, recording, t) for t in range(len(state)))
    first = next(views)
    page, facts = Page(_with_speed(title, recording), color, names, first), _facts(agent, recording, imagined)
    shown = zip(chain([first], views), zip(*panels, strict=True), facts, strict=True)
    write_mp4(path, (page.frame(*frame) for frame in shown), recording.facts.steps_per_s or UNKNOWN_SPEED)


def _view(agent: Agent, recording: EpisodeRecording, t: int) -> UInt8[np.ndarray, "h w 3"]:
    """The frame at full size, or where there is none, what the agent sees."""
    packed = recording.view[t]
    return _shown(agent, recording.image[t]) if packed is None else from_jpeg(packed)


def _with_speed(title: str, recording: EpisodeRecording) -> str:
    speed = recording.facts.steps_per_s
    return f"{title}, real speed" if speed else f"{title}, {UNKNOWN_SPEED:g} steps a second"


def _facts(agent: Agent, recording: EpisodeRecording, imagined: Float[Tensor, "T S"]) -> list[list[str]]:
    """The lines beside each of the T frames."""
    expected = agent.model.reward(imagined).tolist()
    paid = np.array([0.0, *recording.reward])  # the reward on arriving at frame t
    so_far, speed = paid.cumsum(), recording.facts.steps_per_s
    return [
        [
            f"step {t}, {t / speed:.2f} s" if speed else f"step {t}",
            f"return so far {so_far[t]:.1f}",
            f"reward {paid[t]:.2f}",
            f"imagined reward {expected[t]:.2f}",
            f"imagined {t % DREAM_STEPS} steps ahead",
            f"J of the plan {recording.value[t]:.1f}",
        ]
        for t in range(len(imagined))
    ]


def _decode(agent: Agent, state: Float[Tensor, "T S"], chunk: int = 250) -> UInt8[np.ndarray, "T H W 3"]:
    images = [agent.model.world_model.decode(part).cpu().numpy() for part in state.split(chunk)]
    return _shown(agent, np.concatenate(images))


def _shown(agent: Agent, images: UInt8[np.ndarray, "*t H W C"]) -> UInt8[np.ndarray, "*t H W 3"]:
    """The newest frame of stacked ones, and gray as three equal channels."""
    channels = agent.model.world_model.images.channels
    newest = images[..., -channels:]
    return np.repeat(newest, 3, axis=-1) if channels == 1 else newest


@torch.no_grad()
def decision(
    path: Path, agent: Agent, planner: Planner, recording: EpisodeRecording, t: int, title: str, color: str
) -> bool:
    """One picture of a plan from the state at step `t`: decoded before and after the ascent, with J of each.

    The plan is computed again with new draws, which also give the candidates before the ascent. Both J are means over
    `JUDGING_DRAWS` draws of the model's noise, the same for both, that no plan was made with. For a planner without
    ascent, nothing is drawn and False is returned.
    """
    if not isinstance(planner, Ascent) or planner.iterations == 0:
        return False
    state = recording.state[t][None]
    after = _replan(agent, planner, state, recording.memory[t])
    before = _replan(agent, dataclasses.replace(planner, iterations=0), state, recording.memory[t])
    chosen = after.candidate_values[0].argmax()
    frames, values, actions = [], [], []
    for candidates in (before.candidates, after.candidates):
        sequence = candidates[:, chosen, None]  # [1, 1, H, A]
        mean = state.new_zeros(1, 1, planner.horizon, agent.model.noise_dim)
        frames.append(_decode(agent, rollout(agent.model, state, sequence, mean)[0, 0]))
        values.append(_judged(agent, planner, state, sequence[0, :, : planner.ascended]))
        actions.append(sequence[0, 0].cpu().numpy())
    gain = values[1] - values[0]
    error = float(gain.std()) / len(gain) ** 0.5
    names = recording.facts.actions or tuple(f"action {i}" for i in range(agent.model.action_dim))
    j_before, j_after = (float(value.mean()) for value in values)
    real = _shown(agent, recording.image[t])
    drawn = Decision(real, *frames, *actions, j_before, j_after, error, names, meaning(planner))
    decision_picture(path, drawn, f"{title}: the decision at step {t}", color)
    return True


def meaning(planner: Ascent) -> str:
    """J of a planner, in words."""
    steps, discount = planner.horizon, f"discount {planner.discount:g}"
    kinds = {
        "return": f"rewards of {steps - 1} imagined steps and the value of step {steps}, {discount}",
        "lambda-return": f"lambda-return of {steps} imagined steps, lambda {planner.return_lambda:g}, {discount}",
        "rewards": f"rewards of {steps} imagined steps, {discount}",
    }
    words = f"J: {kinds[planner.objective]}"
    if planner.uncertainty:
        words += f", minus {planner.uncertainty:g} times the spread of the value heads"
    if planner.latent_noise != "mean":
        words += f"; mean of {JUDGING_DRAWS} draws of the model's noise, the same for both (s.e.: standard error)"
    return f"{words}. {plural(planner.candidates, 'candidate')}, {plural(planner.iterations, 'iteration')} of ascent."


def _judged(agent: Agent, planner: Ascent, state: Float[Tensor, "1 S"], actions: Float[Tensor, "1 h A"]):
    """J of a plan under each draw, float [M]; the same draws at every call."""
    with preserved_rng(agent.device):
        torch.manual_seed(1)
        return planner.judge(agent.model, state, actions, JUDGING_DRAWS)[0][0]


def _replan(agent: Agent, planner: Ascent, state: Float[Tensor, "1 S"], memory):
    with preserved_rng(agent.device):
        torch.manual_seed(0)
        return planner.plan(agent.model, state, memory)
