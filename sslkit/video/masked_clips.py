"""Clips whose frames have masks of objects."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sslkit.contract.errors import SslkitError, UnreadableSampleError
from sslkit.data.index import open_file
from sslkit.image.decode import open_image
from sslkit.image.formats import check_pixels
from sslkit.image.options import IMAGES
from sslkit.video.propagation import Mask
from sslkit.video.reading import frame_names

_MOST_OBJECTS = 32


@dataclass(frozen=True)
class MaskedClip:
    """A clip: its frames, and the masks of some of them, by the number of the frame."""

    name: str
    frames: list[Path]
    masks: dict[int, Path]

    @cached_property
    def first(self) -> Mask:
        """Return the mask of the first frame."""
        return self.mask(0)

    @cached_property
    def objects(self) -> list[int]:
        """Return the numbers of the objects in the first frame; raises SslkitError if there are none or too many."""
        numbers = [int(number) for number in np.unique(self.first) if number]
        if not 0 < len(numbers) <= _MOST_OBJECTS:
            problem = f"{self.masks[0]} has {len(numbers)} objects" if numbers else f"{self.masks[0]} has no object"
            raise SslkitError(problem, f"expected 1 to {_MOST_OBJECTS}, each a number from 1 on", flag="masks")
        return numbers

    @property
    def scored(self) -> list[int]:
        """Return the frames with a mask that counts: without the first and the last, as in the benchmark's code."""
        return [number for number in self.masks if 0 < number < len(self.frames) - 1]

    def mask(self, number: int) -> Mask:
        """Return the mask of a frame; raises SslkitError for one that is no mask of it."""
        with _opened(self.masks[number], "masks") as image, _opened(self.frames[number], "data") as frame:
            (width, height), (frame_width, frame_height) = image.size, frame.size
            if image.size != frame.size:
                problem = f"{self.masks[number]} is {width}×{height} px, its frame {frame_width}×{frame_height}"
                raise SslkitError(problem, "masks are as large as frames", flag="masks")
            if image.mode not in ("L", "P", "1"):
                problem = f"{self.masks[number]} is an image of mode {image.mode}"
                raise SslkitError(problem, "expected one number per pixel, in 8 bits", flag="masks")
            return np.asarray(image).astype(np.uint8)

    def pixels(self, number: int, resolution: int, multiple: int) -> Tensor:
        """Return a frame `[1, 3, H, W]` in [0, 1], of at most this short side, its sides rounded to multiples."""
        with _opened(self.frames[number], "data") as image:
            shrunk = min(1.0, resolution / min(image.size))
            width, height = (max(multiple, round(side * shrunk / multiple) * multiple) for side in image.size)
            pixels = np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR))
        return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255


def find_clips(data: Path, masks: Path) -> list[MaskedClip]:
    """Return the clips below a folder that have masks; raises SslkitError if there are none, or a mask fits no frame."""
    for folder, flag in ((data, "data"), (masks, "masks")):
        if not folder.is_dir():
            raise SslkitError(f"{folder} is not a folder", "expected one with a folder for each clip", flag=flag)
    clips = []
    for folder in sorted(path for path in data.rglob("*") if path.is_dir() and not path.name.startswith(".")):
        frames = [folder / name for name in frame_names(folder)]
        place = masks / folder.relative_to(data)
        numbers = {frame.stem: number for number, frame in enumerate(frames)}
        names = frame_names(place) if place.is_dir() else []
        if not frames or not names:
            continue
        unknown = next((name for name in names if Path(name).stem not in numbers), None)
        if unknown is not None:
            raise SslkitError(f"{place / unknown} is a mask of no frame in {folder}", "names should match", flag="masks")
        clip = MaskedClip(str(folder.relative_to(data)), frames, {numbers[Path(name).stem]: place / name for name in names})
        if 0 not in clip.masks:
            raise SslkitError(
                f"{place} has no mask of the first frame, {frames[0].name}", "it is what is propagated", flag="masks"
            )
        if clip.scored:
            clips.append(clip)
    if not clips:
        kinds = ", ".join(sorted(IMAGES.extensions)[:3])
        problem = f"no clip in {data} has masks in {masks}"
        raise SslkitError(problem, f"expected folders of the same names, with frames ({kinds} ...) and masks", flag="masks")
    return clips


def fingerprint(clips: list[MaskedClip]) -> str:
    """Return a hash of the names and sizes of frames and masks."""
    digest = blake2b(digest_size=8)
    for clip in clips:
        for file in (*clip.frames, *clip.masks.values()):
            digest.update(f"{clip.name}/{file.name} {file.stat().st_size}\n".encode())
    return digest.hexdigest()


@contextmanager
def _opened(path: Path, flag: str) -> Iterator[Image.Image]:
    """Open an image, whose pixels are decoded when they are asked for; raises SslkitError for what is none."""
    try:
        with open_file(path) as stream, open_image(stream) as image:
            check_pixels(*image.size)
            yield image
    except (OSError, SyntaxError, ValueError, UnreadableSampleError) as error:  # what Pillow raises of a broken file
        raise SslkitError(f"cannot read {path}: {error}", flag=flag) from error
