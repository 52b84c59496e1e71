"""Images whose values Pillow does not keep: PNG of 48 bits, TIFF of many channels or with stacks, DICOM, NIfTI.

Each is opened by its first bytes, whatever it is called. A file may hold several images, its pages: slices of a volume, frames.
"""

import gzip
import struct
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from sslkit.contract.errors import UnreadableSampleError
from sslkit.extras import load_extra

PAGED = (".tif", ".tiff", ".dcm", ".dicom", ".nii", ".nii.gz")  # what files are called that may have several pages

_MOST_PAGES, _MOST_CHANNELS = 100_000, 64  # of a file, of an image
_MOST_PIXELS = 90_000_000  # to be decoded at once; a worker that holds more may end them all
_HEADER = 352  # bytes of NIfTI's


def check_pixels(width: int, height: int) -> None:
    """Raise UnreadableSampleError for what is too large to decode; only a header has been read."""
    if width * height > _MOST_PIXELS:
        raise UnreadableSampleError(f"{width} x {height} pixels would take gigabytes to decode (shrink it)")


@dataclass(frozen=True)
class DeepImage:
    """An image whose pages are arrays."""

    size: tuple[int, int]  # width and height
    channels: int
    pages: int
    read: Callable[[int], NDArray[Any]]  # of a page: [H, W, C]
    window: tuple[float, float] | None = None  # values that the file asks to be shown black and white

    def __post_init__(self) -> None:
        check_pixels(*self.size)
        if not 1 <= self.channels <= _MOST_CHANNELS:
            raise UnreadableSampleError(f"{self.channels} channels, expected 1 to {_MOST_CHANNELS}")
        if not 1 <= self.pages <= _MOST_PAGES:
            raise UnreadableSampleError(f"{self.pages:,} images in one file")


def open_deep(stream: BinaryIO, eight_bits: bool = False) -> DeepImage | None:
    """Return the image in some bytes if it is one of these, None if it is Pillow's; only headers are read so far.

    Where 8 bits are enough, a PNG of 16 is Pillow's, which reads the upper ones.

    Raises UnreadableSampleError for one that is damaged, and SslkitError if what reads it is not installed.
    """
    start = stream.tell()
    head = stream.read(_HEADER)
    stream.seek(start)
    if head[:8] == b"\x89PNG\r\n\x1a\n":
        return None if eight_bits else _open_png(stream, head)
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _open_tiff(stream)
    if head[128:132] == b"DICM":
        return _open_dicom(stream)
    if head[344:348] in (b"n+1\0", b"n+2\0") or head[4:8] == b"n+2\0":
        return _open_nifti(stream)
    if head[:2] == b"\x1f\x8b":
        with gzip.GzipFile(fileobj=stream) as unpacked:
            inside = unpacked.read(_HEADER)
        stream.seek(start)
        if inside[344:348] == b"n+1\0" or inside[4:8] == b"n+2\0":
            return _open_nifti(gzip.GzipFile(fileobj=stream))
    return None


def to_channels(values: NDArray[Any], channels: int) -> NDArray[Any]:
    """Return an image `[H, W, C]` with the channels asked for: gray is repeated, RGB becomes its lightness.

    Raises UnreadableSampleError for other numbers.
    """
    stored = values.shape[2]
    if stored == channels:
        return values
    if stored == 1:
        return np.repeat(values, channels, axis=2)
    if stored == 3 and channels == 1:
        gray: NDArray[Any] = values @ np.array([0.299, 0.587, 0.114])  # as Pillow (ITU-R BT.601)
        rounded: NDArray[Any] = (np.rint(gray) if values.dtype.kind in "ui" else gray).astype(values.dtype)
        return rounded[..., None]
    raise UnreadableSampleError(f"{stored} channels among images of {channels} (name their --channels)")


def _open_png(stream: BinaryIO, head: bytes) -> DeepImage | None:
    """Return a PNG of 16 bits with color or transparency, of which Pillow reads the upper 8 bits."""
    if len(head) < 26 or head[24] != 16 or head[25] not in (2, 4, 6):
        return None
    width, height = struct.unpack(">II", head[16:24])

    def read(page: int) -> NDArray[Any]:
        codecs = load_extra("imagecodecs", "deep", "reading PNG files of 48 bits")
        # torchvision's decoder ends the process on damaged files.
        values: NDArray[Any] = codecs.png_decode(stream.read())
        if values.shape[:2] != (height, width) or values.ndim != 3:
            raise UnreadableSampleError("decoded size differs from the PNG header")
        if values.shape[2] in (1, 3):
            return values
        opacity = values[..., -1:].astype(np.float64) / 65535
        return np.rint(values[..., :-1] * opacity + 65535 * (1 - opacity)).astype(np.uint16)  # on white

    return DeepImage((width, height), 1 if head[25] == 4 else 3, 1, read)


