"""The trained agents that are evaluated."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreamer_mpc.config import Config, trained_config
from dreamer_mpc.envs.scene import WARP
from dreamer_mpc.runs.checkpoint import Checkpoint, load_checkpoint, load_newest
from dreamer_mpc.runs.folder import RunFolder
from dreamer_mpc.util.errors import UserError

YOUNGER = ("env_args", "image_size", "grayscale", "frame_stack")  # compare.json of older versions lacks them


@dataclass(frozen=True)
class Subject:
    """A trained agent to evaluate: a checkpoint and its training configuration."""

    path: Path
    checkpoint: Checkpoint
    trained: Config

    @classmethod
    def load(cls, path: str | Path) -> "Subject":
        """Read a checkpoint file, or the newest undamaged one of a run folder; UserError where there is none.

        Damaged checkpoints are named on the terminal.
        """

        def read(file: Path) -> "Subject":
            checkpoint = load_checkpoint(file)
            return cls(file, checkpoint, trained_config(checkpoint, str(file)))

        _, subject, notes = load_newest(path, read)
        for note in notes:
            print(note)
        return subject

    @property
    def run(self) -> RunFolder:
        """The folder of its run."""
        return RunFolder.of_checkpoint(self.path)

    def task(self) -> dict[str, Any]:
        """The settings that must be equal for returns to be comparable; of `YOUNGER` those that are not usual."""
        usual = Config()
        task = {key: getattr(self.trained, key) for key in ("env", "action_repeat", "camera", "max_env_steps")}
        younger = {key: getattr(self.trained, key) for key in YOUNGER}
        return task | {key: value for key, value in younger.items() if value != getattr(usual, key)}


def same_task(subjects: list[Subject]) -> None:
    """UserError unless all were trained on the same task."""
    first = subjects[0]
    for other in subjects[1:]:
        for key in first.task() | other.task():
            one, another = getattr(first.trained, key), getattr(other.trained, key)
            if one != another:
                raise UserError(
                    f"checkpoints of different tasks: {first.path} was trained with {key} {one}, {other.path} with "
                    f"{key} {another}; compare one task at a time"
                )


def one_world(subjects: list[Subject], asked: str | None) -> None:
    """UserError where some were trained in pictures by warp and others not, unless a render quality is `asked` for."""
    first = subjects[0]
    for other in subjects[1:]:
        one, another = first.trained.render_quality, other.trained.render_quality
        if asked is None and (one == WARP) != (another == WARP):
            raise UserError(
                f"{first.path} was trained with render_quality {one}, {other.path} with {another}: name the one that "
                "all of them play in with --render-quality"
            )
