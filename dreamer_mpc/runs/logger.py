"""Metrics of a run: one JSON line per record, and TensorBoard or wandb on request."""

import contextlib
import importlib
import json
import math
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, SupportsFloat

from dreamer_mpc.envs.surroundings import Surroundings
from dreamer_mpc.runs.folder import RunFolder
from dreamer_mpc.util.errors import UserError, cannot_write, in_one_line
from dreamer_mpc.util.files import from_json, write_text
from dreamer_mpc.util.versions import is_mere_folder

SHOWN = {".mp4": "eval/video", ".png": "eval/decision"}  # the names of files of an evaluation
COUNTERS = ("env_steps", "agent_steps", "updates", "episodes")


class Logger:
    """Appends records to `folder.metrics`, which holds `records` so far; the x axis of every backend is env steps.

    Records come in the order of time. One of an evaluation beside training has fewer env steps than the one before.

    On a resumed run `time_s` continues from the last record. UserError if the backend's package is missing, or if the
    file cannot be read or opened. No other error of a backend, `sys.exit` included, and no full disk stops a run:
    `notify` gets a line, the backend is switched off, and records that cannot be written are kept in memory. What a
    backend changes for the whole process, such as the working folder, it finds again in its next call, and the program
    does not see it.
    """

    def __init__(
        self,
        folder: RunFolder,
        backend: Literal["none", "tensorboard", "wandb"] = "none",
        notify: Callable[[str], None] = print,
    ):
        self._folder, self._name, self._notify = folder, backend, notify
        self._backend: Any = _None(folder)
        self._surroundings = Surroundings()
        with self._switched_off_on_failure():
            check_backend(backend)
            self._backend = BACKENDS[backend](folder)
        with _writable(folder.metrics):
            self._open_file(_repair(folder.metrics))

    def write(self, counters: dict[str, int], metrics: dict[str, SupportsFloat]) -> None:
        """Append one record and flush it; NaN and inf become null.

        ValueError if one of `COUNTERS` is missing, or if a metric has the name of a counter.
        """
        missing = [name for name in COUNTERS if name not in counters]
        if missing:
            raise ValueError(f"counters lack {', '.join(missing)}")
        record = {name: int(counters[name]) for name in (*COUNTERS, *counters)}
        record["time_s"] = round(time.monotonic() - self._start, 3)
        if record.keys() & metrics.keys():
            raise ValueError(
                f"a metric may not be named like a counter: {sorted(record.keys() & metrics.keys())}"
            )
        record |= {name: float(value) for name, value in metrics.items()}
        self._waiting.append(_json_line(record))
        self.records += 1
        self._flush()
        with self._switched_off_on_failure():
            self._backend.write(record["env_steps"], record)

    def show(self, env_steps: int, path: Path) -> None:
        """Pass a picture (.png) or video (.mp4) of an evaluation on to the backend; one that fails costs that one."""
        try:
            with self._surroundings:
                self._backend.show(env_steps, path)
        except (Exception, SystemExit) as error:
            self._notify(f"--logger {self._name} does not show {path.name} ({in_one_line(error)})")

    def sync(self) -> None:
        """Flush the written records to the disk, for a checkpoint that relies on them."""
        with contextlib.suppress(OSError):  # a full disk is reported when lines are written
            os.fsync(self._file.fileno())

    def truncate(self, records: int, env_steps: int | None = None) -> None:
        """Keep the first `records`, so that a run resumed there does not contain two histories.

        Those after `env_steps` are not kept in any case: where older records were lost, they would move up.
        """
        self._file.close()
        with _writable(self._folder.metrics):
            kept = _read(self._folder.metrics)[:records]
            kept = [record for record in kept if env_steps is None or record["env_steps"] <= env_steps]
            write_text(self._folder.metrics, "".join(map(_json_line, kept)))
            self._open_file(kept)
        with self._switched_off_on_failure():
            self._backend.truncate(max((record["env_steps"] for record in kept), default=-1))

    def close(self) -> None:
        """Write the waiting records if possible, and report how many are lost if not."""
        self._flush()
        if self._waiting:
            self._notify(f"the last {len(self._waiting)} records of {self._folder.metrics} are lost")
        self._file.close()
        with self._switched_off_on_failure():
            self._backend.close()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def _open_file(self, records):
        self.records = len(records)
        self._waiting: list[str] = []  # lines that are not on disk yet
        self._refused = False
        self._start = time.monotonic() - (records[-1]["time_s"] if records else 0.0)
        self._file = self._folder.metrics.open("ab", buffering=0)
        self._whole = self._file.tell()  # size in bytes up to the end of the last complete line

    def _flush(self):
        """Append the lines that wait, all or none."""
        if not self._waiting:
            return
        try:
            if self._refused:
                self._file.truncate(self._whole)
            self._append("".join(self._waiting).encode())
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(self._whole)
            if not self._refused:
                self._notify(f"cannot write {self._folder.metrics} ({error.strerror}): its records wait in memory")
            self._refused = True
            return
        if self._refused:
            self._notify(f"{self._folder.metrics} is written again: {len(self._waiting)} records had waited")
        self._refused, self._waiting = False, []

    def _append(self, data):
        written = 0
        while written < len(data):
            written += self._file.write(data[written:])
        self._whole += written

    @contextlib.contextmanager
    def _switched_off_on_failure(self):
        try:
            with self._surroundings:
                yield
        except (UserError, KeyboardInterrupt):
            raise
        except BaseException as error:
            reason = (str(error).strip().splitlines() or ["no message"])[0]
            self._notify(f"--logger {self._name} failed and is switched off ({type(error).__name__}: {reason})")
            self._backend = _None(self._folder)