def _open_tiff(stream: BinaryIO) -> DeepImage | None:
    """Return a TIFF whose values or channels Pillow does not keep, None if it does.

    Channels of a stack, as microscopes write it, are those of an image; each of its other axes counts pages.
    """
    start = stream.tell()
    if _suits_pillow(stream):
        stream.seek(start)
        return None
    stream.seek(start)
    tifffile = load_extra("tifffile", "deep", "reading TIFF files of many channels")
    tiff = tifffile.TiffFile(stream, _multifile=False)  # no other file that this one names
    if not tiff.series:
        raise UnreadableSampleError("no image in it")
    series = tiff.series[0]
    axes, shape = series.axes, series.shape
    tail = "YXS" if axes.endswith("YXS") else "SYX" if axes.endswith("SYX") else "YX"
    if not axes.endswith(tail):
        raise UnreadableSampleError(f"axes {axes} of a TIFF")
    outer, outer_shape = axes[: -len(tail)], shape[: -len(tail)]
    height, width = (shape[axes.index(axis)] for axis in "YX")
    places = np.arange(len(series.pages)).reshape(outer_shape)  # of pages in the file
    if "C" in outer:
        places = np.moveaxis(places, outer.index("C"), -1)
    else:
        places = places[..., None]
    by_page = places.reshape(-1, places.shape[-1])
    channels = by_page.shape[1] * (shape[axes.index("S")] if "S" in tail else 1)
    tags = series.keyframe.tags
    turn = _ORIENTATIONS.get(tags.valueof(_ORIENTATION, 1))
    white_is_zero = tags.valueof(_PHOTOMETRIC) == 0

    def read(page: int) -> NDArray[Any]:
        parts = [series.pages[int(place)].asarray() for place in by_page[page]]
        parts = [part[..., None] if tail == "YX" else part if tail == "YXS" else np.moveaxis(part, 0, -1) for part in parts]
        values = np.concatenate(parts, axis=2)
        if white_is_zero and values.dtype.kind == "u":
            values = np.iinfo(values.dtype).max - values
        return values if turn is None else turn(values)

    size = (height, width) if tags.valueof(_ORIENTATION, 1) in (5, 6, 7, 8) else (width, height)
    return DeepImage(size, channels, len(by_page), read)


_BITS, _PHOTOMETRIC, _DESCRIPTION, _ORIENTATION, _SAMPLES, _EXTRA, _FORMAT = 258, 262, 270, 274, 277, 338, 339  # tags


_ORIENTATIONS: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {  # by the number in EXIF and TIFF: how to turn upright
    2: lambda values: values[:, ::-1],
    3: lambda values: values[::-1, ::-1],
    4: lambda values: values[::-1],
    5: lambda values: values.transpose(1, 0, 2),
    6: lambda values: np.rot90(values, -1),
    7: lambda values: values[::-1, ::-1].transpose(1, 0, 2),
    8: lambda values: np.rot90(values, 1),
}


def _suits_pillow(stream: BinaryIO) -> bool:
    """Return whether Pillow keeps the values of a TIFF: gray, RGB or CMYK of 8 bits, with or without opacity; gray of more."""
    start = stream.tell()
    header = stream.read(8)
    if header[2:3] == b"+" or header[3:4] == b"+":  # for files beyond 4 GB
        header += stream.read(8)
    tags = TiffImagePlugin.ImageFileDirectory_v2(header)
    stream.seek(start + tags.next)
    tags.load(stream)
    bits, kind, photometric = max(tags.get(_BITS, (1,))), max(tags.get(_FORMAT, (1,))), tags.get(_PHOTOMETRIC, 1)
    samples, extra = tags.get(_SAMPLES, 1), tags.get(_EXTRA, ())
    if samples == 1:
        gray = (kind == 1 and bits <= 16) or (kind == 2 and bits in (16, 32)) or (kind == 3 and bits == 32)
        suits = gray and (bits <= 8 or photometric != 0)  # of more bits, white is taken for black
    else:
        opaque_or_transparent = samples - len(extra) in (1, 3, 4) and len(extra) <= 1 and 0 not in extra
        suits = bits <= 8 and kind == 1 and opaque_or_transparent
    if not suits:  # Pillow would log more than four channels as an error
        return False
    stream.seek(start)
    try:
        with Image.open(stream) as image:
            described = str(tags.get(_DESCRIPTION, ""))
            stack = described.startswith("ImageJ=") or "<OME" in described
            return not (stack and getattr(image, "n_frames", 1) > 1)
    except Image.DecompressionBombError:
        return True  # and is refused there
    except UnidentifiedImageError:
        return False


