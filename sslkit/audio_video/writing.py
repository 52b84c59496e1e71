"""Write small videos with sound: examples, and data that is made."""

from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sslkit.audio.reading import Wave, load_av


def write_video(path: Path, frames: NDArray[np.uint8], frames_per_second: int, sound: Wave, sample_rate: int) -> None:
    """Write frames `[T, H, W, 3]` and sound `[samples]` as a video; the name of a file tells the container."""
    av = load_av()
    with av.open(str(path), "w") as container:
        picture = container.add_stream("mpeg4", rate=frames_per_second)
        (picture.height, picture.width), picture.pix_fmt = frames.shape[1:3], "yuv420p"
        picture.bit_rate = 2_000_000
        track = container.add_stream("aac" if path.suffix == ".mp4" else "pcm_s16le", rate=sample_rate, layout="mono")
        for frame in frames:
            container.mux(picture.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        samples = (sound.clip(-1, 1) * 32767).astype(np.int16)
        block = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        block.sample_rate, block.time_base, block.pts = sample_rate, Fraction(1, sample_rate), 0  # else AAC would lag
        container.mux(track.encode(block))
        for stream in (picture, track):
            container.mux(stream.encode())
