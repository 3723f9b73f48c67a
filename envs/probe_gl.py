"""Run as a script in its own process: render one frame with dm_control, then describe the EGL devices.

Under MUJOCO_GL=egl the last line printed lists, for each EGL device, its CUDA index, or nothing: `1,0,,`.
A failure is an uncaught exception or a crash: the caller reads the exit status and the end of stderr.
"""

import ctypes
import os

SCENE = "<mujoco><worldbody><light pos='0 0 3'/><geom size='1' rgba='1 1 1 1'/></worldbody></mujoco>"
EGL_CUDA_DEVICE_NV = 0x323A


def render_frame() -> None:
    """Render 16x16 pixels; RuntimeError if they come out black."""
    from dm_control import mujoco

    pixels = mujoco.Physics.from_xml_string(SCENE).render(16, 16)
    if not pixels.any():
        raise RuntimeError("rendered a black frame")


def egl_cuda_indices() -> list[int | None]:
    """The CUDA index of each EGL device, in EGL's order; None where a device has none, [] if unknown."""
    egl = ctypes.CDLL("libEGL.so.1")
    egl.eglGetProcAddress.restype = ctypes.c_void_p
    egl.eglGetProcAddress.argtypes = [ctypes.c_char_p]
    addresses = [egl.eglGetProcAddress(name) for name in (b"eglQueryDevicesEXT", b"eglQueryDeviceAttribEXT")]
    if not all(addresses):
        return []
    query_devices = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(
        addresses[0]
    )
    query_attribute = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)(
        addresses[1]
    )
    devices, count = (ctypes.c_void_p * 64)(), ctypes.c_int()
    query_devices(64, devices, ctypes.byref(count))
    indices = []
    for device in devices[: count.value]:
        index = ctypes.c_ssize_t(-1)
        known = query_attribute(device, EGL_CUDA_DEVICE_NV, ctypes.byref(index))
        indices.append(index.value if known else None)
    return indices


if __name__ == "__main__":
    render_frame()
    if os.environ.get("MUJOCO_GL") == "egl":
        print(",".join("" if index is None else str(index) for index in egl_cuda_indices()))
