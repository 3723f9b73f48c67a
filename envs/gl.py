"""Selection of a working OpenGL backend, before dm_control is imported and binds itself to one."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from dreamer_mpc.envs.errors import EnvError
from dreamer_mpc.envs.names import is_task

BACKENDS = ("egl", "osmesa", "glfw")
CANDIDATES = ("egl", "osmesa") if sys.platform.startswith("linux") else ("glfw",)
DEBIAN_PACKAGES = {"egl": "libegl1 libgl1", "osmesa": "libosmesa6"}
PIP_PACKAGES = "'dm_control>=1.0.50' 'mujoco>=3.17,<4'"
PROBE = Path(__file__).with_name("probe_gl.py")
PROBE_SECONDS = 60

# Child processes inherit both variables: the probed backend, and the CUDA index of each EGL device ("1,0,,").
PROBED = "DREAMER_MPC_GL_PROBED"
CUDA_INDICES = "DREAMER_MPC_EGL_CUDA_INDICES"
NONE = "none"  # PROBED where nothing renders
VARIABLES = ("MUJOCO_GL", "PYOPENGL_PLATFORM", "MUJOCO_EGL_DEVICE_ID")  # a user's choice that may not render


def choose_gl_backend() -> str:
    """The backend that works here, also set as MUJOCO_GL: the user's own choice, else egl, else osmesa.

    Each is probed once, in a subprocess (seconds): a bad driver may crash, and importing dm_control cannot be
    undone. Raises `EnvError` with the Debian packages to install.
    """
    loaded = sys.modules.get("dm_control._render")
    if getattr(loaded, "BACKEND", None):
        return loaded.BACKEND
    asked = os.environ.get("MUJOCO_GL")
    if asked and asked == os.environ.get(PROBED):
        return asked
    failures = {}
    for backend in [asked] if asked else CANDIDATES:
        failure = _probe(backend)
        if failure is None:
            os.environ["MUJOCO_GL"] = os.environ[PROBED] = backend
            return backend
        failures[backend] = failure
    raise EnvError(_explain(failures))


def offer_gl_backend() -> None:
    """Set MUJOCO_GL for an environment that is not dm_control's, where the user has not chosen and something renders.

    gymnasium's MuJoCo environments try a window first, which fails without a display. An environment may also need no
    OpenGL, so that having none is no error here.
    """
    if os.environ.get("MUJOCO_GL") or os.environ.get(PROBED) == NONE:
        return
    try:
        choose_gl_backend()
    except EnvError:
        os.environ[PROBED] = NONE  # the workers need not try again


def prepare_gl(name: str) -> None:
    """A backend for the environment `name`: a task of dm_control needs one, any other is offered one."""
    choose_gl_backend() if is_task(name) else offer_gl_backend()


def match_egl_device(cuda_index: int) -> bool:
    """Render on the GPU `cuda:cuda_index`: set MUJOCO_EGL_DEVICE_ID, as EGL numbers its devices differently.

    Call it before the first environment. It keeps a value that is set, and does nothing where the index is unknown:
    another backend, no NVIDIA EGL, CUDA_VISIBLE_DEVICES in UUIDs. True if it has set the variable.
    """
    if "MUJOCO_EGL_DEVICE_ID" in os.environ or os.environ.get(PROBED) == NONE:
        return False
    try:
        if choose_gl_backend() != "egl":
            return False
    except EnvError:
        return False
    indices = os.environ.get(CUDA_INDICES, "").split(",")
    physical = _physical_index(cuda_index)
    if physical is None or str(physical) not in indices:
        return False
    os.environ["MUJOCO_EGL_DEVICE_ID"] = str(indices.index(str(physical)))
    return True


def _physical_index(cuda_index: int) -> int | None:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return cuda_index
    devices = [device.strip() for device in visible.split(",")]
    if cuda_index >= len(devices) or not devices[cuda_index].isdecimal():
        return None
    return int(devices[cuda_index])


def _probe(backend: str, without: Sequence[str] = ()) -> str | None:
    """None if `backend` renders a frame, with the variables `without` unset, else why not, in one line."""
    if backend not in BACKENDS:
        return f"not one of {', '.join(BACKENDS)}"
    # -P keeps this folder, with its module names (gl, make, ...), off the script's import path.
    command = [sys.executable, "-P", str(PROBE)]
    kept = {name: value for name, value in os.environ.items() if name not in without}
    environment = {**kept, "MUJOCO_GL": backend}
    environment.pop("CUDA_VISIBLE_DEVICES", None)  # EGL would number the visible GPUs; children may see others
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=PROBE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no frame in {PROBE_SECONDS} s"
    if done.returncode < 0:
        return f"killed by signal {-done.returncode}"
    if done.returncode > 0:
        return (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1][:160]
    if backend == "egl":
        os.environ[CUDA_INDICES] = (done.stdout.splitlines() or [""])[-1]
    return None


def _explain(failures: dict[str, str]) -> str:
    reasons = "; ".join(f"{backend}: {reason}" for backend, reason in failures.items())
    if any("No module named" in reason or "flex_vertedge" in reason for reason in failures.values()):
        return f"dm_control does not import ({reasons}): pip install {PIP_PACKAGES}"
    packages = " or ".join(DEBIAN_PACKAGES[backend] for backend in CANDIDATES if backend in DEBIAN_PACKAGES)
    install = f"apt-get install {packages}" if packages else "see https://mujoco.readthedocs.io"
    chosen = [name for name in VARIABLES if os.environ.get(name)]
    words = " and ".join(f"{name}={os.environ[name]}" for name in chosen)
    if chosen and any(_probe(backend, chosen) is None for backend in CANDIDATES):
        does, it = ("does", "it") if len(chosen) == 1 else ("do", "them")
        return f"{words} {does} not render here ({reasons}): unset {it}"
    if chosen:
        return f"nothing renders here, with {words} ({reasons}) or without: {install}"
    return f"no OpenGL to render with ({reasons}): {install}"
