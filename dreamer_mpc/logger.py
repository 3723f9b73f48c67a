"""Metrics of a run: one JSON line a record, and TensorBoard or wandb on request."""

import json
import math
import os
import time
from pathlib import Path
from typing import Literal, SupportsFloat

from dreamer_mpc.errors import UserError
from dreamer_mpc.run_folder import RunFolder, write_text

COUNTERS = ("env_steps", "agent_steps", "updates", "episodes")


class Logger:
    """Appends records to `folder.metrics`, `records` of them so far; every axis of every backend is in env steps.

    On a resumed run `time_s` goes on from the last record. UserError if the backend's package is missing.
    """

    def __init__(self, folder: RunFolder, backend: Literal["none", "tensorboard", "wandb"] = "none"):
        self._folder = folder
        self._backend = BACKENDS[backend](folder)
        self._open_file(_repair(folder.metrics))

    def write(self, counters: dict[str, int], metrics: dict[str, SupportsFloat]) -> None:
        """Append one record and flush it; NaN and inf become null.

        ValueError if one of `COUNTERS` is missing, or if a metric is named like a counter.
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
        self._file.write(_json_line(record))
        self._file.flush()
        self.records += 1
        self._backend.write(record["env_steps"], record)

    def truncate(self, records: int) -> None:
        """Keep the first `records`, so that a run which is resumed there does not hold two histories."""
        self._file.close()
        kept = _read(self._folder.metrics)[:records]
        write_text(self._folder.metrics, "".join(map(_json_line, kept)))
        self._open_file(kept)
        self._backend.truncate(kept[-1]["env_steps"] if kept else -1)

    def close(self) -> None:
        self._file.close()
        self._backend.close()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def _open_file(self, records):
        self.records = len(records)
        self._start = time.monotonic() - (records[-1]["time_s"] if records else 0.0)
        self._file = self._folder.metrics.open("a", encoding="utf-8")


def read_metrics(path: str | Path) -> list[dict]:
    """The records of a metrics.jsonl, null as NaN.

    A torn last line is left out; any other bad line is a UserError.
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
    """Read the records, and rewrite the file if a killed run left its last line torn."""
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
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError("--logger tensorboard needs its package: pip install tensorboard") from error
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
    """Offline unless WANDB_MODE says otherwise, so that nobody is ever asked to log in."""

    def __init__(self, folder):
        try:
            import wandb
        except ImportError as error:
            raise UserError("--logger wandb needs its package: pip install wandb") from error
        self._run = wandb.init(
            project="dreamer-mpc",
            name=folder.path.resolve().name,
            dir=str(folder.path),
            mode=os.environ.get("WANDB_MODE") or "offline",
            config=_config(folder),
            settings=wandb.Settings(console="off"),  # its capture of stdout breaks the progress bar
        )

    def write(self, env_steps, values):
        self._run.log(values, step=env_steps)

    def truncate(self, env_steps):
        pass  # a resumed run is a new wandb run; the first one stays as it was

    def close(self):
        self._run.finish()


BACKENDS = {"none": _None, "tensorboard": _TensorBoard, "wandb": _Wandb}


def _config(folder):
    import yaml

    return yaml.safe_load(folder.config.read_text(encoding="utf-8")) if folder.config.exists() else None
