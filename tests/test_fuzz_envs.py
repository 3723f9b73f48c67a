"""Failing environments: any error in their code ends in one line; a killed worker loses only its own episode."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import psutil
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import run
from dreamer_mpc.envs import EnvError, list_tasks, make_vector_env, reset_rows, workers
from tests.support.agents import TINY
from tests.support.commands import ROOT, script
from tests.support.faulty_env import LENGTH, SHAPE, Fault, injected

FAULTY = "tests.support.faulty_env:make"
IN_PROCESS_CASES = 40  # per kind of fault
WORKER_CASES = 8
RANDOM_KILLS = 6

pytestmark = pytest.mark.timeout(120)  # a test that hangs has failed


def fuzz(cases):
    """Hypothesis without deadlines, because workers are slow, and with the same cases in every run."""
    quiet = list(HealthCheck)
    return settings(max_examples=cases, deadline=None, database=None, derandomize=True, suppress_health_check=quiet)


# Faults of a custom environment's code

ERRORS = (
    ValueError, RuntimeError, TypeError, KeyError, AttributeError, ImportError, OSError, MemoryError, EOFError,
    BrokenPipeError, StopIteration, AssertionError, NotImplementedError, RecursionError, GeneratorExit, EnvError,
)  # fmt: skip
MESSAGES = st.one_of(st.just(""), st.text(max_size=400), st.just("one\ntwo\r\nthree"), st.just("\ud800\x1b[2J\0"))
RAISED = st.builds(lambda error, text: ("raise", error(text)), st.sampled_from(ERRORS), MESSAGES)
EXITED = st.tuples(st.just("exit"), st.sampled_from([None, 0, 1, "no licence"]))
ODD = st.one_of(
    st.none(), st.text(max_size=9), st.binary(max_size=9), st.lists(st.integers(), min_size=2, max_size=9),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2), st.complex_numbers(),
    st.just(np.zeros(3)), st.just(object),
)  # fmt: skip
OTHER_DTYPES = ("int8", "int64", "float32", "float64", "bool", "object", "U1", "complex64")
SHAPES = st.one_of(
    st.sampled_from([(), (0,), SHAPE[:2], (3, *SHAPE[:2]), (1, *SHAPE), (SHAPE[0] + 1, *SHAPE[1:]), (*SHAPE[:2], 4)]),
    st.lists(st.integers(0, 9), max_size=4).map(tuple),
)
OBSERVATIONS = st.one_of(
    ODD,
    st.sampled_from(OTHER_DTYPES).map(lambda dtype: np.zeros(SHAPE, dtype)),
    SHAPES.map(lambda shape: np.zeros(shape, np.uint8)),
    st.just(np.zeros(SHAPE, np.uint8).tolist()),
)
REWARDS = st.one_of(
    ODD,
    st.sampled_from([np.nan, np.inf, -np.inf, 1e31, 10**400, np.float32(np.nan), np.array([np.nan]), np.array([])]),
    st.sampled_from([np.ones(2), np.array("1"), np.array(None), "1.0", 1 + 0j, Exception("reward")]),
)
FLAGS = st.one_of(ODD, st.integers(), st.floats(), st.just(np.array([True, False])), st.just(np.float64(1)))
INFOS = st.one_of(st.none(), st.text(max_size=3), st.lists(st.integers(), max_size=3), st.just(np.zeros(3)))


def part(index, values):
    """Faults in one part of an answer."""
    return st.tuples(st.just("part"), st.tuples(st.just(index), values))


TUPLES = st.integers(0, 7).filter(lambda n: n not in (2, 5)).map(lambda n: (np.zeros(SHAPE, np.uint8),) * n)
WRONG_ANSWERS = st.tuples(st.just("return"), st.one_of(TUPLES, ODD))
BOXES = [
    Box(0, 255, (4,), np.uint8), Box(0, 1, SHAPE, np.float32), Box(0, 255, (*SHAPE[:2], 1), np.uint8),
    Box(0, 255, (0, 8, 3), np.uint8), Box(-np.inf, np.inf, (2,), np.float32), Box(-3e38, 3e38, (2,), np.float32),
    Box(np.arange(30, dtype=np.uint8).reshape(2, 5, 3, 1), np.full((2, 5, 3, 1), 40, np.uint8)),
    Box(-np.ones(3), np.array([1.0, np.inf, 2.0]), dtype=np.float64), Box(-1, 1, (0,), np.float32),
    Box(-1, 1, (2, 2), np.float32), Box(0, 5, (2,), np.int64), Discrete(3), MultiDiscrete([2, 3]), None, "Box",
    Dict({"image": Box(0, 255, SHAPE, np.uint8)}),
]  # fmt: skip
SPACES = st.one_of(
    st.tuples(st.sampled_from(["observation_space", "action_space"]), st.sampled_from(BOXES)),
    st.tuples(st.just("metadata"), st.sampled_from([None, 3])),
)


# The faults of each call.
KINDS = {
    "factory": {"code": st.one_of(RAISED, EXITED), "answer": st.tuples(st.just("return"), ODD)},
    "spaces": {"answer": st.tuples(st.just("set"), SPACES)},
    "reset": {
        "code": st.one_of(RAISED, EXITED),
        "answer": WRONG_ANSWERS,
        "observation": part(0, OBSERVATIONS),
        "info": part(1, INFOS),
    },
    "step": {
        "code": st.one_of(RAISED, EXITED),
        "answer": WRONG_ANSWERS,
        "observation": part(0, OBSERVATIONS),
        "reward": part(1, REWARDS),
        "terminated": part(2, FLAGS),
        "truncated": part(3, FLAGS),
        "info": part(4, INFOS),
    },
}


def faults(call, kinds, rows):
    """Faults in that call of one of `rows` environments, or of all."""
    row, after = st.sampled_from([None, *range(rows)]), st.integers(0, {"reset": 2, "step": 2 * LENGTH}.get(call, 0))
    return st.builds(lambda fault, after, row: Fault(call, *fault, after, row), st.one_of(kinds), after, row)


def play(rows, workers, episodes=4):
    """The calls of a collector; the environments are always closed."""
    envs = make_vector_env(FAULTY, rows, workers=workers, action_repeat=2)
    try:
        envs.reset(seed=list(range(rows)))
        for _ in range(episodes * LENGTH):
            images, rewards, terminated, truncated, infos = envs.step(np.zeros((rows, 2), np.float32))
            assert images.shape == (rows, 64, 64, 3)
            assert np.isfinite(rewards).all()
            done = terminated | truncated
            if done.any():
                reset_rows(envs, done, list(range(rows)))
    finally:
        envs.close()


def check_line(error, call):
    """One printable line that names environment and call."""
    line = str(error)
    assert len(line.splitlines()) == 1
    assert line.isprintable()
    assert len(line) < 1000
    assert line.startswith(f"{FAULTY}: "), line
    assert {"factory": "factory", "spaces": ""}.get(call, f"{call}()") in line


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("faults")


@pytest.mark.parametrize(("call", "kind"), [(call, kind) for call, kinds in KINDS.items() for kind in kinds])
def test_any_fault_of_an_env_in_this_process_is_one_line(call, kind, folder):
    @given(fault=faults(call, [KINDS[call][kind]], rows=1))
    @fuzz(IN_PROCESS_CASES)
    def check(fault):
        with injected(fault, folder), pytest.raises(EnvError) as caught:
            play(1, workers=False)
        check_line(caught.value, call)

    check()


@given(fault=st.one_of(faults(call, [*kinds.values()], rows=2) for call, kinds in KINDS.items()))
@fuzz(WORKER_CASES)
def test_any_fault_in_a_worker_is_one_line(fault, folder, capfd):
    with injected(fault, folder), pytest.raises(EnvError) as caught:
        play(2, workers=True)
    check_line(caught.value, fault.call)
    assert capfd.readouterr() == ("", "")


def test_an_interrupt_in_an_envs_code_is_no_error_of_it(folder):
    with injected(Fault("step", "raise", KeyboardInterrupt()), folder), pytest.raises(KeyboardInterrupt):
        play(1, workers=False)


@pytest.mark.parametrize("how", [("raise", ValueError("close")), ("exit", 1), ("sleep", 0.1)])
@pytest.mark.parametrize("workers", [False, True])
def test_what_happens_in_close_is_ignored_quietly(how, workers, folder, capfd):
    with injected(Fault("close", *how), folder):
        play(1, workers, episodes=1)
    assert capfd.readouterr() == ("", "")


def test_what_numpy_and_other_libraries_return_is_taken(folder):
    rewards, flags = [np.float32(2), np.array([2.0]), np.array(2.0), True, 3], [np.bool_(False), np.array([True])]
    for part in [(1, reward) for reward in rewards] + [(2, flag) for flag in flags]:
        with injected(Fault("step", "part", part), folder):
            play(1, workers=False, episodes=1)


def test_a_reward_whose_square_would_overflow_is_refused_before_a_run_begins(folder):
    with injected(Fault("step", "part", (1, 9e9)), folder):
        play(1, workers=False, episodes=1)
    with injected(Fault("step", "part", (1, -2e10)), folder), pytest.raises(EnvError, match="finite and within ±1e10"):
        play(1, workers=False)


BROKEN_MODULES = {
    "def make(:": r"importing broken raised SyntaxError: .*: mend it",
    "\n1 / 0": r"importing broken raised ZeroDivisionError: division by zero \(broken.py, line 2\)",
    "import sys; sys.exit(3)": r"importing broken raised SystemExit: 3",
    "import no_such_library": r"cannot import broken .*; it is there, but imports no_such_library: install",
    "from os import no_such_name": r"cannot import broken .*; it is there: mend what it imports",
    "def make(): import no_such_library": r"the factory raised ModuleNotFoundError: .*: install no_such_library",
    "def __getattr__(name): raise OSError('no')": r"looking up make raised OSError: no",
    "make = 3": r"broken has no function make",
    "def make(size): pass": r"called without arguments .--env-args gives some., but missing .* 'size'",
    "make = dict": r"the factory must return a gymnasium.Env, got dict",
    "make = type": r"the factory raised TypeError",
}


@pytest.mark.parametrize("code", BROKEN_MODULES)
def test_a_module_that_does_not_import_is_one_line(code, tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken", raising=False)
    with pytest.raises(EnvError, match=BROKEN_MODULES[code]) as caught:
        make_vector_env("broken:make", 1)
    assert str(caught.value).startswith("broken:make: ")
    assert len(str(caught.value).splitlines()) == 1


def test_a_module_named_like_an_array_library_is_one_line(tmp_path, monkeypatch):
    """einops looks for these names among the imported modules, and fails amid the first update."""
    (tmp_path / "paddle.py").write_text("def make(): pass")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "paddle", raising=False)
    with pytest.raises(EnvError, match="einops would take your paddle for the library of that name: rename yours"):
        make_vector_env("paddle:make", 1)
    sys.modules.pop("paddle", None)


@given(name=st.one_of(st.text(max_size=20), st.from_regex(r"[A-Z0-9_./]{0,9}:[\w.]{0,9}", fullmatch=True)))
@fuzz(300)
def test_any_name_of_an_env_is_one_line(name):
    assume(name not in list_tasks())  # hypothesis also tries strings that it finds in the code
    with pytest.raises(EnvError) as caught:
        make_vector_env(name, 1)
    assert len(str(caught.value).splitlines()) == 1


# Workers that die

CHEETAH = {"render_quality": "fast", "action_repeat": 4}
ROWS = 3


def play_cheetah(envs, steps, before_step=lambda step: None, amid_step=lambda step: None):
    """All answers of `steps` steps; rows that end are reset with seed 100 + row."""
    answers, rng = [envs.reset(seed=[7, 8, 9])[0]], np.random.default_rng(0)
    for step in range(steps):
        actions = rng.uniform(-1, 1, (ROWS, 6)).astype(np.float32)
        before_step(step)
        envs.step_async(actions)
        amid_step(step)
        answer = envs.step_wait()
        answers.append(answer)
        done = answer[2] | answer[3]
        if done.any():
            answers.append(reset_rows(envs, done, [100 + row for row in range(ROWS)]))
    return answers


def kill(envs, row):
    os.kill(envs.processes[row].pid, signal.SIGKILL)


def rows_of(answers, rows):
    """Images, rewards and flags of `rows`, without the answers to resets."""
    steps = [answer for answer in answers if len(answer) == 5]
    return [np.stack([answer[part][rows] for answer in steps]) for part in range(4)]


def assert_no_zombies():
    children = psutil.Process().children()
    assert not [child for child in children if child.status() == psutil.STATUS_ZOMBIE]


@pytest.fixture(scope="module")
def undisturbed():
    envs = make_vector_env("cheetah-run", ROWS, **CHEETAH)
    yield play_cheetah(envs, 12)
    envs.close()


@pytest.mark.parametrize("when", ["before", "amid"])
def test_a_killed_worker_costs_its_own_row_alone(when, undisturbed):
    envs = make_vector_env("cheetah-run", ROWS, **CHEETAH)
    first = envs.processes[1].pid

    def stop(step):  # while stopped, it cannot have answered already
        if step == 5 and when == "amid":
            os.kill(first, signal.SIGSTOP)
        elif step == 5:
            kill(envs, 1)

    answers = play_cheetah(envs, 12, stop, lambda step: step == 5 and when == "amid" and kill(envs, 1))
    for got, expected in zip(rows_of(answers, [0, 2]), rows_of(undisturbed, [0, 2])):
        np.testing.assert_array_equal(got, expected)

    images, rewards, terminated, truncated, infos = answers[6]
    assert infos["lost"].tolist() == infos["_lost"].tolist() == truncated.tolist() == [False, True, False]
    assert infos["death"][1] == "killed by SIGKILL"
    assert infos["env_steps"].tolist() == [4, 0, 4]
    assert not terminated.any()
    assert rewards[1] == 0.0
    assert not images[1].any()
    assert all("lost" not in answer[4] for answer in answers[1:6] + answers[8:]), "it is back"

    alone = make_vector_env("cheetah-run", 1, **CHEETAH)
    np.testing.assert_array_equal(answers[7][0][1], alone.reset(seed=101)[0][0])
    alone.close()
    assert envs.processes[1].pid != first
    assert not psutil.pid_exists(first)
    assert_no_zombies()
    envs.close()
    assert not any(process.is_alive() for process in envs.processes)


@pytest.mark.parametrize("when", ["before", "amid"])
def test_a_worker_killed_at_a_reset_costs_nothing(when, undisturbed):
    envs = make_vector_env("cheetah-run", ROWS, **CHEETAH)
    if when == "before":
        kill(envs, 1)
    else:
        os.kill(envs.processes[1].pid, signal.SIGSTOP)
        threading.Timer(0.2, lambda: kill(envs, 1)).start()
    answers = play_cheetah(envs, 12)
    np.testing.assert_array_equal(answers[0], undisturbed[0])
    for got, expected in zip(rows_of(answers, [0, 1, 2]), rows_of(undisturbed, [0, 1, 2])):
        np.testing.assert_array_equal(got, expected)
    assert_no_zombies()
    envs.close()


def test_workers_killed_at_random_moments_cost_their_own_episodes_alone(undisturbed):
    """Rows 1 and 2 are killed at random; row 0 is not affected, and every loss is reported."""
    envs = make_vector_env("cheetah-run", ROWS, **CHEETAH)
    envs.reset(seed=[7, 8, 9])
    rng, random_row, over, kills = np.random.default_rng(0), random.Random(0), threading.Event(), []

    def kill_now_and_then():
        while len(kills) < RANDOM_KILLS and not over.wait(random_row.uniform(0.05, 0.5)):
            row = random_row.choice([1, 2])
            with contextlib.suppress(ProcessLookupError):  # it was just found dead and is not replaced yet
                pid = envs.processes[row].pid
                os.kill(pid, signal.SIGKILL)
                kills.append(pid)

    killer = threading.Thread(target=kill_now_and_then)
    killer.start()
    lost, answers = 0, []
    while killer.is_alive() or len(answers) < 12:
        answers.append(envs.step(rng.uniform(-1, 1, (ROWS, 6)).astype(np.float32)))
        done = answers[-1][2] | answers[-1][3]
        marked = answers[-1][4].get("lost", np.zeros(ROWS, dtype=bool))
        lost += marked.sum()
        assert not marked[0]
        assert not answers[-1][0][marked].any()
        assert (answers[-1][0][~marked].std((1, 2, 3)) > 5).all()
        if done.any():
            reset_rows(envs, done, [100 + row for row in range(ROWS)])
    killer.join()
    lost += envs.step(np.zeros((ROWS, 6), np.float32))[4].get("lost", np.zeros(ROWS)).sum()  # finds the last kill
    for got, expected in zip(rows_of(answers[:12], [0]), rows_of(undisturbed, [0])):
        np.testing.assert_array_equal(got, expected)
    assert len(kills) == RANDOM_KILLS
    assert 1 <= lost <= len(set(kills))
    assert_no_zombies()
    envs.close()


def test_a_worker_that_dies_again_and_again_is_an_error():
    envs = make_vector_env(FAULTY, 2, workers=True)
    envs.reset(seed=[0, 1])
    with pytest.raises(EnvError, match=r"environment 1 \(of 2\) died 6 times .*killed by SIGKILL.*lower --num-envs"):
        for _ in range(20):
            os.kill(envs.processes[1].pid, signal.SIGSTOP)
            envs.step_async(np.zeros((2, 2), np.float32))
            kill(envs, 1)
            done = envs.step_wait()[3]
            reset_rows(envs, done, [0, 1])
    envs.close()
    assert_no_zombies()


@pytest.mark.parametrize(("call", "message"), [("factory", "died in its set-up"), ("reset", "died 6 times")])
def test_a_worker_that_cannot_even_start_is_an_error(call, message, folder):
    with injected(Fault(call, "die", signal.SIGSEGV), folder):
        with pytest.raises(EnvError, match=rf"{FAULTY}: .*{message} .*killed by SIGSEGV.*--num-envs") as caught:
            play(1, workers=True)
    assert len(str(caught.value).splitlines()) == 1
    assert_no_zombies()


def test_workers_leave_stops_to_their_parent(folder):
    envs = make_vector_env(FAULTY, 2, workers=True)
    envs.reset(seed=[0, 1])
    for process in envs.processes:
        os.kill(process.pid, signal.SIGINT)
        os.kill(process.pid, signal.SIGTERM)
    assert "lost" not in envs.step(np.zeros((2, 2), np.float32))[4]
    envs.close()


def test_a_dead_worker_is_found_though_its_child_holds_the_pipe(tmp_path, monkeypatch):
    (tmp_path / "forking.py").write_text(
        "import os, time\n"
        "from tests.support.faulty_env import FaultyEnv\n"
        "class Forking(FaultyEnv):\n"
        "    def step(self, action):\n"
        "        if os.fork() == 0:\n"
        "            time.sleep(20)\n"
        "        os._exit(3)\n"
        "def make():\n"
        "    return Forking(None)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    envs = make_vector_env("forking:make", 1, workers=True)
    envs.reset(seed=0)
    start = time.monotonic()
    infos = envs.step(np.zeros((1, 2), np.float32))[4]
    assert infos["death"][0] == "exit status 3"
    assert time.monotonic() - start < 10
    envs.close()


def test_a_worker_that_hangs_is_replaced(folder, monkeypatch):
    with injected(Fault("step", "sleep", 600, after=1, row=1), folder):
        envs = make_vector_env(FAULTY, 2, workers=True, action_repeat=1)
        envs.reset(seed=[0, 1])
        first = envs.processes[1].pid
        with monkeypatch.context() as patch:
            patch.setattr(workers, "SILENT_SECONDS", 2.0)
            answers = [envs.step(np.zeros((2, 2), np.float32)) for _ in range(2)]
        assert "lost" not in answers[0][4]
        assert answers[1][4]["lost"].tolist() == answers[1][3].tolist() == [False, True]
        assert answers[1][4]["death"][1] == "no answer in 2 s"
        assert not psutil.pid_exists(first)
        reset_rows(envs, answers[1][3], [2, 3])  # another seed, without the fault
        assert "lost" not in envs.step(np.zeros((2, 2), np.float32))[4]
        envs.close()
    assert_no_zombies()


UNCLOSED = """
import signal, sys, psutil
from dreamer_mpc.envs import make_vector_env
if __name__ == "__main__":
    envs = make_vector_env("tests.support.faulty_env:make", 2, workers=True)
    print(*[process.pid for process in envs.processes], flush=True)
    keep = [envs]  # until the interpreter's end
