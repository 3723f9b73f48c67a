"""`doctor` prints one line for each check, exits with 0 or 2, and never with a traceback."""

import sys

import pytest

from dreamer_mpc.envs import EnvError
from dreamer_mpc.report import doctor as module
from dreamer_mpc.report.doctor import doctor


@pytest.fixture
def no_rendering(monkeypatch):
    monkeypatch.setattr(module, "_frame_milliseconds", lambda quality: 1.5)


def line(output, name):
    (found,) = (text for text in output.splitlines() if text.split()[1:2] == [name])
    return found


def test_this_machine_is_ready(capsys):
    assert doctor() == 0
    output = capsys.readouterr().out
    assert output.splitlines()[-1] == "ready"
    assert "FAIL" not in output
    assert "ms a 64x64 frame" in line(output, "OpenGL")
    assert "known to work" in line(output, "dm_control")
    assert "\x1b" not in output


MISSING = [("torch", "torch"), ("dreamer_mpc.envs", "OpenGL"), ("imageio_ffmpeg", None)]


@pytest.mark.parametrize("module_name, check", MISSING)
def test_a_missing_module_is_a_line(module_name, check, no_rendering, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, module_name, None)
    assert doctor() == (2 if check else 0)
    output = capsys.readouterr().out
    assert "Traceback" not in output
    if check:
        assert line(output, check).startswith("FAIL")
        assert "pip install" in line(output, check)
        assert f"not ready: {check}" in output


def test_what_cannot_make_a_video_or_a_picture_is_a_warning(no_rendering, monkeypatch, capsys):
    def fail(*_):
        raise RuntimeError("Could not load library")

    monkeypatch.setattr("imageio_ffmpeg.get_ffmpeg_exe", fail)
    monkeypatch.setattr("dreamer_mpc.report.charts.new_figure", fail)
    assert doctor() == 0
    output = capsys.readouterr().out
    assert line(output, "video").startswith("warn") and "pip install imageio" in line(output, "video")
    assert line(output, "pictures").startswith("warn") and "Could not load library" in line(output, "pictures")


def test_missing_opengl_is_a_line_with_its_packages(no_rendering, monkeypatch, capsys):
    def fail():
        raise EnvError("no OpenGL to render with: apt-get install libegl1 libgl1")

    monkeypatch.setattr("dreamer_mpc.envs.choose_gl_backend", fail)
    assert doctor() == 2
    assert "apt-get install libegl1" in line(capsys.readouterr().out, "OpenGL")


PAIRS = [("3.17.0", "ok"), ("3.16.2", "warn"), ("3.18.1", "warn"), ("4.0.0", "FAIL")]


@pytest.mark.parametrize("mujoco, status", PAIRS)
def test_the_mujoco_pair(mujoco, status, monkeypatch):
    versions = {"mujoco": mujoco, "dm_control": "1.0.51" if mujoco == "3.18.1" else "1.0.50"}
    monkeypatch.setattr("importlib.metadata.version", versions.__getitem__)
    finding = module.check_mujoco()
    assert finding.status == status
    assert ("pip install" in finding.text) == (status != "ok")


@pytest.mark.parametrize("version, status", [((3, 10, 9), "FAIL"), ((3, 12, 1), "ok"), ((3, 13, 0), "FAIL")])
def test_the_python_version(version, status, monkeypatch):
    monkeypatch.setattr(sys, "version_info", version)
    assert module.check_python().status == status


def test_a_little_memory_and_disk_warn(monkeypatch):
    monkeypatch.setattr(module, "_memory_gib", lambda: (3.0, 4.0))
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 2**30}))
    assert module.check_memory().status == "warn"
    assert module.check_disk().status == "warn"


def test_fast_pictures_are_advised_for_new_runs_alone(monkeypatch):
    monkeypatch.setattr(module, "_frame_milliseconds", lambda quality: 14.0 if quality == "full" else 1.0)
    assert "new runs are faster with --render-quality fast" in module.check_gl().text
    monkeypatch.setattr(module, "_frame_milliseconds", lambda quality: 0.5)
    assert "--render-quality" not in module.check_gl().text
