"""Any configuration or command line gives a run that can begin, or one line that names key and remedy."""

import dataclasses
import math
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

import dreamer_mpc.training.setup
import dreamer_mpc.training.trainer
import run
from dreamer_mpc.config import CompareConfig, Config, EvalConfig, check_start, load_presets
from dreamer_mpc.util.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
CASES = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
HOSTILE = [
    "", " ", "nan", "inf", "-inf", "-1", "0", "1.5", "1e400", "1" + "0" * 30, "-" + "1" * 30, "x", "None", "True", "[]",
    "{}", "${oc.env:HOME}", "${seed}", "???", "'", "\x00", "\N{SNOWMAN}", "x" * 5000, "../..", "/", "--seed", "-", "=",
]  # fmt: skip
HOSTILE = [value for value in HOSTILE if "\x00" not in value]  # the kernel does not pass these


class Accepted(Exception):
    """Raised in place of starting a run."""


def leaves(schema, prefix=""):
    """`(flag, type)` of every setting."""
    for field in dataclasses.fields(schema):
        kind = typing.get_type_hints(schema)[field.name]
        if dataclasses.is_dataclass(kind):
            yield from leaves(kind, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, kind


FLAGS = {name: kind for name, kind in leaves(Config) if name not in ("resume", "config")}


@pytest.fixture
def start(tmp_path, monkeypatch, capsys):
    """`run.py train` with a command line; the configuration that it begins with, or the line that refuses it."""
    monkeypatch.chdir(tmp_path)

    class Trainer:
        def __init__(self, config, *_):
            raise Accepted(config)

    monkeypatch.setattr(dreamer_mpc.training.trainer, "Trainer", Trainer)
    monkeypatch.setattr(dreamer_mpc.training.setup, "try_env", lambda *_, **__: None)  # see tests/test_fuzz_envs.py

    def call(*words):
        before = sorted(tmp_path.rglob("*"))
        try:
            code = run.main([*words])
        except Accepted as accepted:
            for path in sorted(set(tmp_path.rglob("*")) - set(before), reverse=True):  # remove the created folder
                path.rmdir() if path.is_dir() else path.unlink()
            return accepted.args[0]
        text = capsys.readouterr().err
        assert code == 2, words
        assert re.fullmatch(r"error: [^\n]+\n", text), (words, text)
        assert sorted(tmp_path.rglob("*")) == before, "nothing is touched"
        return text

    return call


@settings(CASES, max_examples=30)
@given(st.sampled_from(sorted(FLAGS)), st.sampled_from(HOSTILE), st.booleans())
def test_any_value_of_any_flag(start, name, value, joined):
    flag = "--" + name.replace("_", "-")
    if name in ("run_dir",) and value in ("/", "../.."):
        return  # existing folders that are not ours
    outcome = start(*([f"{flag}={value}"] if joined else [flag, value]))
    if isinstance(outcome, Config):
        assert usable(outcome)


def usable(config):
    """Realistic sizes, finite numbers, text without OmegaConf expressions."""
    tree = OmegaConf.structured(config)
    for name, _ in leaves(Config):
        value = OmegaConf.select(tree, name)
        for item in value if isinstance(value, (list, tuple)) else [value]:
            assert not isinstance(item, int) or abs(item) < 2**63, name
            assert not isinstance(item, float) or math.isfinite(item), name
            assert not isinstance(item, str) or "${" not in item, name
    return True


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats() | st.text(max_size=8)
    | st.sampled_from(["${oc.env:HOME}", "???", "dream-mpc", "cheetah-run"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["horizon", "seed", "a b", ""]), inner),
    max_leaves=5,
)  # fmt: skip
KEYS = st.sampled_from([*sorted({name.split(".")[0] for name in FLAGS}), "sede", "", "dream-mpc"])


@settings(CASES, max_examples=100)
@given(st.dictionaries(KEYS, VALUES, min_size=1, max_size=3) | st.binary(max_size=60))
def test_any_yaml_and_any_bytes(tmp_path, content):
    """A preset is a usable configuration, or refused in one line that names it."""
    preset = tmp_path / "preset.yaml"
    preset.write_bytes(content if isinstance(content, bytes) else yaml.safe_dump(content, allow_unicode=True).encode())
    try:
        assert usable(load_presets(str(preset)))
    except UserError as error:
        assert str(preset) in str(error) and "\n" not in str(error)


