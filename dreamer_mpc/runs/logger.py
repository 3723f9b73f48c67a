"""Metrics of a run: one JSON line per record, and TensorBoard or wandb on request."""

import contextlib
import importlib
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, SupportsFloat

from dreamer_mpc.runs.folder import RunFolder
from dreamer_mpc.util.errors import UserError
from dreamer_mpc.util.files import write_text

COUNTERS = ("env_steps", "agent_steps", "updates", "episodes")


class Logger:
    """Appends records to `folder.metrics`, which holds `records` so far; the x axis of every backend is env steps.

    Records come in the order of time. One of an evaluation beside training has fewer env steps than the one before.

    On a resumed run `time_s` continues from the last record. UserError if the backend's package is missing. No other
    error of a backend and no full disk stops a run: `notify` gets a line, the backend is switched off, and records
    that cannot be written are kept in memory.
    """

    def __init__(
        self,
        folder: RunFolder,
        backend: Literal["none", "tensorboard", "wandb"] = "none",
        notify: Callable[[str], None] = print,
    ):
        self._folder, self._name, self._notify = folder, backend, notify
        self._backend: Any = _None(folder)
        with self._switched_off_on_failure():
            check_backend(backend)
            self._backend = BACKENDS[backend](folder)
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

    def sync(self) -> None:
        """Flush the written records to the disk, for a checkpoint that relies on them."""
        with contextlib.suppress(OSError):  # a full disk is reported when lines are written
            os.fsync(self._file.fileno())

    def truncate(self, records: int) -> None:
        """Keep the first `records`, so that a run resumed there does not contain two histories."""
        self._file.close()
        kept = _read(self._folder.metrics)[:records]
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
            yield
        except UserError:
            raise
        except Exception as error:
            reason = (str(error).strip().splitlines() or ["no message"])[0]
            self._notify(f"--logger {self._name} failed and is switched off ({type(error).__name__}: {reason})")
            self._backend = _None(self._folder)


def check_backend(backend: str) -> None:
    """UserError if the package of a backend cannot be imported; for the start, before a run folder is made."""
    if backend not in PACKAGES:
        return
    try:
        importlib.import_module(PACKAGES[backend])
    except ImportError as error:
        raise UserError(f"--logger {backend} needs its package: pip install {backend}") from error
    except Exception:  # installed, but broken: `Logger` switches it off and says so
        pass


def read_metrics(path: str | Path) -> list[dict]:
    """The records of a metrics.jsonl, with null read as NaN.

    An incomplete last line is left out; any other bad line is a UserError.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no metrics {path}: name the metrics.jsonl in a run folder")
    return _read(path)


def _read(path):
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            records.append({key: math.nan if value is None else value for key, value in record.items()})
        except (ValueError, AttributeError) as error:
            if number < len(lines):
                raise UserError(f"{path}, line {number} is no JSON record: remove that line") from error
    return records


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

    def truncate(self, env_steps):
        self._writer.close()
        self._writer = self._open(env_steps + 1)

    def close(self):
        self._writer.close()


class _Wandb:
    """Offline unless WANDB_MODE says otherwise, so that wandb never asks for a login."""

    def __init__(self, folder):
        import wandb

        self._run = wandb.init(
            project="dreamer-mpc",
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

    def truncate(self, env_steps):
        pass  # a resumed run is a new wandb run; the first one stays as it was

    def close(self):
        self._run.finish()


PACKAGES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb"}
BACKENDS = {"none": _None, "tensorboard": _TensorBoard, "wandb": _Wandb}


def _config(folder):
    import yaml

    return yaml.safe_load(folder.config.read_text(encoding="utf-8")) if folder.config.exists() else None
