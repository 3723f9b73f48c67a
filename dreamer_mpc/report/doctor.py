"""`run.py doctor`: whether this machine can train, and what to install if it cannot."""

import importlib.metadata
import importlib.util
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dreamer_mpc.util.errors import UserError
from dreamer_mpc.util.program import program
from dreamer_mpc.util.versions import is_mere_folder

GIB = 2**30
MIN_FREE_DISK_GIB = 5
MIN_MEMORY_GIB = 8
FRAMES = 10
SLOW_FRAME_MILLISECONDS = 10


@dataclass(frozen=True)
class Finding:
    """One line of the report: `ok`, `warn` (runs, but ...) or `FAIL` (does not run), what, and the remedy."""

    status: str
    text: str


def main(args: Sequence[str]) -> int:
    """Say whether this machine can run the project."""
    if list(args) in (["-h"], ["--help"]):
        print(f"usage: {program('doctor')}\n\nSays whether this machine can run the project, and what to install.")
        return 0
    if args:
        raise UserError("doctor takes no options")
    return doctor()


def doctor() -> int:
    """Print a line for each thing a run needs; 0 if this machine can run, 2 if not. Never raises."""
    findings = {name: _examine(check) for name, check in CHECKS.items()}
    for name, finding in findings.items():
        _print_line(finding.status, f"{finding.status:<5} {name:<11} {finding.text}")
    failed = [name for name, finding in findings.items() if finding.status == "FAIL"]
    _print_line("FAIL" if failed else "ok", f"not ready: {', '.join(failed)}" if failed else "ready")
    return 2 if failed else 0


def check_python() -> Finding:
    """Python >=3.11,<3.13: labmaze, which dm_control needs, has no wheel for later versions."""
    version = ".".join(str(part) for part in sys.version_info[:3])
    if (3, 11) <= sys.version_info[:2] < (3, 13):
        return Finding("ok", version)
    return Finding("FAIL", f"{version}: install Python 3.11 or 3.12")


def check_torch() -> Finding:
    """torch and the device that a run would use."""
    try:
        import torch
    except ImportError as error:
        return Finding("FAIL", f"{_one_line(error)}: pip install torch")
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        memory = properties.total_memory / GIB
        count = torch.cuda.device_count()
        return Finding("ok", f"{torch.__version__}, {count} x {properties.name}, {memory:.0f} GiB")
    if Path("/proc/driver/nvidia").exists():
        return Finding(
            "warn",
            f"{torch.__version__} sees no CUDA but there is an NVIDIA driver: pip install a CUDA build",
        )
    return Finding("warn", f"{torch.__version__}, CPU only: slow, but configs/quick.yaml runs")


def check_gl() -> Finding:
    """The OpenGL backend that renders here, and the milliseconds of a frame at both qualities."""
    from dreamer_mpc.envs import EnvError, choose_gl_backend

    try:
        backend = choose_gl_backend()
    except EnvError as error:
        return Finding("FAIL", str(error))
    full, fast = _frame_milliseconds("full"), _frame_milliseconds("fast")
    advice = (
        "; software OpenGL: new runs are faster with --render-quality fast" if full > SLOW_FRAME_MILLISECONDS else ""
    )
    return Finding("ok", f"MUJOCO_GL={backend}, {full:.1f} ms a 64x64 frame ({fast:.1f} at fast){advice}")


def check_mujoco() -> Finding:
    """mujoco and dm_control, and whether their versions are known to work together."""
    try:
        mujoco, dm_control = (importlib.metadata.version(name) for name in ("mujoco", "dm_control"))
    except importlib.metadata.PackageNotFoundError as error:
        return Finding("FAIL", f"{error.name} is not installed: pip install 'dm_control>=1.0.50' 'mujoco>=3.17,<4'")
    pair = f"mujoco {mujoco}, dm_control {dm_control}"
    if not mujoco.split(".")[0].isdecimal() or int(mujoco.split(".")[0]) >= 4:
        return Finding("FAIL", f"{pair}: mujoco 4 breaks dm_control; pip install 'mujoco>=3.17,<4'")
    if _release(mujoco) < (3, 17) or _release(dm_control) != (1, 0, 50):
        return Finding("warn", f"{pair}: untested; pip install 'dm_control==1.0.50' 'mujoco>=3.17,<4'")
    return Finding("ok", f"{pair}: known to work")


def check_gymnasium() -> Finding:
    """gymnasium, whose vector environments can reset single rows since 1.1."""
    version = importlib.metadata.version("gymnasium")
    if _release(version) < (1, 1):
        return Finding("FAIL", f"{version}: pip install 'gymnasium>=1.1'")
    return Finding("ok", version)


def check_video() -> Finding:
    """An MP4 file is written."""
    import numpy as np

    from dreamer_mpc.report.video import write_mp4

    with tempfile.TemporaryDirectory() as folder:
        write_mp4(Path(folder) / "a.mp4", np.zeros((2, 64, 64, 3), np.uint8), 25)
    return Finding("ok", "an mp4 file was written with ffmpeg")


def check_pictures() -> Finding:
    """A PNG file is drawn."""
    from dreamer_mpc.report.charts import new_figure

    with tempfile.TemporaryDirectory() as folder:
        figure = new_figure(2, 1)
        figure.subplots().plot([0, 1])
        figure.savefig(Path(folder) / "a.png")
    return Finding("ok", f"a png file was drawn with matplotlib {importlib.metadata.version('matplotlib')}")