def check_backend(backend: str) -> None:
    """UserError if the package of a backend cannot be imported; for the start, before a run folder is made."""
    if backend not in PACKAGES:
        return
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # wandb reads it when it is imported
    missing = UserError(f"--logger {backend} needs its package: pip install {backend}")
    try:
        importlib.import_module(PACKAGES[backend])
    except ImportError as error:
        raise missing from error
    except (Exception, SystemExit):  # installed, but broken: `Logger` switches it off and says so
        pass
    if is_mere_folder(backend):
        raise missing


def read_metrics(path: str | Path) -> list[dict]:
    """The records of a metrics.jsonl, with null read as NaN.

    An incomplete last line is left out; any other line that is no record, or no later one, is a UserError.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no metrics {path}: name the metrics.jsonl in a run folder")
    try:
        return _read(path)
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): check the file") from error


def _read(path):
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    records, before, furthest = [], {}, 0
    for number, line in enumerate(lines, start=1):
        try:
            record = from_json(line)
        except ValueError as error:
            if number == len(lines):  # a killed run left it incomplete
                break
            raise UserError(f"{path}, line {number} is no JSON record: remove that line") from error
        if not _is_record(record):
            raise UserError(f"{path}, line {number} is no record of a run: remove that line")
        if line in before:
            raise UserError(f"{path}, line {number} is the same as line {before[line]}: remove one of them")
        beside = "eval/return_mean" in record  # an evaluation beside training comes after records of more env steps
        if record["env_steps"] < furthest and not beside:
            raise UserError(
                f"{path}, line {number} goes back from env step {furthest:,} to {record['env_steps']:,}: remove the "
                "lines of one of the two runs"
            )
        furthest = max(furthest, record["env_steps"])
        before[line] = number
        records.append({key: math.nan if value is None else value for key, value in record.items()})
    return records


def _is_record(value):
    """Whether counters and time are numbers, and everything else a number or null."""
    if not isinstance(value, dict) or not all(type(value.get(name)) in (int, float) for name in (*COUNTERS, "time_s")):
        return False
    numbers = [number for number in value.values() if number is not None]
    return all(type(number) in (int, float) and (type(number) is float or abs(number) < 2**63) for number in numbers)


@contextlib.contextmanager
def _writable(path):
    """Turn an error of the operating system into a UserError."""
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error) from error


def _repair(path):
    """Read the records, and rewrite the file if a killed run left its last line incomplete."""
    records = _read(path)
    if path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n"):
        write_text(path, "".join(map(_json_line, records)))
    return records


def _json_line(record):
    finite = {key: value if math.isfinite(value) else None for key, value in record.items()}
    return json.dumps(finite, allow_nan=False) + "\n"


class _None:
    def __init__(self, folder):
        pass

    def write(self, env_steps, values):
        pass

    def show(self, env_steps, path):
        pass

    def truncate(self, env_steps):
        pass

    def close(self):
        pass


class _TensorBoard:
    def __init__(self, folder):
        from torch.utils.tensorboard import SummaryWriter

        self._open = lambda purge_step: SummaryWriter(str(folder.tensorboard), purge_step=purge_step)
        self._writer = self._open(None)

    def write(self, env_steps, values):
        for name, value in values.items():
            self._writer.add_scalar(name, value, env_steps)
        self._writer.flush()

    def show(self, env_steps, path):
        from dreamer_mpc.runs.media import tensorboard_summary

        self._writer._get_file_writer().add_summary(tensorboard_summary(SHOWN[path.suffix], path), env_steps)
        self._writer.flush()

    def truncate(self, env_steps):
        self._writer.close()
        self._writer = self._open(env_steps + 1)

    def close(self):
        self._writer.close()


class _Wandb:
    """Offline unless WANDB_MODE says otherwise, so that wandb never asks for a login.

    A resumed run goes on with its wandb run, whose id is kept in the folder. Env steps are the x axis by name, not
    wandb's own step, which may not go back to the checkpoint from which the run goes on.
    """

    def __init__(self, folder):
        import wandb

        self._run = wandb.init(
            project="dreamer-mpc",
            id=_wandb_id(folder),
            resume="allow",
            name=folder.path.resolve().name,
            dir=str(folder.path),
            mode=os.environ.get("WANDB_MODE") or "offline",
            config=_config(folder),
            settings=wandb.Settings(console="off"),  # its capture of stdout breaks the progress bar
        )
        # wandb drops what is logged at an earlier step of its own, as that of an evaluation beside training is.
        self._run.define_metric("*", step_metric="env_steps")

    def write(self, env_steps, values):
        self._run.log(values)

    def show(self, env_steps, path):
        import wandb

        media = wandb.Video(str(path), format="mp4") if path.suffix == ".mp4" else wandb.Image(str(path))
        self._run.log({SHOWN[path.suffix]: media, "env_steps": env_steps})

    def truncate(self, env_steps):
        pass  # wandb keeps what it got; what the run makes again stands beside it, at the same env steps

    def close(self):
        self._run.finish()


def _wandb_id(folder):
    """The id of the run in wandb: that of its folder, made at its start."""
    known = folder.wandb_id.read_text(encoding="utf-8").strip() if folder.wandb_id.exists() else ""
    if not known:
        known = secrets.token_hex(8)
        write_text(folder.wandb_id, f"{known}\n")
    return known


PACKAGES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb"}
BACKENDS = {"none": _None, "tensorboard": _TensorBoard, "wandb": _Wandb}


def _config(folder):
    import yaml

    return yaml.safe_load(folder.config.read_text(encoding="utf-8")) if folder.config.exists() else None
