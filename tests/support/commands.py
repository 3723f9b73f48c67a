"""Running the commands in this process or in a separate one, and reading the run folder."""

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import run

ROOT = Path(__file__).resolve().parent.parent.parent


def command(*args, **environment):
    """Run `python run.py ...` in a separate process."""
    full = [sys.executable, "run.py", *map(str, args)]
    return subprocess.run(full, cwd=ROOT, capture_output=True, text=True, timeout=240, env=os.environ | environment)


def script(path, code, **settings):
    """Run `code` as a separate program that finds the package, from the file `path`."""
    path.write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, path], env=environment, capture_output=True, text=True, **settings)


def quietly(*args):
    """Run a command in this process; returns its exit code and its output."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run.main([*map(str, args)])
    return SimpleNamespace(code=code, out=out.getvalue(), err=err.getvalue())


def train(*args, code=0):
    """`run.py train` in this process; returns its output."""
    done = quietly(*args)
    assert done.code == code, done.out + done.err
    return done.out + done.err


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def counters(env_steps):
    return {"env_steps": env_steps, "agent_steps": env_steps // 2, "updates": 3, "episodes": 1}


def env_steps_in(folder):
    from dreamer_mpc.runs.logger import read_metrics  # here: workers of test_envs import this module, and load no torch

    return [record["env_steps"] for record in read_metrics(folder.metrics)]


def settings_of(sweep_run):
    """The config.yaml of a sweep's run."""
    from dreamer_mpc import config  # here, as above

    default = config.load_presets(config.option(sweep_run.args, "config") or "default")
    return config.to_yaml(config.resolve(config.parse(config.Config, sweep_run.args, default)))
