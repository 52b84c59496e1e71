"""Masks and boxes of images: what `--targets` names, brought to the same canvas as the image."""

import json
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from sslkit.console import say_once
from sslkit.contract.errors import SslkitError, UnreadableSampleError
from sslkit.data.index import FileChangedError, Index, open_file, stamp_file, with_folders_as_labels
from sslkit.data.patterns import path_beside
from sslkit.image.decode import CanvasFormat, open_image
from sslkit.image.formats import check_pixels

_LARGEST = {".xml": 2**24, ".json": 2**32}  # bytes of a file
_MOST_BOXES = 10_000  # of an image
_ALIKE = 0.02  # by which a mask's proportions may differ from its image's: files are rounded to whole pixels


@dataclass(frozen=True)
class Masks:
    """The files with the class of each pixel, 0 to 255, one for each image."""

    paths: Sequence[str]
    stamps: NDArray[np.int64]  # [N, 3]

    def key(self) -> str:
        """Return a hash by which changed files are recognized."""
        return blake2b(
            "\0".join(self.paths).encode(errors="surrogateescape") + self.stamps.tobytes(), digest_size=8
        ).hexdigest()

    def read(self, row: int, form: CanvasFormat, aspect: float, position: float) -> NDArray[np.uint8]:
        """Return a mask on the canvas of its image, `[side, side]`, whose pixels are not mixed.

        Raises UnreadableSampleError with a reason.
        """
        ids = self._open(row)
        width, height = ids.size
        if abs(width / height / aspect - 1) > _ALIKE:
            raise UnreadableSampleError(f"mask {self.paths[row]} has other proportions than its image")
        resized = ids.resize((form.side, form.side), Image.Resampling.NEAREST, box=form.box(width, height, position))
        return np.asarray(resized, dtype=np.uint8)

    def read_whole(self, row: int) -> NDArray[np.uint8]:
        """Return a mask as it is, `[H, W]`; raises UnreadableSampleError with a reason."""
        return np.asarray(self._open(row), dtype=np.uint8)

    def _open(self, row: int) -> Image.Image:
        """Return a mask as an image of one number per pixel, of two colors 0 and 1."""
        path = self.paths[row]
        try:
            with open_file(path) as stream, open_image(stream) as image:
                check_pixels(*image.size)
                upright = ImageOps.exif_transpose(image)
                if upright.mode not in ("L", "P", "1"):
                    raise UnreadableSampleError(f"mask {path} has {upright.mode} pixels, not one number of a class each")
                if upright.mode == "1":
                    return upright.convert("L").point(lambda value: value > 0)
                upright.load()
                return upright
        except FileNotFoundError as error:
            raise UnreadableSampleError(f"no mask {path}") from error
        except (FileChangedError, OSError, ValueError, SyntaxError) as error:  # what Pillow raises for damaged files
            raise UnreadableSampleError(f"mask {path}: {type(error).__name__}: {error}") from error


