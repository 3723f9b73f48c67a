"""The folder of one run: the paths of its files, and when they may be overwritten."""

import contextlib
import functools
import importlib.metadata
import json
import platform
import shlex
import shutil
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from dreamer_mpc.envs.scene import WARP
from dreamer_mpc.runs.payload import SUFFIX
from dreamer_mpc.util.ending import TRACEBACKS
from dreamer_mpc.util.errors import UserError, cannot_write
from dreamer_mpc.util.files import files_of, from_json, output_path, temporary_paths, write_text
from dreamer_mpc.util.owner import LOCK, alone_in
from dreamer_mpc.util.versions import source_commit

if TYPE_CHECKING:  # torch, which a job on a cluster does not need to start runs
    from dreamer_mpc.config import Config

PROGRAM = "dreamer-mpc"
WRITTEN = (
    "config.yaml", "metrics.jsonl", "versions.json", "checkpoints", "replay", "replay.bin", "videos", "eval",
    "compare", "profile", "diagnosis", "tensorboard", "wandb", "wandb-id.txt", TRACEBACKS,
)  # fmt: skip
PACKAGES = (
    "torch", "numpy", "dm_control", "mujoco", "gymnasium", "einops", "omegaconf", "tyro",
    "opencv-python-headless", "opencv-python", "imageio", "imageio-ffmpeg", "matplotlib", "rich", "mujoco-warp",
    "warp-lang",
)  # fmt: skip


