"""Set-up of a training run, new or from a checkpoint: folder, environments, agent and replay."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from dreamer_mpc.agents.protocol import Agent
from dreamer_mpc.config import Config, check_start, to_yaml, trained_config, training_planner
from dreamer_mpc.config.make import (
    choose_rendering_gpu,
    env_settings,
    load_agent,
    make_agent,
    make_envs,
    replay_capacity,
    try_renderer,
)
from dreamer_mpc.data.collect import Collector, Counters
from dreamer_mpc.data.placement import check_storage, choose_storage
from dreamer_mpc.data.replay import Replay, frame_bytes
from dreamer_mpc.envs import EnvError, try_env
from dreamer_mpc.envs.rows import RowVectorEnv
from dreamer_mpc.evaluation.player import evaluation_envs
from dreamer_mpc.report.words import plural
from dreamer_mpc.runs.checkpoint import Checkpoint
from dreamer_mpc.runs.folder import RunFolder, default_run_dir
from dreamer_mpc.runs.logger import check_backend
from dreamer_mpc.runs.resume import SavedRun
from dreamer_mpc.runs.saving import Saver
from dreamer_mpc.training.beside import Beside, plays_beside
from dreamer_mpc.training.initial import Initial
from dreamer_mpc.util.device import choose_device, device_name
from dreamer_mpc.util.errors import UserError, cannot_write
from dreamer_mpc.util.files import discard, output_path
from dreamer_mpc.util.memory import GIB, free_disk, is_out_of_memory
from dreamer_mpc.util.owner import alone_in
from dreamer_mpc.util.stop import Stop, Stopped

ANOTHER = "wait for it, stop it, or choose another --run-dir"
NOTHING_SAVED = "stopped before the first step: there was nothing to save"


def claim_folder(config: Config, owned: contextlib.ExitStack) -> tuple[RunFolder, Initial | None]:
    """The folder of a new run, and what its weights come from, after settings and environment were checked.

    It is locked until `owned` is closed; where that is with a refusal before the run begins, nothing of it stays.
    UserError, or EnvError as in `try_env`.
    """
    path = output_path(config.run_dir or default_run_dir(config))
    _check_settings(config)
    initial = Initial.of(config)
    length, episodes = config.replay.sequence_length, config.train.seed_episodes
    longest = try_env(config.env, config.num_envs, frames=max(length, 2), episodes=episodes, **env_settings(config))
    try_renderer(config)
    if longest is not None and longest < length and not config.replay.across_episodes:
        raise UserError(_too_short(config, longest))
    owned.enter_context(alone_in(path, ANOTHER))
    # An old run that is to be overwritten is deleted only when the new run is ready to start.
    if config.overwrite and path.exists():
        return RunFolder(path), initial
    folder = RunFolder.create(path)
    owned.enter_context(_given_back_if_refused(folder))
    return folder, initial


@contextlib.contextmanager
def _given_back_if_refused(folder: RunFolder) -> Iterator[None]:
    """Undo the claim of `folder` if what ends this context is the user's to mend, and nothing was written there."""
    try:
        yield
    except Exception as error:
        if isinstance(error, (UserError, EnvError)) or is_out_of_memory(error):
            folder.give_back()
        raise


def check_resumed(saved: SavedRun, config: Config, changed: bool) -> None:
    """UserError where the run `saved` cannot go on with `config`, which is `changed` from what it had, or is not.

    Raises `Stopped` where it is complete: last, so that settings are refused as they are before its end. Those that it
    had are not checked again then, as its device or its logger's package may be missing here.
    """
    saved.check(config)
    complete = saved.is_complete(config)
    if changed or not complete:
        _check_settings(config)
    if not complete:
        return
    done = saved.checkpoint.counters.env_steps
    dropped = "; the changed settings had no effect: give them again with it" if changed else ""
    reached = f"{saved.folder.path} is complete with its {done:,} env steps"
    raise Stopped(f"{reached}; with a larger --env-steps it goes on{dropped}")


def _check_settings(config: Config) -> None:
    """UserError for what can be found wrong with settings before anything is built."""
    check_start(config)
    replay_capacity(config)
    check_storage(config.replay.storage, choose_device(config.device))
    check_backend(config.logger)


def _too_short(config: Config, longest: int) -> str:
    """The error where no episode, the longest of `longest` frames, is long enough for an update, and what helps."""
    length, repeat = config.replay.sequence_length, config.action_repeat
    more = ", or --action-repeat to 1" if repeat > 1 and (longest - 2) * repeat + 2 >= length else ""
    return (
        f"{config.env} ends its episodes early: the longest of {config.train.seed_episodes} with random actions has "
        f"{longest} frames, and an update takes {length} of one episode: lower --replay.sequence-length to "
        f"{longest} or less{more}, or let sequences go on into the next episode (--replay.across-episodes)"
    )


