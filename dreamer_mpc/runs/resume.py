"""Opening a run to go on with it: the checkpoint that is whole, and what may not change."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dreamer_mpc.config import Config, load_presets, trained_config
from dreamer_mpc.data.storage import check_files
from dreamer_mpc.runs.checkpoint import list_checkpoints, load_checkpoint, load_newest
from dreamer_mpc.runs.folder import RunFolder
from dreamer_mpc.util.errors import UserError

FIXED = ("env", "num_envs", "action_repeat", "camera")  # what is in replay, and in the episodes in progress, has these
STATE = ("training", "collector", "replay", "replay_files", "random", "records")


@dataclass(frozen=True)
class SavedRun:
    """A run that can go on: from `payload`, or from its beginning where it was killed before its first checkpoint."""

    folder: RunFolder
    config: Config
    payload: dict[str, Any] | None
    notes: list[str] = field(default_factory=list)  # for the user

    def check(self, config: Config) -> None:
        """UserError where the run cannot go on with `config`."""
        path = self.folder.path
        if config.agent != self.config.agent:
            raise UserError(f"{path} holds a {self.config.agent} agent: leave --agent out, or start another run")
        for name in FIXED:
            before, now = getattr(self.config, name), getattr(config, name)
            if before != now:
                flag = f"--{name.replace('_', '-')}"
                raise UserError(
                    f"{flag} of {path} is {before} and cannot become {now}: leave it out, or start another run"
                )
        done = self.payload["counters"]["env_steps"] if self.payload else 0
        if done >= config.env_steps and self.payload["training"]["finished"]:
            raise UserError(f"{path} has reached its {done:,} env steps: give more with --env-steps")


def open_run(path: str) -> SavedRun:
    """The run in the folder `path` with its newest checkpoint that is whole, its replay included.

    UserError where there is no run, or none of its checkpoints can be resumed from.
    """
    folder = RunFolder.open(path)

    def read(file: Path) -> tuple[dict[str, Any], Config]:
        payload = load_checkpoint(file)
        if any(name not in payload for name in STATE):
            raise UserError(f"{file} holds an agent but no state of a training: evaluate it, or start another run")
        check_files(folder.replay, payload["replay_files"], payload["replay"]["oldest"].tolist())
        return payload, trained_config(payload, str(file))

    if list_checkpoints(folder.checkpoints):
        _, (payload, config), notes = load_newest(folder.checkpoints, read)
        return SavedRun(folder, config, payload, notes)
    if not folder.config.exists():
        raise UserError(f"{path} was claimed by a run that had not begun: start that one again, with its own command")
    note = f"{path} has no checkpoint yet: it starts again from its beginning"
    return SavedRun(folder, load_presets(str(folder.config)), None, [note])