@dataclass(frozen=True)
class RunFolder:
    """The files of one run below `path`; a file or folder is created only when it is written."""

    path: Path

    @classmethod
    def create(cls, path: str | Path, overwrite: bool = False) -> "RunFolder":
        """Claim a new or empty folder. UserError if it holds anything, unless `overwrite` and it is a run.

        A folder of a run that was killed before it started counts as empty.
        `overwrite` removes what a run writes (`WRITTEN`) and leaves every other file in the folder alone.
        """
        folder = cls(output_path(path))
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
            if any(folder.path.iterdir()) and not folder._only_claimed():
                folder._make_room(overwrite)
            # Write the marker first, so that --overwrite recognises the folder of a run that dies early.
            write_text(folder.versions, json.dumps({"program": PROGRAM}) + "\n")
        except OSError as error:
            raise cannot_write(f"run folder {path}", error, "choose another --run-dir") from error
        return folder

    def give_back(self) -> None:
        """Undo `create` where nothing was written since; what cannot be removed stays."""
        with contextlib.suppress(OSError):
            if self._only_claimed():
                for file in [self.versions, *self._unfinished()]:
                    file.unlink(missing_ok=True)

    @classmethod
    def open(cls, path: str | Path) -> "RunFolder":
        """An existing run, to resume or evaluate. UserError if `path` is not one."""
        folder = cls(output_path(path))
        if not folder.path.exists():
            quoted = shlex.quote(str(path))
            raise UserError(f"no run folder {path}: check the path, or start a run with --run-dir {quoted}")
        if not (folder.is_run() or folder.config.exists() or files_of(folder.checkpoints, f"checkpoint-*{SUFFIX}")):
            raise UserError(f"{path} is no run folder (no config.yaml in it): name a folder that a run wrote")
        return folder

    @classmethod
    def of_checkpoint(cls, file: Path) -> "RunFolder":
        """The run that a checkpoint file belongs to; for a file outside of checkpoints/, the folder of the file."""
        return cls(file.parent.parent if file.parent.name == "checkpoints" else file.parent)

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def versions(self) -> Path:
        return self.path / "versions.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def replay(self) -> Path:
        return self.path / "replay"

    @property
    def skipped_updates(self) -> Path:
        """Frames of the first skipped update; earlier versions used the same folder name."""
        return self.path / "diagnosis"

    @property
    def evaluation(self) -> Path:
        """Default output folder of `eval`."""
        return self.path / "eval"

    @property
    def comparison(self) -> Path:
        """Default output folder of `compare`."""
        return self.path / "compare"

    @property
    def videos(self) -> Path:
        return self.path / "videos"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def wandb_id(self) -> Path:
        """The id of the run in wandb, with which a resumed run goes on."""
        return self.path / "wandb-id.txt"

    def is_run(self) -> bool:
        """Whether this program wrote the folder, according to its versions.json."""
        return self._read_versions().get("program") == PROGRAM

    def clear_leftovers(self) -> None:
        """Remove the temporary files of a run that was killed here; only for the folder's owner."""
        with contextlib.suppress(OSError):
            for file in [*temporary_paths(self.path), *temporary_paths(self.videos)]:
                file.unlink(missing_ok=True)

    def write_config(self, yaml_text: str) -> None:
        """Write config.yaml atomically."""
        write_text(self.config, yaml_text)

    def write_versions(self, extra: dict) -> None:
        """Write versions.json: commit, python, packages, command line, start time, and `extra`.

        A resumed run keeps the previous entries under `earlier`, oldest first: code and machine may have changed.
        """
        before = self._read_versions()
        earlier = before.pop("earlier", [])
        if "started" in before:
            earlier.append(before)
        versions = {
            "program": PROGRAM,
            "commit": _own_commit(),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "packages": package_versions(),
            "command": sys.argv,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            **extra,
        }
        if earlier:
            versions["earlier"] = earlier
        write_text(self.versions, json.dumps(versions, indent=2) + "\n")

    def _read_versions(self):
        try:
            versions = from_json(self.versions.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return versions if isinstance(versions, dict) else {}

    def _only_claimed(self):
        """Whether the folder holds only the marker, complete or not, of a run that was killed before it began."""
        unfinished = {path.name for path in self._unfinished()}
        names = {entry.name for entry in self.path.iterdir()} - unfinished - {LOCK, TRACEBACKS}
        marked = names == {self.versions.name} and self._read_versions() == {"program": PROGRAM}
        return not names or marked

    def _unfinished(self):
        """Temporary files of the first two that a run writes."""
        begun = (f".{self.versions.stem}.", f".{self.config.stem}.")
        return [path for path in temporary_paths(self.path) if path.name.startswith(begun)]

    def _make_room(self, overwrite):
        if not overwrite:
            raise UserError(
                f"run folder {self.path} exists: use --resume {self.path} to go on, --overwrite to start "
                "again, or another --run-dir"
            )
        if not self.is_run():
            raise UserError(
                f"--overwrite refused: {self.path} was not written by a run; choose another --run-dir"
            )
        with contextlib.ExitStack() as owned:
            for folder in filter(Path.is_dir, (self.evaluation, self.comparison)):
                owned.enter_context(alone_in(folder, "wait for it, or choose another --run-dir"))
            self._remove_written()

    def _remove_written(self):
        for name in WRITTEN:
            entry = self.path / name
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:  # a link is removed, its target is kept
                entry.unlink(missing_ok=True)


# Base agents by the kinds of world model and behavior; the paper's has no name of its own.
FAMILIES = {("gaussian", "dreamer"): "", ("categorical", "v3"): "v3"}


def family_of(config: "Config") -> str:
    """The name of the base agent; empty for the paper's."""
    kinds = (config.world_model.kind, config.behavior.kind)
    return FAMILIES.get(kinds, "-".join(kinds))


def default_run_dir(config: "Config") -> str:
    """runs/<env>-<planner>-seed<seed>; it also names the training planner and the agent's kinds if they are others.

    So it does with pictures by warp, which are a world of their own.

    Runs of the preset quick have folders of their own, so that none is in the way of a run at full size.
    """
    other = f"-trained-by-{config.trained_by}" if config.trained_by != config.planner else ""
    family = f"-{name}" if (name := family_of(config)) else ""
    quick = "-quick" if "quick" in config.config.split(",") else ""
    world = f"-{WARP}" if config.render_quality == WARP else ""
    return f"runs/{run_name(config.env, config.planner + other + family + world + quick, config.seed)}"


def run_name(env: str, planner: str, seed: int | str) -> str:
    """The name of a run's folder."""
    return f"{env.replace(':', '.').replace('/', '.')}-{planner}-seed{seed}"


@functools.cache  # the code that this process runs: it was loaded once
def _own_commit():
    return source_commit(Path(__file__).resolve())


def package_versions() -> dict[str, str]:
    """Versions of those of `PACKAGES` that are installed."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