# What is read of a DICOM file; names, dates and numbers of patients are not among it.
_DICOM_TAGS = [
    *("BitsAllocated", "BitsStored", "PixelRepresentation", "SamplesPerPixel", "PhotometricInterpretation"),
    *("PlanarConfiguration", "Rows", "Columns", "NumberOfFrames", "RescaleSlope", "RescaleIntercept"),
    *("WindowCenter", "WindowWidth", "PixelData", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
]


def _open_dicom(stream: BinaryIO) -> DeepImage:
    """Return a DICOM file's frames as the values it describes: slope, intercept and inversion are applied."""
    pydicom = load_extra("pydicom", "medical", "reading DICOM files")
    pixels = load_extra("pydicom.pixels", "medical", "reading DICOM files")
    data = pydicom.dcmread(stream, specific_tags=_DICOM_TAGS)
    if "PixelData" not in data:
        raise UnreadableSampleError("no pixels in it")
    if data.PhotometricInterpretation == "PALETTE COLOR":
        raise UnreadableSampleError("PALETTE COLOR pixels (convert them to RGB)")
    inverted = data.PhotometricInterpretation == "MONOCHROME1"  # the lowest value is white
    # Stored values s become their mirror image: the lowest and the highest change places.
    mirror = 2 ** int(data.BitsStored) - 1 if not data.PixelRepresentation else -1

    def read(page: int) -> NDArray[Any]:
        stored: NDArray[Any] = pixels.pixel_array(data, index=page)
        values = stored[..., None] if stored.ndim == 2 else stored
        if inverted:
            values = (mirror - values.astype(np.int64)).astype(stored.dtype)
        slope, intercept = _rescaling(data, page)
        scaled: NDArray[Any] = values if (slope, intercept) == (1, 0) else values * slope + intercept
        return scaled

    window = None
    centers, widths = ([float(value) for value in _several(data.get(name))] for name in ("WindowCenter", "WindowWidth"))
    if centers and widths and widths[0] > 0:
        slope, intercept = _rescaling(data, 0)
        center = slope * mirror + 2 * intercept - centers[0] if inverted else centers[0]
        window = center - widths[0] / 2, center + widths[0] / 2
    size, pages = (int(data.Columns), int(data.Rows)), int(data.get("NumberOfFrames") or 1)
    return DeepImage(size, int(data.SamplesPerPixel), pages, read, window)


def _rescaling(data: Any, page: int) -> tuple[float, float]:
    """Return slope and intercept of a frame: its own, those of all frames, or those of the file."""
    frames = data.get("PerFrameFunctionalGroupsSequence") or []
    groups = [*frames[page : page + 1], *(data.get("SharedFunctionalGroupsSequence") or [])]
    transformations = [item for group in groups for item in group.get("PixelValueTransformationSequence") or []]
    place = transformations[0] if transformations else data
    slope, intercept = place.get("RescaleSlope"), place.get("RescaleIntercept")
    return 1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept)


def _several(value: Any) -> list[Any]:
    return [] if value is None else list(value) if hasattr(value, "__iter__") else [value]


def _open_nifti(stream: Any) -> DeepImage:
    """Return a NIfTI volume's slices along its third axis, those of a later time after those of an earlier one."""
    nibabel = load_extra("nibabel", "medical", "reading NIfTI volumes")
    kind = nibabel.Nifti1Image
    start = stream.tell()
    if stream.read(4) in (b"\x1c\x02\0\0", b"\0\0\x02\x1c"):  # the size of the second version's header
        kind = nibabel.Nifti2Image
    stream.seek(start)
    files = nibabel.FileHolder(fileobj=stream if start == 0 else BytesIO(stream.read()))
    proxy = kind.from_file_map({"image": files}).dataobj
    shape = (*proxy.shape, 1, 1, 1)
    if len(proxy.shape) > 4 or min(shape) < 1:
        raise UnreadableSampleError(f"a volume of shape {list(proxy.shape)}")

    def read(page: int) -> NDArray[Any]:
        time, place = divmod(page, shape[2])
        at = (slice(None), slice(None), place, time)[: len(proxy.shape)]
        return np.asarray(proxy[at]).T[..., None]

    return DeepImage((shape[0], shape[1]), 1, shape[2] * shape[3], read)
