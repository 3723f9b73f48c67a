"""Pictures and videos for TensorBoard, which shows a video only as a GIF."""

import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from dreamer_mpc.util.encode import find_ffmpeg

GIF_FPS, GIF_WIDTH, GIF_SECONDS = 8, 480, 20  # a GIF of the whole would have tens of megabytes


def to_gif(video: Path) -> bytes:
    """The beginning of a video as a small GIF at its speed; OSError with ffmpeg's words where it fails."""
    size = f"fps={GIF_FPS},scale={GIF_WIDTH}:-2,split[a][b];[a]palettegen=max_colors=64[p];[b][p]paletteuse=dither=none"
    command = [find_ffmpeg(), "-nostdin", "-v", "error", "-t", str(GIF_SECONDS), "-i", f"file:{video}", "-vf", size]
    done = subprocess.run([*command, "-f", "gif", "-"], capture_output=True)
    if done.returncode:
        raise OSError(f"ffmpeg failed with exit status {done.returncode}: {done.stderr.decode(errors='replace')[:200]}")
    return done.stdout


def tensorboard_summary(tag: str, path: Path) -> Any:
    """TensorBoard's record of a PNG or MP4 file."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    encoded = to_gif(path) if path.suffix == ".mp4" else path.read_bytes()
    height, width = _size(encoded, path.suffix == ".mp4")
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=encoded)
    return Summary(value=[Summary.Value(tag=tag, image=image)])


def _size(encoded: bytes, gif: bool) -> tuple[int, int]:
    """Height and width in pixels of a GIF or PNG, from its header."""
    if gif:
        width, height = np.frombuffer(encoded[6:10], "<u2").tolist()
    else:
        width, height = np.frombuffer(encoded[16:24], ">u4").tolist()
    return height, width
