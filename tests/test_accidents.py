"""What environments do to the program around them: processes, folders, generators, accidents in evaluations."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import torch

from dreamer_mpc.agents.dreamer import Dreamer
from dreamer_mpc.data.reenact import reenact
from dreamer_mpc.envs import EnvError, make_vector_env, try_env
from dreamer_mpc.evaluation.episodes import evaluate
from dreamer_mpc.planners import make_planner
from dreamer_mpc.runs.checkpoint import load_checkpoint
from tests.support.accidents import FOLDER
from tests.support.agents import TINY
from tests.support.commands import ROOT, command, quietly, records, script
from tests.test_evaluate import Still

ACCIDENTS = "tests.support.accidents"
POLICY = make_planner("policy")

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "marks").mkdir()
    monkeypatch.setenv(FOLDER, str(tmp_path / "marks"))
    return tmp_path / "marks"


def make(name, num_envs=1, workers=False):
    return make_vector_env(f"{ACCIDENTS}:{name}", num_envs, workers=workers, action_repeat=1)


def roll(envs, seed=0, steps=3):
    envs.reset(seed=seed)
    return np.array([envs.step(np.full((envs.num_envs, 2), 0.5, np.float32))[1] for _ in range(steps)])


# Accidents in evaluations


@pytest.mark.parametrize("num_envs", [1, 2])
def test_an_evaluation_episode_whose_process_is_killed_is_played_again(num_envs, folder):
    envs = make("DiesOnce", num_envs, workers=True)
    result = evaluate(Still(), POLICY, envs, 3, seed=10_000)
    envs.close()
    assert (folder / "died").exists()
    assert result.lengths == [10, 10, 10]
    assert len(set(result.returns)) == 1
    assert result.counts() == {"eval/lost_environments": 1}
    assert result.mishaps() == "played again from its seed, 1 time after a lost process"


@pytest.mark.parametrize(("failures", "cut_short"), [(2, 0), (4, 1)])
def test_an_evaluation_episode_with_a_simulator_error_is_played_again(failures, cut_short, monkeypatch):
    envs = make("DiesOnce")
    step_wait, steps = envs.step_wait, iter(range(1000))
    monkeypatch.setattr(envs, "step_wait", lambda: fail(step_wait(), next(steps), failures))
    result = evaluate(Still(), POLICY, envs, 1, seed=0, recorded_steps=100)
    assert result.lengths == [1 if cut_short else 10]
    assert len(result.recording.image) == result.lengths[0]
    assert (result.simulator_errors, result.cut_short) == (failures, cut_short)
    assert ("counts up to there" in result.mishaps()) == bool(cut_short)


def fail(answer, step, failures):
    image, reward, terminated, truncated, info = answer
    if step < failures:
        return image, reward, terminated, truncated | True, info | {"simulator_error": np.array([True])}
    return answer


def test_an_episode_that_is_repeated_for_a_resume_survives_a_killed_process(folder):
    envs = make("DiesOnceInAll", 2, workers=True)
    actions = [np.full((8, 2), 0.5, np.float32)] * 2
    _, returns, ended = reenact(envs, np.ones(2, dtype=bool), [1, 2], actions)
    envs.close()
    assert (folder / "died").exists()
    assert not ended.any() and returns[0] == returns[1] > 0


def test_a_process_that_dies_in_its_first_step_is_an_error_before_there_is_a_folder(monkeypatch):
    envs = make("one")
    monkeypatch.setattr("dreamer_mpc.envs.vector.make_vector_env", lambda *args, **kwargs: envs)
    lost = {"lost": np.array([True]), "death": np.array(["killed by SIGKILL"])}
    monkeypatch.setattr(envs, "step", lambda actions: (None, 0, 0, 0, lost))
    with pytest.raises(EnvError, match="died in its first step .killed by SIGKILL"):
        try_env("some:env", 2)


# Processes of environments


def pids(folder):
    return [int(path.stem) for path in folder.glob("*.pid")]


def all_gone(processes, seconds=10):
    until = time.monotonic() + seconds
    while left := [p for p in processes if psutil.pid_exists(p) and psutil.Process(p).status() != "zombie"]:
        if time.monotonic() > until:
            return left
        time.sleep(0.1)
    return []


@pytest.mark.parametrize("how", ["close", "kill"])
def test_what_an_environment_started_ends_with_its_worker(how, folder):
    envs = make("WithHelper", 1, workers=True)
    assert roll(envs).shape == (3, 1), "an environment in a worker may have children"
    started = pids(folder)
    assert len(started) == 2
    if how == "kill":
        os.kill(envs.processes[0].pid, signal.SIGKILL)
        envs.step(np.zeros((1, 2), np.float32))
    left = all_gone(started) if how == "kill" else []
    envs.close()
    assert (left or all_gone(started)) == []


def test_a_program_that_an_environment_started_ends_by_sigterm(folder):
    envs = make("Ends", 1, workers=True)
    roll(envs)
    envs.close()
    assert (folder / "ended").read_text() == str(-signal.SIGTERM)
    assert all_gone(pids(folder)) == []


FORKS = """
import multiprocessing, time
from dreamer_mpc.util.stop import Stop
with Stop():
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,), daemon=True)
    child.start()
