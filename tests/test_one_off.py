"""What is asked of one call (overwrite, resume, profile, run dir) is no setting; flags and words as users write."""

import sys

import pytest

from dreamer_mpc.config import Config, SweepConfig, config_from_dict, load_presets, to_dict, to_yaml
from dreamer_mpc.runs.checkpoint import list_checkpoints, load_checkpoint
from dreamer_mpc.sweeps.runs import list_runs
from dreamer_mpc.util.errors import UserError
from tests.support.agents import CHEAP, TINY
from tests.support.commands import quietly, train

ONE_OFF = {"run_dir": "runs/x", "resume": "runs/x", "overwrite": True, "profile": True}
RUN = [*TINY, *CHEAP, "--planner", "policy", "--num-envs", "1"]


@pytest.fixture(scope="module")
def precious(tmp_path_factory):
    """A run that was started with --overwrite."""
    folder = tmp_path_factory.mktemp("runs") / "precious"
    train(*RUN, "--run-dir", folder, "--overwrite")
    return folder


def test_one_off_actions_are_not_saved(precious):
    saved = load_checkpoint(precious).config
    text = (precious / "config.yaml").read_text()
    assert not ONE_OFF.keys() & saved.keys() and "config" in saved
    assert not any(f"\n{key}:" in f"\n{text}" for key in ONE_OFF)


@pytest.mark.parametrize("old", [False, True], ids=["now", "saved by an older version"])
def test_a_run_from_the_settings_of_another_leaves_that_alone(old, precious, tmp_path, monkeypatch):
    preset = tmp_path / "config.yaml"
    preset.write_text((precious / "config.yaml").read_text())
    if old:
        asked = f"overwrite: true\nprofile: true\nrun_dir: {precious}\nresume: {precious}\n"
        preset.write_text(preset.read_text() + asked)
    before = {path: path.read_bytes() for path in list_checkpoints(precious / "checkpoints")}
    monkeypatch.chdir(tmp_path)
    train("--config", preset, "--seed", "5")
    assert {path: path.read_bytes() for path in list_checkpoints(precious / "checkpoints")} == before
    (other,) = (tmp_path / "runs").iterdir()
    assert list_checkpoints(other / "checkpoints") and not (other / "profile").exists()


def test_settings_saved_by_an_older_version_lose_them_and_those_of_a_user_are_refused(tmp_path):
    assert config_from_dict({**to_dict(Config()), **ONE_OFF}, "here") == Config()
    mine = tmp_path / "mine.yaml"
    for key, value in ONE_OFF.items():
        mine.write_text(f"seed: 3\n{key}: {str(value).lower()}\n")
        with pytest.raises(UserError, match=f"{key} is no setting .*: give --{key.replace('_', '-')} instead"):
            load_presets(str(mine))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--run_dir", "x"], "--run-dir does not go with --resume"),
        (["--run_dir=x"], "--run-dir does not go with --resume"),
        (["--train_planner", "dream-mpc-default"], "dream-mpc-default is a preset"),
    ],
)
def test_a_flag_is_the_same_with_underscores(args, words, precious):
    done = quietly("--resume", precious, *args)
    assert done.code == 2 and words in done.err and done.err.count("\n") == 1


def test_a_sweep_s_own_flags_are_so_too(tmp_path):
    with pytest.raises(UserError, match="--run-dir does not go with sweep"):
        list_runs(SweepConfig(out=str(tmp_path)), ["--run_dir", "x"])
    done = quietly("sweep", "--out", tmp_path / "out", "--jobs_per_gpu", "0")
    assert done.code == 2 and "--jobs-per-gpu must" in done.err


def test_off_is_a_word_where_a_setting_has_that_word(tmp_path):
    preset = tmp_path / "off.yaml"
    preset.write_text("compile: off\nkernels: off\neval: {video: off}\nreplay: {states: yes}\n")
    config = load_presets(str(preset))
    assert (config.compile, config.kernels, config.eval.video, config.replay.states) == ("off", "off", False, True)
    assert "compile: 'off'" in to_yaml(config)
    preset.write_text("compile: on\n")
    with pytest.raises(UserError, match="compile"):
        load_presets(str(preset))


def test_a_logger_without_its_package_leaves_no_folder(tmp_path, monkeypatch, precious):
    monkeypatch.setitem(sys.modules, "wandb", None)
    for args in (["--run-dir", tmp_path / "run"], ["--run-dir", precious, "--overwrite"]):
        done = quietly(*RUN, "--logger", "wandb", *args)
        assert done.code == 2 and "pip install wandb" in done.err and done.err.count("\n") == 1
    assert not (tmp_path / "run").exists() and list_checkpoints(precious / "checkpoints")
