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

_MOST_PAGES = 100_000  # of a file
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
    pages: int
    read: Callable[[int], NDArray[Any]]  # of a page: [H, W, C]
    window: tuple[float, float] | None = None  # values that the file asks to be shown black and white

    def __post_init__(self) -> None:
        check_pixels(*self.size)
        if not 1 <= self.pages <= _MOST_PAGES:
            raise UnreadableSampleError(f"{self.pages:,} images in one file")


def open_deep(stream: BinaryIO) -> DeepImage | None:
    """Return the image in some bytes if it is one of these, None if it is Pillow's; only headers are read so far.

    Raises UnreadableSampleError for one that is damaged, and SslkitError if what reads it is not installed.
    """
    start = stream.tell()
    head = stream.read(_HEADER)
    stream.seek(start)
    if head[:8] == b"\x89PNG\r\n\x1a\n":
        return _open_png(stream, head)
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
    codecs = load_extra("imagecodecs", "deep", "reading PNG files of 48 bits")

    def read(page: int) -> NDArray[Any]:
        # torchvision's decoder ends the process on damaged files.
        values: NDArray[Any] = codecs.png_decode(stream.read())
        if values.shape[:2] != (height, width) or values.ndim != 3:
            raise UnreadableSampleError("a PNG of another size than it says")
        if values.shape[2] in (1, 3):
            return values
        opacity = values[..., -1:].astype(np.float64) / 65535
        return np.rint(values[..., :-1] * opacity + 65535 * (1 - opacity)).astype(np.uint16)  # on white

    return DeepImage((width, height), 1, read)


def _open_tiff(stream: BinaryIO) -> DeepImage | None:
    """Return a TIFF whose values or channels Pillow does not keep, None if it does.

    Channels of a stack, as microscopes write it, are those of an image; each of its other axes counts pages.
    """
    start = stream.tell()
    if _suits_pillow(stream):
        stream.seek(start)
        return None
    stream.seek(start)
    tiff = load_extra("tifffile", "deep", "reading TIFF files of many channels").TiffFile(stream)
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

    def read(page: int) -> NDArray[Any]:
        parts = [series.pages[int(place)].asarray() for place in by_page[page]]
        parts = [part[..., None] if tail == "YX" else part if tail == "YXS" else np.moveaxis(part, 0, -1) for part in parts]
        return np.concatenate(parts, axis=2)

    return DeepImage((width, height), len(by_page), read)


def _suits_pillow(stream: BinaryIO) -> bool:
    """Return whether Pillow keeps all values of a TIFF: 8 bits of up to four channels, or one channel of any type."""
    start = stream.tell()
    header = stream.read(8)
    if header[2:3] == b"+" or header[3:4] == b"+":  # for files beyond 4 GB
        header += stream.read(8)
    tags = TiffImagePlugin.ImageFileDirectory_v2(header)
    stream.seek(start + tags.next)
    tags.load(stream)
    bits, samples, described = tags.get(258, (1,)), tags.get(277, 1), str(tags.get(270, ""))
    if samples > 4 or (samples > 1 and max(bits) > 8):  # Pillow would log it as an error
        return False
    stream.seek(start)
    try:
        with Image.open(stream) as image:
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
    *("WindowCenter", "WindowWidth", "PixelData"),
]


def _open_dicom(stream: BinaryIO) -> DeepImage:
    """Return a DICOM file's frames as the values it describes: slope, intercept and inversion are applied."""
    pydicom = load_extra("pydicom", "medical", "reading DICOM files")
    pixels = load_extra("pydicom.pixels", "medical", "reading DICOM files")
    data = pydicom.dcmread(stream, specific_tags=_DICOM_TAGS)
    if "PixelData" not in data:
        raise UnreadableSampleError("no pixels in it")
    slope, intercept = (
        float(data.get(name, default) or default) for name, default in (("RescaleSlope", 1), ("RescaleIntercept", 0))
    )
    inverted = data.PhotometricInterpretation == "MONOCHROME1"  # the lowest value is white
    # Stored values s become their mirror image: the lowest and the highest change places.
    mirror = 2 ** int(data.BitsStored) - 1 if not data.PixelRepresentation else -1
    plain = slope == 1 and intercept == 0

    def read(page: int) -> NDArray[Any]:
        stored: NDArray[Any] = pixels.pixel_array(data, index=page)
        values = stored[..., None] if stored.ndim == 2 else stored
        if inverted:
            values = (mirror - values.astype(np.int64)).astype(stored.dtype)
        scaled: NDArray[Any] = values if plain else values * slope + intercept
        return scaled

    window = None
    centers, widths = ([float(value) for value in _several(data.get(name))] for name in ("WindowCenter", "WindowWidth"))
    if centers and widths and widths[0] > 0:
        center = slope * mirror + 2 * intercept - centers[0] if inverted else centers[0]
        window = center - widths[0] / 2, center + widths[0] / 2
    return DeepImage((int(data.Columns), int(data.Rows)), int(data.get("NumberOfFrames") or 1), read, window)


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

    return DeepImage((shape[0], shape[1]), shape[2] * shape[3], read)