@dataclass(frozen=True)
class Boxes:
    """Boxes of each image: those of row i are `starts[i]` to `starts[i + 1]`."""

    corners: NDArray[np.float32]  # [M, 4]: left, top, right, bottom, as fractions of the image
    labels: NDArray[np.int64]  # [M], places in `classes`
    starts: NDArray[np.int64]  # [N + 1]
    classes: tuple[str, ...]

    def on_canvas(
        self, rows: NDArray[np.int64], form: CanvasFormat, aspects: NDArray[np.float32], positions: NDArray[np.float64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return boxes `[B, K, 4]` as fractions of the canvas, cut off at its border, and labels, -1 for those outside.

        K is the most that any image has; what others lack has the label -1.
        """
        most = int(np.diff(self.starts).max())
        corners, labels = np.zeros((len(rows), most, 4), np.float32), np.full((len(rows), most), -1, np.int64)
        for number, (row, aspect, position) in enumerate(zip(rows, aspects, positions, strict=True)):
            left, top, right, bottom = form.box(float(aspect), 1, float(position))
            start = np.array([left / aspect, top] * 2, dtype=np.float32)
            extent = np.array([(right - left) / aspect, bottom - top] * 2, dtype=np.float32)
            known = slice(self.starts[row], self.starts[row + 1])
            count = self.starts[row + 1] - self.starts[row]
            corners[number, :count] = ((self.corners[known] - start) / extent).clip(0, 1)
            labels[number, :count] = self.labels[known]
        labels[(corners[..., 2:] - corners[..., :2]).min(axis=2) <= 0] = -1
        return corners, labels


def find_targets(index: Index, pattern: str) -> Masks | Boxes:
    """Return the targets of the images of an index; raises SslkitError if there are none, or they can't be read.

    A pattern is a path from the folder of each image, in which {stem} and {folder} are parts of the image's path: to a mask,
    or, if it ends in .xml, to boxes as PASCAL VOC has them. A path that ends in .json is to boxes of all images, as in COCO.
    """
    if index.array is not None or index.shards:
        raise SslkitError(f"{index.source} has no files beside which targets lie", "leave it out", flag="targets")
    suffix = os.path.splitext(pattern)[1].lower()
    if suffix == ".json":
        return _read_coco(index, pattern)
    if "{stem}" not in pattern:
        hint = "such as ../masks/{stem}.png or ../Annotations/{stem}.xml, from the folder of an image; or a COCO .json"
        raise SslkitError(f"{pattern} names the same file for all images", hint, flag="targets")
    paths = [path_beside(os.path.join(index.root, path), pattern) for path in index.paths]
    with ThreadPoolExecutor(16) as pool:
        stamps = np.array(list(pool.map(stamp_file, paths)), dtype=np.int64)
        if (stamps[:, 1] < 0).all():
            raise SslkitError(
                f"no mask or annotation exists for any image of {index.source}",
                f"the first would be {paths[0]}",
                flag="targets",
            )
        if suffix != ".xml":
            return Masks(paths, stamps)
        return _boxes(list(pool.map(_read_voc, paths)))


def without_targets(index: Index, pattern: str) -> Index:
    """Return the index of files without those that are masks of others; labels of folders are those of the rest."""
    if "{stem}" not in pattern or pattern.lower().endswith(".xml") or index.shards:
        return index
    places = [os.path.join(index.root, path) for path in index.paths]
    targets = {target for place in places if (target := path_beside(place, pattern)) != os.path.normpath(place)}
    rows = np.flatnonzero([os.path.normpath(place) not in targets for place in places])
    if len(rows) == len(index):
        return index
    by_folder = index.labels is not None and os.path.isdir(index.source)
    rest = index.subset(rows)
    return with_folders_as_labels(replace(rest, labels=None, classes=())) if by_folder else rest


_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_Named = list[tuple[str, tuple[float, float, float, float]]]  # class and corners of some boxes


def _boxes(of_images: list[_Named]) -> Boxes:
    """Return boxes as arrays."""
    classes = tuple(sorted({name for boxes in of_images for name, _ in boxes}))
    if not classes:
        raise SslkitError("there is no box in any of them", flag="targets")
    places = {name: place for place, name in enumerate(classes)}
    corners = np.array([box for boxes in of_images for _, box in boxes], dtype=np.float32)
    labels = np.array([places[name] for boxes in of_images for name, _ in boxes], dtype=np.int64)
    return Boxes(corners, labels, np.cumsum([0, *map(len, of_images)]), classes)


def _read_voc(path: str) -> _Named:
    """Return the boxes in an annotation of PASCAL VOC."""
    content = _content(path)
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        raise SslkitError(f"{path} declares entities", "an annotation has none", flag="targets")
    try:
        root = ElementTree.fromstring(content)
        width, height = (float(root.findtext(f"size/{side}") or "") for side in ("width", "height"))
        boxes: _Named = []
        for entry in root.iter("object"):
            left, top, right, bottom = (
                float(entry.findtext(f"bndbox/{side}") or "") for side in ("xmin", "ymin", "xmax", "ymax")
            )
            # Corners are whole pixels, counted from 1, and belong to the box.
            box = ((left - 1) / width, (top - 1) / height, right / width, bottom / height)
            boxes.append(((entry.findtext("name") or "").strip(), box))
        return _checked(boxes, path)
    except (ElementTree.ParseError, ValueError, ZeroDivisionError) as error:
        raise SslkitError(f"{path} is not a PASCAL VOC annotation: {error}", flag="targets") from error


def _read_coco(index: Index, path: str) -> Boxes:
    """Return the boxes of a COCO file; images that it does not name have none."""
    try:
        described: Any = json.loads(_content(path))
        names = {entry["id"]: str(entry["name"]) for entry in described["categories"]}
        images = {entry["id"]: entry for entry in described["images"]}
        by_file: dict[str, _Named] = {str(entry["file_name"]): [] for entry in images.values()}
        for entry in described["annotations"]:
            image = images[entry["image_id"]]
            left, top, width, height = map(float, entry["bbox"])
            if width == 0 or height == 0:
                continue
            across, down = float(image["width"]), float(image["height"])
            box = (left / across, top / down, (left + width) / across, (top + height) / down)
            by_file[str(image["file_name"])].append((names[entry["category_id"]], box))
        by_file = {name: _checked(boxes, path) for name, boxes in by_file.items()}
    except (ValueError, KeyError, TypeError, ZeroDivisionError, RecursionError) as error:
        raise SslkitError(f"{path} is not a COCO file: {type(error).__name__} {error}", flag="targets") from error
    # Names in the file may be relative to another folder; by its last part a name is known if no other has the same.
    ends = Counter(os.path.basename(name) for name in (*by_file, *index.paths))
    by_name = {os.path.basename(name): boxes for name, boxes in by_file.items() if ends[os.path.basename(name)] <= 2}
    boxes_of = [by_file.get(image, by_name.get(os.path.basename(image))) for image in index.paths]
    flat = sum(entry["bbox"][2] == 0 or entry["bbox"][3] == 0 for entry in described["annotations"])
    if flat:
        say_once(f"{flat:,} boxes of {path} without area are left out")
    if all(boxes is None for boxes in boxes_of):
        raise SslkitError(f"{path} names no image of {index.source}, such as {index.paths[0]}", flag="targets")
    return _boxes([boxes or [] for boxes in boxes_of])


def _checked(boxes: _Named, path: str) -> _Named:
    """Return boxes; raises ValueError if there are too many, or one is none."""
    if len(boxes) > _MOST_BOXES:
        raise ValueError(f"{len(boxes):,} boxes of one image")
    for name, (left, top, right, bottom) in boxes:
        if not (name and left < right and top < bottom and max(map(abs, (left, top, right, bottom))) < 100):
            raise ValueError(
                f"a box of class {name!r} from {left:g}, {top:g} to {right:g}, {bottom:g} (fractions of the image)"
            )
    return boxes


def _content(path: str) -> bytes:
    largest = _LARGEST[os.path.splitext(path)[1].lower()]
    try:
        with open_file(path) as stream:
            content = stream.read(largest + 1)
    except FileChangedError as error:
        raise SslkitError(f"{path} is not a file", flag="targets") from error
    except OSError as error:
        raise SslkitError(f"cannot read {path}: {error.strerror}", flag="targets") from error
    if len(content) > largest:
        raise SslkitError(f"{path} has more than {largest:,} bytes", flag="targets")
    return content
