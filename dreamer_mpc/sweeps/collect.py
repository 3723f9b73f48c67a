"""Copying what figures and evaluations need of a sweep's runs from another folder or host, by rsync."""

import subprocess
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from dreamer_mpc.runs.checkpoint import list_checkpoints
from dreamer_mpc.util.errors import UserError

FILES = ("config.yaml", "versions.json", "metrics.jsonl", "checkpoints/best.safetensors")
VANISHED = 24  # rsync's exit code where a file was removed while it copied
TRIES = 3


def collect(source: str, out: Path) -> list[str]:
    """Copy settings, metrics, the last weights and the best ones of each run in `source` to `out`; a line for each.

    `source` is a folder or HOST:FOLDER. Called again, it copies what has changed. Its runs may go on: checkpoints are
    written whole, and one that was replaced in the meantime is looked for again. UserError with rsync's own words.
    """
    for last in (False,) * (TRIES - 1) + (True,):
        runs = _runs(_list(source))
        if not runs:
            raise UserError(f"no runs in {source} (no NAME/config.yaml): name the --out of a sweep, or HOST:FOLDER")
        for name in runs:
            if (out / name / "replay").exists():
                raise UserError(f"{out / name} is a run of its own, which would be overwritten: choose another --out")
        wanted = [f"{name}/{file}" for name, files in runs.items() for file in files]
        if _rsync(["-a", "--files-from=-", f"{source}/", f"{out}/"], "\n".join(wanted), last):
            break
    for name, files in runs.items():
        for file in list_checkpoints(out / name / "checkpoints"):
            if f"checkpoints/{file.name}" not in files:
                file.unlink()
    return [f"{name}: {', '.join(PurePosixPath(file).name for file in files)}" for name, files in runs.items()]


def _list(source: str) -> list[str]:
    """The files of all runs, relative to `source`."""
    out = subprocess.PIPE
    filters = [f"--include=/*/{file}" for file in (*FILES, "checkpoints/*")]
    filters = ["--include=/*/", "--include=/*/checkpoints/", *filters, "--exclude=*"]
    done = _run(["-r", "--list-only", *filters, f"{source}/"], stdout=out)
    return [line.split(maxsplit=4)[4] for line in done.stdout.splitlines() if not line.startswith("d")]


def _runs(files: Sequence[str]) -> dict[str, list[str]]:
    """The files to copy of each run: those of `FILES` that exist, and its last checkpoint."""
    found: dict[str, list[str]] = {}
    for file in files:
        name, _, path = file.partition("/")
        found.setdefault(name, []).append(path)
    return {
        name: [
            *(path for path in FILES if path in paths),
            *sorted(path for path in paths if path.startswith("checkpoints/checkpoint-"))[-1:],
        ]
        for name, paths in found.items()
        if "config.yaml" in paths
    }


def _rsync(args: Sequence[str], files: str, last: bool) -> bool:
    """False where a file has vanished, unless this is the last attempt."""
    return _run(args, input=files, allowed=() if last else (VANISHED, 23)).returncode == 0


def _run(args: Sequence[str], allowed: Sequence[int] = (), **streams: object) -> subprocess.CompletedProcess:
    try:
        done = subprocess.run(["rsync", *args], stderr=subprocess.PIPE, text=True, **streams)
    except OSError as error:
        raise UserError(f"--collect needs rsync ({error.strerror}): install it here and on the other host") from error
    if done.returncode and done.returncode not in allowed:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise UserError(f"rsync: {lines[0]}: check the folder, and that `ssh HOST` works")
    return done