def begin_folder(folder: RunFolder, config: Config, device: torch.device, about: dict[str, Any]) -> None:
    """Write settings, and versions with `about`; only now, so that a failed set-up leaves the folder unchanged."""
    if config.overwrite and not config.resume:
        RunFolder.create(folder.path, overwrite=True)
    folder.clear_leftovers()
    try:
        folder.write_config(to_yaml(config))
        folder.write_versions({"device": device_name(device), **about})
    except OSError as error:
        instead = "--resume a copy of it in another place" if config.resume else "choose another --run-dir"
        raise cannot_write(f"run folder {folder.path}", error, instead) from error


@dataclass
class Parts:
    """The objects of a training run, and lines for the user about it."""

    envs: RowVectorEnv
    eval_envs: RowVectorEnv | None  # None: those of `beside`
    beside: Beside | None
    agent: Agent
    replay: Replay
    collector: Collector
    saver: Saver
    notes: list[str] = field(default_factory=list)


def open_parts(
    config: Config,
    folder: RunFolder,
    counters: Counters,
    checkpoint: Checkpoint | None,
    initial: Initial | None,
    stop: Stop,
    opened: contextlib.ExitStack,
) -> Parts:
    """Build everything from `config`, or restore it from `checkpoint`; `opened` closes it at the end.

    Weights of a new agent are drawn from torch's generator, or are those of `initial`.
    """
    device, capacity = choose_device(config.device), replay_capacity(config)
    notes = choose_rendering_gpu(config, device)
    envs = make_envs(config, config.num_envs, device)
    opened.callback(envs.close)
    eval_envs, beside = None, None
    if plays_beside(config, device):
        beside = Beside(config)  # after `make_envs`, which decides where to render
        opened.callback(beside.close)
    else:
        eval_envs = evaluation_envs(config, device)
        opened.callback(eval_envs.close)
    action_dim = envs.single_action_space.shape[0]
    if checkpoint:
        agent = load_agent(checkpoint, config, action_dim, device)
    else:
        agent = make_agent(config, action_dim, device)
    if initial:
        notes.append(initial.load_into(agent))
    stop.check(NOTHING_SAVED)
    replay, line = _make_replay(config, folder, capacity, agent, opened)
    collector = Collector(envs, agent, replay, counters, config.seed)
    saver = Saver(folder, replay, config.train.keep_checkpoints)
    parts = Parts(envs, eval_envs, beside, agent, replay, collector, saver, [*notes, line])
    if checkpoint:
        _restore(parts, config, checkpoint)
    else:
        collector.begin(config.train.seed_episodes)  # an environment that cannot be reset leaves no run folder
    return parts


def _make_replay(
    config: Config,
    folder: RunFolder,
    capacity: int,
    agent: Agent,
    opened: contextlib.ExitStack,
) -> tuple[Replay, str]:
    action_dim, state_dim = agent.model.action_dim, agent.state_dim if config.replay.states else 0
    images = config.images.shape
    required = capacity * frame_bytes(action_dim, images, state_dim)
    place, memmap, line = choose_storage(config.replay.storage, required, agent.device, folder.path)
    if memmap:
        opened.callback(discard, memmap)  # its frames are also saved in the replay files
    replay = Replay(
        capacity, action_dim, config.num_envs, images, place,
        memmap=memmap, seed=config.seed, state_dim=state_dim, across_episodes=config.replay.across_episodes,
    )  # fmt: skip
    saved = f"saved as it grows, at last {required / GIB:.2f} GiB on disk"
    return replay, f"{line}, {capacity:,} frames; {saved} ({free_disk(folder.path) / GIB:.0f} GiB free)"


def _restore(parts: Parts, config: Config, checkpoint: Checkpoint) -> None:
    """Restore replay and the episodes in progress; the networks are already restored."""
    parts.replay.load_state_dict(checkpoint.replay)
    if not parts.saver.restore(checkpoint):
        parts.notes.append(
            "the latent states in replay were not saved with this checkpoint, or are damaged: a sequence starts from "
            "the initial state until updates have refreshed them"
        )
    same_planner = training_planner(trained_config(checkpoint, "the checkpoint")) == training_planner(config)
    broken = parts.collector.load_state_dict(checkpoint.collector, with_memory=same_planner)
    if broken:
        parts.notes.append(
            f"{plural(len(broken), 'episode')} in progress could not be repeated from seed and actions and "
            "counts as ended: this environment does not repeat itself, or was changed"
        )