@pytest.mark.parametrize("content, words", [
    ("seed: 1\nseed: 2\n", "duplicate key"), ("- 1\n", "mapping"), ("7\n", "mapping"), ("a: [\n", "YAML"),
    ("env: !!python/object/apply:os.system ['touch trap']\n", "YAML"), ("env: &a x\nplanner: *a\n", "alias"),
    ("a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]\n" * 9, "alias"), ("env: ${oc.env:HOME}\n", "${"),
    ("[" * 5000, "YAML"), ("seed: ???\n", "???"), ("dream_mpc:\n  horizon: long\n", "dream_mpc.horizon"),
    ("train: 5\n", "train is a group"), ("train: [1]\n", "train is a group"), ("cem:\n", "cem is a group"),
    ("train:\n  action_noise: .inf\n", "action_noise must be finite"),
    ("sede: 1\n", "sede"), ("seed: 1\n" * 200_000, "large"), ("env: \xff\n".encode("latin-1"), "UTF-8"),
])  # fmt: skip
def test_yaml_that_is_refused(start, tmp_path, content, words):
    preset = tmp_path / "preset.yaml"
    preset.write_bytes(content if isinstance(content, bytes) else content.encode())
    outcome = start("--config", str(preset), "--run-dir", "run")
    assert isinstance(outcome, str) and str(preset) in outcome and words in outcome
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize("words, named", [
    ("--max-env-steps 40", "--replay.sequence-length"),
    ("--replay.capacity 500", "--replay.capacity"),
    ("--cem.elites 2000", "elites"),
    ("--mppi.policy-candidates 600", "policy"),
    ("--mppi.min-std 3", "std"),
    ("--resume somewhere --overwrite", "--overwrite"),
    ("--device cuda:99", "cuda:99"),
    ("--config no/such.yaml", "no/such.yaml"),
    ("--seed", "seed"),
    ("--behavior.horizon 1", "horizon"),
    ("--run-dir /proc/nowhere", "/proc/nowhere"),
])  # fmt: skip
def test_what_contradicts_itself_or_is_not_there(start, words, named):
    outcome = start(*words.split())
    assert isinstance(outcome, str) and named in outcome, outcome


def test_only_sequences_that_go_on_into_the_next_episode_may_be_longer_than_one():
    config = dataclasses.replace(Config(), max_env_steps=40)
    check_start(dataclasses.replace(config, replay=dataclasses.replace(config.replay, across_episodes=True)))
    with pytest.raises(UserError, match="longer than an episode of --max-env-steps 40, 21 frames: lower it, raise"):
        check_start(dataclasses.replace(config, replay=dataclasses.replace(config.replay, across_episodes=False)))


@pytest.mark.parametrize("schema, command", [(EvalConfig, "eval"), (CompareConfig, "compare")])
def test_any_flag_of_the_other_commands(tmp_path, monkeypatch, capsys, schema, command):
    """Without a checkpoint none of them can begin."""
    monkeypatch.chdir(tmp_path)
    for name, _ in leaves(schema):
        flag = "--" + name.replace("_", "-")
        for value in HOSTILE[::9]:
            assert run.main([command, "--checkpoint", "nowhere", flag, value]) == 2
            assert re.fullmatch(r"error: [^\n]+\n", capsys.readouterr().err), (flag, value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [
    ["eval", "--checkpoint", ""], ["--config", "", "--env", "no:no"], ["--config=", "--env", "no:no"],
    ["--run-dir", " ", "--env", "no:no"], ["--seed", "1", "--env="], ["--resume", ""],
    ["compare", "--checkpoint", "x", "--planners", ""], ["plot", "x", "--runs", "a", ""],
    ["analyze", "--checkpoint", "x", "--what", "ablate", "--out", ""], ["sweep", "--out", "", "--seeds", "0"],
    ["plot", ""],
])  # fmt: skip
def test_an_empty_value_is_not_the_default(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run.main(words) == 2
    assert "is empty, perhaps a variable that is not set" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_as_a_user_runs_it(tmp_path):
    full = [sys.executable, ROOT / "run.py", "--seed", "\N{SNOWMAN}"]
    done = subprocess.run(full, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and re.fullmatch(r"error: [^\n]+\n", done.stderr), done.stderr
    assert list(tmp_path.iterdir()) == []