def _optional(check: Callable[[], Finding], what: str) -> Callable[[], Finding]:
    """The check of something that a run can do without: its failure is a warning."""

    def examine() -> Finding:
        found = _examine(check)
        return found if found.status == "ok" else Finding("warn", f"runs leave no {what}: {found.text}")

    return examine


def check_cores() -> Finding:
    """CPU cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return Finding("ok", f"{len(affinity(0)) if affinity else os.cpu_count()}")


def check_memory() -> Finding:
    """Main memory available now; a replay of 500k frames takes 6.1 GB, here or on the GPU."""
    memory = _memory_gib()
    if memory is None:
        return Finding("warn", "not known, as there is no /proc: a full replay takes 6 GiB")
    available, total = memory
    text = f"{available:.0f} of {total:.0f} GiB available"
    if available < MIN_MEMORY_GIB:
        return Finding("warn", f"{text}: a full replay takes 6 GiB; choose a smaller one")
    return Finding("ok", text)


def check_disk() -> Finding:
    """Free space on the disk of the current folder, where runs are written."""
    free = shutil.disk_usage(".").free / GIB
    text = f"{free:.0f} GiB free in {os.getcwd()}"
    if free < MIN_FREE_DISK_GIB:
        return Finding("warn", f"{text}: a run with its videos needs more; name another --run-dir")
    return Finding("ok", text)


def check_loggers() -> Finding:
    """The optional loggers; JSONL needs none of them."""
    names = ("tensorboard", "wandb")
    found = {name: importlib.util.find_spec(name) is not None and not is_mere_folder(name) for name in names}
    missing = [name for name, there in found.items() if not there]
    text = ", ".join(name for name, there in found.items() if there) or "none"
    return Finding("ok", text + (f" (optional: pip install {' '.join(missing)})" if missing else ""))


def check_warp() -> Finding:
    """The optional renderer of the quality `warp`, and the milliseconds of a frame and of 16 at once, on the device."""
    from dreamer_mpc.envs import EnvError
    from dreamer_mpc.envs.scene import INSTALL, check_installed

    try:
        check_installed()
    except EnvError:
        return Finding("ok", f"none (optional: {INSTALL})")
    try:
        one, many = (_drawing_milliseconds(count) for count in (1, 16))
    except Exception as error:
        return Finding("warn", f"--render-quality warp does not work here: {_one_line(error)}")
    version = importlib.metadata.version("mujoco_warp")
    return Finding("ok", f"mujoco-warp {version}, {one:.1f} ms a 64x64 frame, {many:.1f} for 16 at once")


CHECKS: dict[str, Callable[[], Finding]] = {
    "python": check_python,
    "torch": check_torch,
    "dm_control": check_mujoco,
    "gymnasium": check_gymnasium,
    "OpenGL": check_gl,
    "warp": check_warp,
    "video": _optional(check_video, "videos"),
    "pictures": _optional(check_pictures, "pictures"),
    "cores": check_cores,
    "memory": check_memory,
    "disk": check_disk,
    "loggers": check_loggers,
}


def _examine(check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except Exception as error:
        missing = isinstance(error, ImportError) and error.name
        return Finding("FAIL", f"{_one_line(error)}" + (f": pip install {error.name}" if missing else ""))


def _frame_milliseconds(quality: str) -> float:
    from dreamer_mpc.envs import make_env

    env = make_env("cheetah-run", render_quality=quality, action_repeat=1)
    env.reset(seed=0)
    action = env.action_space.sample() * 0.0
    start = time.perf_counter()
    for _ in range(FRAMES):
        env.step(action)
    milliseconds = 1000.0 * (time.perf_counter() - start) / FRAMES
    env.close()
    return milliseconds


def _drawing_milliseconds(count: int) -> float:
    """Of `count` frames that warp draws at once, on the GPU where there is one."""
    import numpy as np

    from dreamer_mpc.envs import make_vector_env
    from dreamer_mpc.envs.scene import WARP
    from dreamer_mpc.rendering.renderer import Renderer
    from dreamer_mpc.util.device import choose_device

    rows = make_vector_env("cheetah-run", 1, workers=False, render_quality=WARP)
    scenes, _ = rows.reset(seed=0)
    device = choose_device("auto")
    renderer, scenes = Renderer(rows.stage(), count, 64, device), np.repeat(scenes, count, axis=0)
    rows.close()
    renderer.draw(scenes).cpu()
    start = time.perf_counter()
    for _ in range(FRAMES):
        images = renderer.draw(scenes)
    images.cpu()  # waits for the device
    return 1000.0 * (time.perf_counter() - start) / FRAMES


def _memory_gib() -> tuple[float, float] | None:
    from dreamer_mpc.util.memory import available_memory, total_memory

    try:
        return available_memory() / GIB, total_memory() / GIB
    except (OSError, RuntimeError, TypeError):
        return None


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3] if part.isdecimal())


def _one_line(error: Exception) -> str:
    return _shorten(" ".join(str(error).split()) or type(error).__name__)


def _shorten(text: str, length: int = 160) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


def _print_line(status: str, line: str) -> None:
    try:
        from rich.console import Console
    except ImportError:
        print(line)
        return
    style = {"ok": "green", "warn": "yellow", "FAIL": "bold red"}[status]
    Console(highlight=False).print(line, style=style, markup=False, soft_wrap=True)