"""


def test_a_program_ends_though_it_closed_nothing(tmp_path):
    done = script(tmp_path / "unclosed.py", UNCLOSED, timeout=60)
    assert done.returncode == 0 and done.stderr == ""
    assert not any(psutil.pid_exists(int(pid)) for pid in done.stdout.split())


ORPHANS = """
import numpy as np
from dreamer_mpc.envs import make_vector_env
if __name__ == "__main__":
    busy = make_vector_env("tests.support.faulty_env:make", 1, workers=True)
    idle = make_vector_env("tests.support.faulty_env:make", 1, workers=True)
    busy.reset(seed=0)
    busy.step_async(np.zeros((1, 2), np.float32))
    print(*(process.pid for process in busy.processes + idle.processes), flush=True)
    busy.step_wait()
"""


def test_a_killed_parent_leaves_no_workers(tmp_path, folder):
    (tmp_path / "parent.py").write_text(ORPHANS)
    with injected(Fault("step", "sleep", 100), folder):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        full = [sys.executable, str(tmp_path / "parent.py")]
        parent = subprocess.Popen(full, env=environment, stdout=subprocess.PIPE, text=True)
        workers = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        assert len(workers) == 2
        time.sleep(0.2)  # one of them is in its step
        parent.kill()
        parent.wait()
    gone, alive = psutil.wait_procs(workers, timeout=10)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]  # their parent reaps zombies


# The command line


@pytest.mark.parametrize(
    ("fault", "envs", "set_up"),
    [
        (Fault("reset", "return", None), 2, False),
        (Fault("step", "part", (1, np.nan)), 1, False),
        (Fault("step", "raise", RuntimeError("the simulator\nis gone"), after=3), 2, True),
    ],
)
def test_training_on_a_faulty_env_is_one_line(fault, envs, set_up, folder, tmp_path, capfd):
    run_dir = tmp_path / "run"
    with injected(fault, folder):
        assert run.main([*TINY, "--env", FAULTY, "--num-envs", str(envs), "--run-dir", str(run_dir)]) == 2
    error = capfd.readouterr().err
    assert error.startswith(f"error: {FAULTY}: ") and error.count("\n") == 1, error
    assert run_dir.exists() == set_up