"""


def test_a_helper_that_was_forked_in_a_run_does_not_hold_up_its_end():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", FORKS], env=environment, timeout=20, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


# What belongs to the whole process


def test_an_environment_in_this_process_leaves_it_as_it_was(folder):
    def state():
        handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        return os.getcwd(), handlers, torch.get_default_dtype(), torch.is_grad_enabled(), np.geterr()

    before = state()
    envs = make("Changes")
    assert state() == before
    roll(envs)
    envs.close()
    assert state() == before


def test_a_run_of_an_environment_that_changes_the_folder_stays_where_it_was_asked_to(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = quietly(*TINY, "--env", f"{ACCIDENTS}:Changes", "--planner", "policy", "--run-dir", "run")
    assert done.code == 0, done.err + done.out
    assert (tmp_path / "run" / "metrics.jsonl").exists()
    assert list(folder.iterdir()) == []


WRECKED = """
import os, sys
from dreamer_mpc.envs import make_env
from dreamer_mpc.envs.output import lasting_output
from dreamer_mpc.envs.surroundings import no_sudden_end

def state():
    files = [os.fstat(number)[:2] for number in (1, 2)]
    mask = os.umask(0o22)
    return files, sys.stdout, sys.stderr, list(sys.path), sys.getrecursionlimit(), mask

with lasting_output():
    os.umask(0o22)
    before = state()
    for _ in range(2):
        env = make_env("tests.support.accidents:Wrecks")
        env.reset()
        env.step(env.action_space.sample())
        after = state()
        assert after == before, (before, after)
    print("heard", flush=True)
    os.write(2, b"heard as well")
    with no_sudden_end():
        if not (child := os.fork()):
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        try:
            os._exit(0)
        except SystemExit:
            print("not ended", flush=True)
    os._exit(5)
"""


def test_an_environment_may_wreck_what_a_program_takes_for_granted(tmp_path):
    """Standard output, import path, recursion limit, umask; `os._exit` is refused, but not in a forked process."""
    done = script(tmp_path / "wrecked.py", WRECKED, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (5, "heard\nnot ended\n", "heard as well"), done.stderr


def test_an_environment_that_ends_the_process_with_0_is_an_error_and_the_run_is_saved(tmp_path):
    done = command(*TINY, "--env", f"{ACCIDENTS}:Quits", "--planner", "policy", "--run-dir", tmp_path / "run")
    assert done.returncode == 2, done.stderr
    assert "step() raised SystemExit: os._exit(0)" in done.stderr and done.stderr.count("\n") == 1
    assert load_checkpoint(tmp_path / "run").counters.env_steps > 8


def test_a_run_stays_in_its_folder_whatever_enters_another_one(tmp_path, monkeypatch):
    update = Dreamer._update

    def elsewhere(agent, batch):
        os.chdir(tmp_path / "else")
        return update(agent, batch)

    (tmp_path / "else").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Dreamer, "_update", elsewhere)
    done = quietly(*TINY, "--planner", "policy", "--run-dir", "run")
    assert done.code == 0, done.err + done.out
    assert f"run folder: {tmp_path / 'run'}\n" in done.out
    assert load_checkpoint(tmp_path / "run").counters.env_steps == 16
    assert list((tmp_path / "else").iterdir()) == []


def test_one_object_for_two_environments_is_refused(tmp_path):
    with pytest.raises(EnvError, match="already in use: it must make a new one each time") as caught:
        make("one", 2)
    assert len(str(caught.value).splitlines()) == 1
    roll(make("one"))  # those that were made are closed, and what is not used any more is free again
    done = quietly(*TINY, "--env", f"{ACCIDENTS}:one", "--run-dir", str(tmp_path / "run"))
    assert done.code == 2 and done.err.count("\n") == 1 and "already in use" in done.err


@pytest.mark.parametrize(("num_envs", "workers"), [(1, False), (2, False), (2, True)])
def test_a_seed_decides_what_global_generators_draw_in_an_environment(num_envs, workers):
    rewards = []
    for _ in range(2):
        envs = make("Draws", num_envs, workers)
        rewards.append([roll(envs, seed) for seed in (5, 6, 5)])
        envs.close()
        np.random.uniform()  # what the program draws has no part in it
    np.testing.assert_array_equal(rewards[0], rewards[1])
    np.testing.assert_array_equal(rewards[0][0], rewards[0][2])
    assert (rewards[0][0] != rewards[0][1]).all()
    assert num_envs == 1 or (rewards[0][0][:, 0] != rewards[0][0][:, 1]).all()


def test_an_environment_draws_nothing_from_the_generators_of_the_program():
    envs = make("Draws")
    np.random.seed(1)
    torch.manual_seed(1)
    expected = np.random.uniform(), torch.rand(())
    np.random.seed(1)
    torch.manual_seed(1)
    roll(envs)
    assert (np.random.uniform(), torch.rand(())) == expected


# Loops that an environment could keep going


def test_seed_episodes_that_take_the_whole_run_end_it_with_what_to_change(tmp_path):
    args = [*TINY, "--env", f"{ACCIDENTS}:Long", "--max-env-steps", "1000000", "--env-steps", "40"]
    done = quietly(*args, "--run-dir", str(tmp_path / "run"))
    assert done.code == 2
    assert "over after 40 env steps" in done.err and "--max-env-steps" in done.err and done.err.count("\n") == 1
    again = quietly("--resume", str(tmp_path / "run"), "--env-steps", "50")
    assert again.code == 2 and "over after 50 env steps" in again.err
    assert all(record["env_steps"] <= 50 for record in records(tmp_path / "run"))
