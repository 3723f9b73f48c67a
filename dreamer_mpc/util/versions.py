"""The versions of this program and of what it runs on, without importing any of it."""

import importlib.metadata
import importlib.util
import os
import platform
import subprocess
from pathlib import Path

import dreamer_mpc


def program_version() -> str:
    """One line for a report: the program, its commit if there is one, torch, and Python."""
    commit = source_commit(Path(__file__).resolve())
    source = f" (commit {commit})" if commit else ""
    try:
        torch = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        torch = "missing"
    return f"dreamer-mpc {dreamer_mpc.__version__}{source}, torch {torch}, Python {platform.python_version()}"


def is_mere_folder(package: str) -> bool:
    """Whether Python would import only a folder of that name, as `wandb` leaves one, and not an installed package."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.origin is None and spec.submodule_search_locations is not None


def source_commit(file: Path) -> str | None:
    """Commit of the repository that tracks `file`, "-dirty" if tracked files differ; None without one."""
    # An installed copy may be inside another repository: only for a tracked file is its commit ours.
    if _git(file.parent, "ls-files", "--error-unmatch", file.name) is None:
        return None
    commit = _git(file.parent, "rev-parse", "HEAD")
    if commit is None:
        return None
    changed = _git(file.parent, "status", "--porcelain", "--untracked-files=no")
    return commit + ("-dirty" if changed else "")


def _git(folder, *arguments):
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}  # `status` must not take the index lock
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=True, env=environment
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
