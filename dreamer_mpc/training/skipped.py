"""Handling of skipped updates: the frames of the first are saved for inspection, and too many end the run."""

import json
from pathlib import Path

from safetensors.torch import save

from dreamer_mpc.agents.protocol import Agent, SkippedUpdates
from dreamer_mpc.data.replay import Replay
from dreamer_mpc.util.errors import UserError
from dreamer_mpc.util.files import atomic_path

RATES = {  # by kind of optimizer: what may be too high
    "adam": ("world-model-lr", "actor-lr", "critic-lr", "grad-clip"), "laprop": ("lr", "relative-clip"),
}  # fmt: skip


class SkippedUpdateWatch:
    """Saves the frames of the first skipped update of a run to `folder`; ends the run after too many.

    `limit` consecutive skipped updates are too many; `optimizer` is the kind of the agent's.
    """

    def __init__(self, folder: Path, replay: Replay, limit: int, optimizer: str = "adam"):
        self._folder, self._replay, self._limit = folder, replay, limit
        self._rates = [f"--optimizer.{name}" for name in RATES[optimizer]]

    def check(self, agent: Agent, updates: int, metrics: dict[str, float]) -> list[str]:
        """Lines for the user about the updates before `updates` with mean metrics `metrics`; waits for the device.

        UserError after too many consecutive skipped updates.
        """
        skipped = agent.skipped_updates()
        lines = [] if skipped.index is None or self._saved() else [self._save(skipped, updates, metrics)]
        if skipped.in_a_row >= self._limit:
            saved = self._saved()
            look = f"look at the frames in {saved[0]}" if saved else "look at the rewards in metrics.jsonl"
            raise UserError(
                f"{skipped.in_a_row} updates in a row had a loss or gradient that is not finite and changed nothing: "
                f"{look}, and lower {', '.join(self._rates[:-1])} or {self._rates[-1]}, or try --precision fp32"
            )
        return lines

    def _saved(self) -> list[Path]:
        return sorted(self._folder.glob("update-*.safetensors"))

    def _save(self, skipped: SkippedUpdates, updates: int, metrics: dict[str, float]) -> str:
        """Write the frames [T, B, ...] as stored in replay, and their `index`; returns a line that says so."""
        frames = {name: value.contiguous() for name, value in self._replay.look_up(skipped.index).items()}
        about = {"updates": str(updates), "metrics": json.dumps(metrics)}
        path = self._folder / f"update-{updates:08d}.safetensors"
        what = "an update had a loss or gradient that is not finite and was skipped"
        try:
            with atomic_path(path) as temporary:
                temporary.write_bytes(save({**frames, "index": skipped.index.cpu()}, about))
        except OSError as error:
            return f"{what}; its frames cannot be saved ({error.strerror})"
        return f"{what}; its frames are in {path}"
