"""Frames as JPEG in memory, and as H.264 with ffmpeg, whose exit status decides whether there is a file."""

import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from dreamer_mpc.util.errors import UserError

MISSING = "videos need ffmpeg: pip install imageio imageio-ffmpeg"


def find_ffmpeg() -> str:
    """The program of imageio-ffmpeg, or the one on the PATH; UserError without any."""
    try:
        import imageio_ffmpeg

        return imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:  # RuntimeError: the package came without a program
        raise UserError(MISSING) from error


def to_jpeg(frame: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """A frame in a tenth of its bytes, so that a whole episode can be kept in memory."""
    import cv2

    return cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


def from_jpeg(data: bytes) -> UInt8[np.ndarray, "h w 3"]:
    """The frame of `to_jpeg`."""
    import cv2

    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def encode(path: Path, frames: Iterable[np.ndarray], width: int, height: int, fps: float) -> None:
    """Write uint8 frames [height, width, 3], both sides even, as MP4; OSError with ffmpeg's words where it fails."""
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{fps:.6g}", "-i", "-"]
    target = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "20", "-preset", "veryfast", "-movflags", "+faststart"]
    # `file:` because ffmpeg takes a name with a colon for a protocol; -xerror because it forgives errors at the end.
    command = [find_ffmpeg(), "-nostdin", "-y", "-v", "error", "-xerror", *source, "-an", *target, f"file:{path}"]
    with tempfile.TemporaryFile() as words:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": words}
        process = subprocess.Popen(command, **pipes, process_group=0)  # Ctrl-C is for the run, which waits for it
        try:
            _feed(process, frames)
        except BaseException:
            process.kill()
            raise
        finally:
            code = process.wait()
        if code:
            words.seek(0)
            raise OSError(f"ffmpeg failed with exit status {code}: {_first_line(words.read())}")


def _feed(process: subprocess.Popen, frames: Iterable[np.ndarray]) -> None:
    """Write all frames and close; a pipe that breaks is left to the exit status."""
    try:
        for frame in frames:
            process.stdin.write(np.ascontiguousarray(frame).data)
    except BrokenPipeError:
        pass
    finally:
        try:
            process.stdin.close()
        except BrokenPipeError:
            pass


def _first_line(words: bytes) -> str:
    lines = words.decode(errors="replace").strip().splitlines()
    return lines[0] if lines else "it said nothing"
