"""Images that Pillow reads in part or not at all: values, channels, pages, and what damaged files give."""

import shutil
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import tifffile
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from sslkit.contract.errors import SslkitError
from sslkit.image.source import ImageSource
from sslkit.specs.data import DataSpec

Run = Callable[..., Any]
RANDOM = np.random.default_rng(0)


def read(data: Path, side: int = 8, **values: Any) -> tuple[np.ndarray, ImageSource]:
    source = ImageSource.open(DataSpec(data=str(data), size=side, canvas=side, cache="off", workers=0, reindex=True, **values))
    arrays, broken = source.read(np.arange(source.info.samples))
    assert not broken, broken
    return arrays["canvas"], source


def png_of_16_bits(path: Path, values: np.ndarray) -> None:
    """Write a PNG of 16 bits a channel, which Pillow cannot."""
    height, width, channels = values.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b""))


def test_a_png_of_48_bits_keeps_them(tmp_path: Path) -> None:
    values = RANDOM.integers(0, 65536, (2, 8, 8, 3), dtype=np.uint16)
    for number, image in enumerate(values):
        png_of_16_bits(tmp_path / f"{number}.png", image)
    canvases, source = read(tmp_path)
    assert canvases.dtype == np.uint16 and np.array_equal(canvases, values)
    assert source.resolved["range"] == ("0,65535", "the range of 16 bits")
    gray, _ = read(tmp_path, channels=1)
    assert np.abs(gray[..., 0] - values @ [0.299, 0.587, 0.114]).max() <= 0.5


def test_transparency_of_16_bits_is_put_on_white(tmp_path: Path) -> None:
    values = RANDOM.integers(0, 65536, (8, 8, 4), dtype=np.uint16)
    values[..., 3] = np.where(np.arange(8) < 4, 0, 65535)
    png_of_16_bits(tmp_path / "0.png", values)
    (canvas,), _ = read(tmp_path)
    assert (canvas[:, :4] == 65535).all() and np.array_equal(canvas[:, 4:], values[:, 4:, :3])
    png_of_16_bits(tmp_path / "0.png", values[..., 2:])
    (canvas,), _ = read(tmp_path)
    assert (canvas[:, :4] == 65535).all() and np.array_equal(canvas[:, 4:, 0], values[:, 4:, 2])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32, np.float64])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_a_tiff_of_seven_channels(dtype: type, planar: str, tmp_path: Path) -> None:
    values = RANDOM.integers(0, 200, (3, 8, 8, 7)).astype(dtype)
    for number, image in enumerate(values):
        stored = image if planar == "contig" else np.moveaxis(image, -1, 0)
        tifffile.imwrite(tmp_path / f"{number}.tif", stored, planarconfig=planar, photometric="minisblack")
    canvases, source = read(tmp_path, **({} if dtype == np.uint8 else {"range": "0,255"}))
    assert source.info.channels == 7 and source.resolved["channels"] == (7, "those of the files")
    expected = values if dtype == np.uint8 else values * 257.0
    assert np.array_equal(canvases, expected)
    with pytest.raises(SslkitError, match=r"--channels: expected 5 channels, and images of .* have 7"):
        read(tmp_path, channels=5)


def test_channels_of_a_microscope_are_channels_and_its_stacks_are_pages(tmp_path: Path) -> None:
    values = RANDOM.integers(0, 60000, (4, 5, 8, 8), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "stack.tif", values, imagej=True, metadata={"axes": "ZCYX"})
    canvases, source = read(tmp_path, range="dtype")
    assert source.info.samples == 4 and source.info.channels == 5
    assert np.array_equal(canvases, np.moveaxis(values, 1, -1))
    assert [source.name(row) for row in range(4)] == [f"stack.tif[{page}]" for page in range(4)]


