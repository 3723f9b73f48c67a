"""Which GPU environments are drawn on: the one of training, one that is named, or an idle one."""

import os
import subprocess
from types import SimpleNamespace

import pytest
import torch

from dreamer_mpc.config import Config, load_presets, parse, resolve
from dreamer_mpc.config.make import choose_rendering_gpu
from dreamer_mpc.runs.resume import changing_results
from dreamer_mpc.util import gpus
from dreamer_mpc.util.device import choose_device
from dreamer_mpc.util.errors import UserError
from tests.support.commands import command

GPU = torch.device("cuda", 0)


@pytest.fixture
def host(monkeypatch):
    """Lets torch see GPUs of these kinds, and nvidia-smi list them; GPU i has the UUID `i` and EGL's device 3 - i."""

    def see(kinds, listed=""):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(kinds))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: kinds[i])
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: SimpleNamespace(uuid=str(i)))
        answer = subprocess.CompletedProcess((), 0, stdout=listed)
        monkeypatch.setattr(gpus.subprocess, "run", lambda *args, **settings: answer)
        monkeypatch.setattr("dreamer_mpc.envs.gl.choose_gl_backend", lambda: "egl")
        monkeypatch.setenv("DREAMER_MPC_EGL_CUDA_INDICES", "3,2,1,0")
        monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "7")  # so that monkeypatch restores it
        monkeypatch.delenv("MUJOCO_EGL_DEVICE_ID")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    return see


def chosen(asked, device=GPU):
    """The lines for the user and EGL's device, or None, with `--render-device`."""
    lines = choose_rendering_gpu(parse(Config, ["--render-device", asked], load_presets("default")), device)
    return lines, os.environ.get("MUJOCO_EGL_DEVICE_ID")


NOTHING = ["no idle GPU was found to draw environments on: --render-device idle changes nothing"]


@pytest.mark.parametrize(
    "kinds, listed, found",
    [
        (["A", "A", "A"], "GPU-0, 97, 9000\nGPU-1, 3, 20\nGPU-2, 0, 4\n", 2),
        (["A", "A"], "GPU-0, 0, 4\nGPU-1, 0, 5000\n", None),  # memory in use: a process that waits
        (["A", "B"], "GPU-0, 97, 9000\nGPU-1, 0, 4\n", None),  # another kind draws other pixels
        (["A", "A"], "GPU-0, 97, 9000\nGPU-9, 0, 4\n", None),  # one that this process may not use
        (["A", "A"], "GPU-0, [N/A], [N/A]\nGPU-1, [N/A], [N/A]\n", None),
        (["A", "A"], "No devices were found\n", None),
        (["A"], "GPU-0, 0, 4\n", None),
    ],
)
def test_an_idle_gpu_is_another_one_of_the_kind_that_nothing_uses(kinds, listed, found, host):
    host(kinds, listed)
    expected = (NOTHING, None) if found is None else ([f"environments are drawn on cuda:{found}"], str(3 - found))
    assert chosen("idle") == expected


def test_without_nvidia_smi_no_gpu_is_idle(host, monkeypatch):
    host(["A", "A"])

    def missing(*args, **settings):
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(gpus.subprocess, "run", missing)
    assert chosen("idle") == (NOTHING, None)
    assert chosen("idle", torch.device("cpu")) == (NOTHING, None)


def test_a_gpu_can_be_named_and_same_is_left_to_the_environments(host, monkeypatch):
    host(["A", "B"])
    assert chosen("same") == ([], None)
    assert chosen("cuda:1") == (["environments are drawn on cuda:1"], "2")
    with pytest.raises(UserError, match="MUJOCO_EGL_DEVICE_ID=2 is set: unset it, or use --render-device same"):
        chosen("cuda:0")
    assert chosen("idle") == (["MUJOCO_EGL_DEVICE_ID=2 is set: --render-device idle changes nothing"], "2")
    monkeypatch.delenv("MUJOCO_EGL_DEVICE_ID")
    monkeypatch.setenv("DREAMER_MPC_EGL_CUDA_INDICES", ",,")
    with pytest.raises(UserError, match="nothing can be drawn on cuda:0, as EGL does not name that GPU: use"):
        chosen("cuda:0")


@pytest.mark.parametrize(
    "words, line",
    [
        (["--render-device", "gpu1"], "--render-device must be same, idle or cuda:N, got 'gpu1' (see --help)"),
        (["--render-device", "cuda:4095"], "no GPU cuda:4095 to draw on: torch sees"),
        (["--render-device", "idle", "--render-quality", "warp"], "warp draws on --device: leave --render-device out"),
    ],
)
def test_what_cannot_be_is_one_line_and_leaves_no_run_folder(words, line, tmp_path):
    done = command("--config", "quick", "--device", "cpu", "--run-dir", tmp_path / "run", *words)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and line in done.stderr
    assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["cuda:2", "cuda:128", "cuda:255", "cuda:256", "cuda:4095"])
def test_a_device_of_a_number_that_is_not_there_is_refused(name, host, monkeypatch):
    """torch.device keeps 8 bits of a number: its cuda:256 would be cuda:0."""
    host(["A", "A"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UserError, match=f"no device {name}: torch sees 2 GPUs"):
        choose_device(name)


def test_it_is_no_setting_of_the_method():
    assert not changing_results({"render_device": "same -> idle"})
    assert resolve(load_presets("default")).render_device == "same"