def test_pages_of_a_tiff_are_samples_of_one_group(tmp_path: Path) -> None:
    values = RANDOM.integers(0, 256, (2, 5, 8, 8), dtype=np.uint8)
    for name, stack in zip("ab", values, strict=True):
        (tmp_path / name).mkdir()
        frames = [Image.fromarray(page) for page in stack]
        frames[0].save(tmp_path / name / "stack.tiff", save_all=True, append_images=frames[1:])
    Image.fromarray(values[0, 0]).save(tmp_path / "a" / "single.png")
    canvases, source = read(tmp_path)
    assert np.array_equal(canvases[1:6, ..., 0], values[0]) and np.array_equal(canvases[6:, ..., 0], values[1])
    labels = source.find_labels()
    assert labels.values.tolist() == [0] * 6 + [1] * 5
    index = ImageSource.read_index(str(tmp_path), DataSpec())  # the number of pages comes from the cache
    assert index.group_names == tuple(f"{tmp_path}/{name}" for name in ("a/single.png", "a/stack.tiff", "b/stack.tiff"))
    assert index.fingerprint() == source.index.fingerprint()


def dicom(path: Path, pixels: np.ndarray, **tags: Any) -> None:
    """Write a DICOM file; `pixels` `[H, W]`, `[frames, H, W]` or, of RGB, `[H, W, 3]`."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    color = pixels.shape[-1] == 3 and pixels.ndim == 3
    data.PatientName, data.PatientID = "Hidden^Name", "hidden-id"
    data.SamplesPerPixel = 3 if color else 1
    data.PhotometricInterpretation = "RGB" if color else "MONOCHROME2"
    if color:
        data.PlanarConfiguration = 0
    elif pixels.ndim == 3:
        data.NumberOfFrames = len(pixels)
    data.Rows, data.Columns = pixels.shape[:2] if color else pixels.shape[-2:]
    bits = 8 * pixels.dtype.itemsize
    data.BitsAllocated, data.BitsStored, data.HighBit = bits, bits, bits - 1
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    data.PixelData = pixels.tobytes()
    for name, value in tags.items():
        setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)


def test_dicom_slope_and_window(tmp_path: Path) -> None:
    stored = RANDOM.integers(0, 2000, (3, 8, 8), dtype=np.uint16)
    for number, image in enumerate(stored):
        dicom(
            tmp_path / f"{number}.dcm",
            image,
            RescaleSlope=2,
            RescaleIntercept=-1024,
            WindowCenter=[40, 600],
            WindowWidth=[400, 9],
        )
    canvases, source = read(tmp_path)
    assert source.resolved["range"] == ("-160,240", "the median window of 3 samples")
    expected = np.clip((stored * 2.0 - 1024 + 160) / 400, 0, 1) * 65535
    assert np.abs(canvases[..., 0] - expected).max() <= 0.5
    whole, _ = read(tmp_path, range="-1024,2976")
    assert np.abs(whole[..., 0] / 65535 * 4000 - stored * 2.0).max() < 0.05


@pytest.mark.parametrize("signed", [False, True])
def test_dicom_that_is_inverted(signed: bool, tmp_path: Path) -> None:
    stored = RANDOM.integers(-500 if signed else 0, 500, (8, 8)).astype(np.int16 if signed else np.uint16)
    dicom(tmp_path / "plain.dcm", stored, WindowCenter=100, WindowWidth=400)
    dicom(tmp_path / "turned.dcm", stored, WindowCenter=100, WindowWidth=400, PhotometricInterpretation="MONOCHROME1")
    for name in ("plain", "turned"):
        (tmp_path / name).mkdir()
        (tmp_path / f"{name}.dcm").rename(tmp_path / name / "0.dcm")
    plain, turned = (read(tmp_path / name)[0].astype(int) for name in ("plain", "turned"))
    assert np.abs(65535 - plain - turned).max() <= 1 and len(np.unique(plain)) > 5


def test_dicom_frames_and_color(tmp_path: Path) -> None:
    frames = RANDOM.integers(0, 60000, (4, 8, 8), dtype=np.uint16)
    dicom(tmp_path / "frames.dcm", frames)
    canvases, source = read(tmp_path, range="dtype")
    assert np.array_equal(canvases[..., 0], frames) and source.name(2) == "frames.dcm[2]"
    color = RANDOM.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    (tmp_path / "color").mkdir()
    dicom(tmp_path / "color" / "0.dcm", color)
    (canvas,), _ = read(tmp_path / "color")
    assert canvas.dtype == np.uint8 and np.array_equal(canvas, color)


def test_no_name_of_a_patient_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dicom(tmp_path / "0.dcm", RANDOM.integers(0, 60000, (8, 8), dtype=np.uint16))
    datasets: list[Any] = []
    real = pydicom.dcmread
    monkeypatch.setattr(
        pydicom, "dcmread", lambda *arguments, **options: datasets.append(real(*arguments, **options)) or datasets[-1]
    )
    read(tmp_path)
    assert datasets and all("PatientName" not in data and "PatientID" not in data for data in datasets)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_slices_of_a_volume(suffix: str, kind: Any, tmp_path: Path) -> None:
    volume = RANDOM.integers(0, 1000, (8, 8, 5, 2)).astype(np.int16)
    nibabel.save(kind(volume, np.eye(4)), tmp_path / f"brain{suffix}")
    canvases, source = read(tmp_path, range="0,1000")
    assert source.info.samples == 10 and source.name(7) == f"brain{suffix}[7]"
    expected = np.moveaxis(volume, (3, 2), (0, 1)).reshape(10, 8, 8).transpose(0, 2, 1)  # rows are the second axis
    assert np.abs(canvases[..., 0] / 65535 * 1000 - expected).max() < 0.02


def test_volumes_in_shards(tmp_path: Path) -> None:
    import tarfile

    volume = RANDOM.integers(0, 1000, (8, 8, 3)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "brain.nii.gz")
    with tarfile.open(tmp_path / "all.tar", "w") as shard:
        shard.add(tmp_path / "brain.nii.gz", "brain.nii.gz")
    source = ImageSource.open(DataSpec(data=f"wds:{tmp_path / 'all.tar'}", size=8, canvas=8, cache="off"))
    assert source.info.samples == 3 and not source.read(np.arange(3))[1]


def test_an_evaluation_keeps_the_slices_of_a_volume_together(tmp_path: Path, sslkit: Run, quick: list[str]) -> None:
    for name in "ab":
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(5):
            volume = RANDOM.integers(0, 1000, (16, 16, 4)).astype(np.int16)
            nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "data" / name / f"{number}.nii")
    ran = sslkit("pretrain", "rotation", "--data", tmp_path / "data", *quick, "--steps", 1, "--out", tmp_path / "run")
    assert ran.code == 0 and "rotation on 40 images" in ran.err, ran.err
    ran = sslkit("knn", "--ckpt", tmp_path / "run" / "model.safetensors", "--k", 3, "--no-baselines")
    assert ran.code == 0 and "2 of 10 groups" in ran.err
    ran = sslkit(
        "knn", "--ckpt", tmp_path / "run" / "model.safetensors", "--k", 3, "--test", tmp_path / "data", "--no-baselines"
    )
    assert ran.code == 2 and "shares 10 groups" in ran.err  # the same files
    shutil.copytree(tmp_path / "data", tmp_path / "other")
    ran = sslkit(
        "knn", "--ckpt", tmp_path / "run" / "model.safetensors", "--k", 3, "--test", tmp_path / "other", "--no-baselines"
    )
    assert ran.code == 0  # others of the same names


def damage(content: bytes, at: int, value: bytes) -> bytes:
    return content[:at] + value + content[at + len(value) :]


@pytest.mark.parametrize("name", ["0.png", "0.tif", "0.dcm", "0.nii", "0.nii.gz"])
@pytest.mark.parametrize("how", ["cut", "noise"])
def test_damaged_files_are_reported(name: str, how: str, tmp_path: Path) -> None:
    file = tmp_path / name
    values = RANDOM.integers(0, 60000, (16, 16, 3), dtype=np.uint16)
    {
        ".png": lambda: png_of_16_bits(file, values),
        ".tif": lambda: tifffile.imwrite(file, values, photometric="rgb"),
        ".dcm": lambda: dicom(file, values[..., 0]),
        ".nii": lambda: nibabel.save(nibabel.Nifti1Image(values.astype(np.int16), np.eye(4)), file),
        ".gz": lambda: nibabel.save(nibabel.Nifti1Image(values.astype(np.int16), np.eye(4)), file),
    }[file.suffix]()
    content = file.read_bytes()
    half = len(content) // 2
    file.write_bytes(content[:half] if how == "cut" else content[:180] + RANDOM.bytes(len(content) - 180))
    try:
        source = ImageSource.open(DataSpec(data=str(tmp_path), size=8, canvas=8, cache="off", workers=0, range="0,60000"))
    except SslkitError as error:
        assert name in str(error) + error.hint
        return
    _, broken = source.read(np.arange(source.info.samples))
    assert broken or how == "noise"  # noise may be pixels


def test_volumes_that_claim_to_be_huge(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.zeros((8, 8, 2), np.int16), np.eye(4)), tmp_path / "0.nii")
    content = (tmp_path / "0.nii").read_bytes()
    (tmp_path / "0.nii").write_bytes(damage(content, 42, struct.pack("<3h", 30000, 30000, 2)))
    with pytest.raises(SslkitError, match="pixels would take gigabytes"):
        ImageSource.open(DataSpec(data=str(tmp_path), size=8, cache="off", reindex=True))


@pytest.mark.parametrize(
    ("module", "name", "extra"),
    [
        ("imagecodecs", "0.png", "deep"),
        ("tifffile", "0.tif", "deep"),
        ("pydicom", "0.dcm", "medical"),
        ("nibabel", "0.nii", "medical"),
    ],
)
def test_the_extra_is_named(module: str, name: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if module == "imagecodecs":
        png_of_16_bits(tmp_path / name, np.zeros((8, 8, 3), np.uint16))
    elif module == "tifffile":
        tifffile.imwrite(tmp_path / name, np.zeros((8, 8, 7), np.uint16), photometric="minisblack", planarconfig="contig")
    elif module == "pydicom":
        dicom(tmp_path / name, np.zeros((8, 8), np.uint16))
    else:
        nibabel.save(nibabel.Nifti1Image(np.zeros((8, 8, 2), np.int16), np.eye(4)), tmp_path / name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SslkitError, match=rf"needs {module} \(pip install 'sslkit\[{extra}\]'\)"):
        ImageSource.open(DataSpec(data=str(tmp_path), size=8, cache="off"))


@pytest.mark.parametrize("dtype", [np.uint32, np.int8])
def test_types_that_pillow_misreads(dtype: type, tmp_path: Path) -> None:
    values = np.linspace(np.iinfo(dtype).min, np.iinfo(dtype).max, 64).round().astype(dtype).reshape(8, 8)
    tifffile.imwrite(tmp_path / "0.tif", values, photometric="minisblack")
    (canvas,), _ = read(tmp_path, range=f"{np.iinfo(dtype).min},{np.iinfo(dtype).max}")
    assert np.abs(canvas[..., 0] - np.linspace(0, 65535, 64).reshape(8, 8)).max() < 300


def test_white_is_zero_and_turned(tmp_path: Path) -> None:
    values = RANDOM.integers(0, 65536, (8, 8), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "0.tif", values, photometric="miniswhite")
    (canvas,), _ = read(tmp_path, range="dtype")
    assert np.array_equal(canvas[..., 0], 65535 - values)
    color = RANDOM.integers(0, 65536, (8, 12, 3), dtype=np.uint16)
    for number, turn in enumerate((lambda image: image, lambda image: image[:, ::-1], lambda image: np.rot90(image, -1)), 1):
        orientation = (1, 2, 6)[number - 1]
        tifffile.imwrite(tmp_path / "0.tif", color, photometric="rgb", extratags=[(274, "H", 1, orientation, True)])
        (canvas,), source = read(tmp_path, side=12, range="dtype")
        aspect = source.read(np.arange(1))[0]["aspect"][0]
        tifffile.imwrite(tmp_path / "0.tif", np.ascontiguousarray(turn(color)), photometric="rgb")
        (expected,), upright = read(tmp_path, side=12, range="dtype")
        assert np.array_equal(canvas, expected) and aspect == upright.read(np.arange(1))[0]["aspect"][0]


def test_a_fourth_channel_that_is_no_opacity_is_kept(tmp_path: Path) -> None:
    values = RANDOM.integers(0, 256, (8, 8, 4), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "0.tif", values, photometric="rgb", extrasamples=["unspecified"])
    (canvas,), source = read(tmp_path)
    assert source.info.channels == 4 and np.array_equal(canvas, values)


def test_too_many_channels_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "0.tif", np.zeros((8, 8, 100), np.uint8), photometric="minisblack", planarconfig="contig")
    with pytest.raises(SslkitError, match="100 channels, expected 1 to 64"):
        read(tmp_path)


def test_a_stack_reads_no_other_file_that_it_names(tmp_path: Path) -> None:
    hidden = np.full((8, 8), 77, np.uint16)
    tifffile.imwrite(tmp_path / "hidden.tif", hidden)
    (tmp_path / "in").mkdir()
    values = np.zeros((2, 8, 8), np.uint16)
    tifffile.imwrite(tmp_path / "in" / "evil.ome.tif", values, ome=True, metadata={"axes": "ZYX"})
    file = tmp_path / "in" / "evil.ome.tif"
    with tifffile.TiffFile(file) as tiff:
        description = tiff.pages[0].description
    tail = f'<UUID FileName="../hidden.tif">urn:uuid:{"0" * 8}-0000-0000-0000-{"0" * 12}</UUID>'
    changed = description.replace('<TiffData IFD="0" PlaneCount="2"/>', f'<TiffData IFD="0" FirstZ="1">{tail}</TiffData>')
    tifffile.imwrite(file, values, description=changed, metadata=None)
    try:
        canvases, _ = read(tmp_path / "in", range="dtype")
    except SslkitError:
        return
    assert not canvases.any()


def test_palettes_and_frames_with_a_slope_each(tmp_path: Path) -> None:
    from pydicom.dataset import Dataset

    dicom(tmp_path / "0.dcm", np.zeros((8, 8), np.uint8), PhotometricInterpretation="PALETTE COLOR")
    with pytest.raises(SslkitError, match=r"PALETTE COLOR pixels \(convert them to RGB\)"):
        read(tmp_path)
    frames = []
    for slope in (1, 10):
        transformation, group = Dataset(), Dataset()
        transformation.RescaleSlope, transformation.RescaleIntercept = slope, 5
        group.PixelValueTransformationSequence = [transformation]
        frames.append(group)
    stored = np.full((2, 8, 8), 50, np.uint16)
    dicom(tmp_path / "0.dcm", stored, PerFrameFunctionalGroupsSequence=frames)
    canvases, _ = read(tmp_path, range="0,1000")
    assert np.round(canvases[:, 0, 0, 0] / 65.535).tolist() == [55, 505]


def test_a_png_of_48_bits_among_images_of_8_needs_no_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(300):
        Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / f"{number:03}.png")
    source = ImageSource.open(DataSpec(data=str(tmp_path), size=8, canvas=8, cache="off", workers=0))
    deep = np.full((8, 8, 3), 200 * 256 + 7, np.uint16)
    tried = set(np.unique(np.linspace(0, 299, 200).astype(int)).tolist())
    row = next(row for row in range(300) if row not in tried)
    png_of_16_bits(tmp_path / f"{row:03}.png", deep)
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    source = ImageSource.open(DataSpec(data=str(tmp_path), size=8, canvas=8, cache="off", workers=0))
    arrays, broken = source.read(np.array([row]))
    assert not broken and (arrays["canvas"] == 200).all()


def test_a_reduced_jpeg_keeps_its_proportions(tmp_path: Path) -> None:
    Image.new("RGB", (600, 297), (9, 9, 9)).save(tmp_path / "0.jpg")
    source = ImageSource.open(DataSpec(data=str(tmp_path), size=32, canvas=37, cache="off", workers=0))
    assert source.read(np.arange(1))[0]["aspect"][0] == pytest.approx(600 / 297)


def test_pages_are_counted_again_after_a_read_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sslkit.image import pages

    frames = [Image.new("L", (8, 8), value) for value in range(4)]
    frames[0].save(tmp_path / "stack.tif", save_all=True, append_images=frames[1:])

    def fail(index: object, row: int) -> None:
        raise OSError("busy")

    with monkeypatch.context() as patch:
        patch.setattr(pages, "open_header", fail)
        assert len(ImageSource.read_index(str(tmp_path), DataSpec(channels=1))) == 1
    assert len(ImageSource.read_index(str(tmp_path), DataSpec(channels=1))) == 4
