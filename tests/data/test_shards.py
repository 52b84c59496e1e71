"""WebDataset shards are read where they lie: a full shuffle, exact resume, nothing unpacked."""

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from sslkit import SslkitError
from sslkit.contract.errors import UnreadableSampleError
from sslkit.data.shards import expand
from sslkit.image.decode import CanvasFormat, read_canvas
from sslkit.image.source import ImageSource
from sslkit.specs.data import DataSpec


def png(value: int, side: int = 16) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(value).integers(0, 255, (side, side, 3), dtype=np.uint8)).save(stream, format="PNG")
    return stream.getvalue()


def write_shard(file: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(file, "w") as shard:
        for name, content in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            shard.addfile(header, io.BytesIO(content))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    for number in range(3):
        members = {}
        for sample in range(16):
            key = f"{number:02d}/{sample:04d}"
            members |= {f"{key}.png": png(100 * number + sample), f"{key}.cls": b"%d\n" % (sample % 2), f"{key}.json": b"{}"}
        write_shard(folder / f"part-{number:03d}.tar", members)
    return folder


def test_images_are_those_in_the_tar(shards: Path) -> None:
    index = ImageSource.read_index(f"wds:{shards}/part-{{000..002}}.tar", DataSpec())
    assert len(index) == 48 and index.name(17) == "part-001.tar/01/0001.png" and index.labels is None
    expected = np.asarray(Image.open(io.BytesIO(png(101))))
    assert np.array_equal(read_canvas(index, 17, CanvasFormat(16)).canvas, expected)
    assert np.array_equal(read_canvas(index.subset(np.array([17])), 0, CanvasFormat(16)).canvas, expected)


def test_labels_are_members_too(shards: Path) -> None:
    index = ImageSource.read_index(f"wds:{shards}/*.tar", DataSpec(label="cls"))
    assert index.classes == ("0", "1") and index.labels is not None and index.labels.tolist() == [0, 1] * 24
    again = ImageSource.read_index(f"wds:{shards}/*.tar", DataSpec(label="cls"))  # from the cache
    assert again.labels is not None and again.labels.tolist() == index.labels.tolist() and again.key() == index.key()
    with pytest.raises(
        SslkitError, match=r"--label: no image in wds:.* has a .txt beside it, such as part-000.tar/00/0000.txt"
    ):
        ImageSource.read_index(f"wds:{shards}/*.tar", DataSpec(label="txt"))


def test_patterns(shards: Path, tmp_path: Path) -> None:
    names = [Path(file).name for file in expand(f"wds:{shards}/part-{{001..002}}.tar")]
    assert names == ["part-001.tar", "part-002.tar"]
    with pytest.raises(SslkitError, match=r"--data: shard .*part-003.tar does not exist"):
        expand(f"wds:{shards}/part-{{002..003}}.tar")
    assert expand("wds:https://example.com/{08..10}.tar") == [
        f"https://example.com/{number}.tar" for number in ("08", "09", "10")
    ]
    for address, message in {
        "s3://bucket/{0..9}.tar": "not by s3",
        "pipe:curl x": "not by pipe",
        "https:///x.tar": "not by https",
        "https://example.com/*.tar": "a server lists no files for .* .number them",
        "https://me:secret@example.com/x.tar": "holds a user name .set SSLKIT_HTTP_HEADER",
        "https://example.com/x.tar?sig=secret": "holds a query string .set SSLKIT_HTTP_QUERY",
    }.items():
        with pytest.raises(SslkitError, match=f"--data: .*{message}") as raised:
            expand(f"wds:{address}")
        assert "secret" not in str(raised.value)


def test_a_run_on_shards_resumes_in_the_same_bits(
    shards: Path, quick: list[str], tmp_path: Path, sslkit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shards)
    arguments = ["--data", "wds:part-{000..002}.tar", *quick, "--checkpoint-every", 1]
    assert sslkit("pretrain", "rotation", *arguments, "--steps", 5, "--out", tmp_path / "whole").code == 0
    monkeypatch.chdir(tmp_path)  # the run knows its shards from anywhere
    file = tmp_path / "stops.py"
    file.write_text(
        "import signal, os\nfrom sslkit_plugins.image.predictive.rotation import Rotation\n\n\nclass Stops(Rotation):\n"
        "    def after_step(self, remembered):\n        if self.clock.step == 2 and not os.environ.get('GO'):\n"
        "            os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    parts = ["--data", f"wds:{shards}/part-{{000..002}}.tar", *quick, "--steps", 5, "--out", tmp_path / "parts"]
    assert sslkit("pretrain", file, *parts).code == 143
    monkeypatch.setenv("GO", "1")
    assert sslkit("pretrain", file, *parts, "--resume").code == 0
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(np.array_equal(whole[name].numpy(), resumed[name].numpy()) for name in whole)
    ran = sslkit("knn", "--ckpt", tmp_path / "whole" / "model.safetensors", "--label", "cls", "--k", 3, "--json")
    assert ran.code == 0 or "--label" in ran.err


def test_what_is_no_shard(tmp_path: Path) -> None:
    (tmp_path / "no.tar").write_bytes(b"nothing of the kind" * 100)
    with pytest.raises(SslkitError, match=r"no.tar is no tar file that can be read"):
        ImageSource.read_index(f"wds:{tmp_path}/no.tar", DataSpec())
    with tarfile.open(tmp_path / "compressed.tar", "w:gz"):
        pass
    with pytest.raises(SslkitError) as raised:
        ImageSource.read_index(f"wds:{tmp_path}/compressed.tar", DataSpec())
    assert "must not be compressed" in raised.value.hint
    write_shard(tmp_path / "empty.tar", {"readme.txt": b"no image"})
    with pytest.raises(SslkitError, match="no image in"):
        ImageSource.read_index(f"wds:{tmp_path}/empty.tar", DataSpec())


def test_a_shard_that_is_cut_off_and_one_that_changes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "cut.tar"
    write_shard(file, {f"{number}.png": png(number) for number in range(8)})
    whole = ImageSource.read_index(f"wds:{file}", DataSpec())
    os.utime(file, (1, 1))
    with pytest.raises(UnreadableSampleError, match="changed since it was indexed"):
        read_canvas(whole, 0, CanvasFormat(16))
    file.write_bytes(file.read_bytes()[: 5 * 1536 + 700])
    rest = ImageSource.read_index(f"wds:{file}", DataSpec())
    assert 4 <= len(rest) <= 6
    with pytest.raises(UnreadableSampleError):
        read_canvas(rest, len(rest) - 1, CanvasFormat(16))


def test_names_in_a_tar_are_only_names(tmp_path: Path) -> None:
    outside = tmp_path / "outside.png"
    write_shard(tmp_path / "evil.tar", {str(outside): png(1), "../../up.png": png(2), "/etc/passwd.png": png(3)})
    index = ImageSource.read_index(f"wds:{tmp_path}/evil.tar", DataSpec())
    for row in range(3):
        assert np.array_equal(
            read_canvas(index, row, CanvasFormat(16)).canvas, np.asarray(Image.open(io.BytesIO(png(row + 1))))
        )
    assert not outside.exists() and sorted(file.name for file in tmp_path.iterdir()) == ["evil.tar"]


def test_labels_with_zero_bytes_stay_with_their_samples(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as shard:
        for number in range(6):
            for name, content in ((f"{number}.png", png(number)), (f"{number}.cls", b"c\0at" if number == 2 else b"dog")):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))
    for _ in range(2):  # scanned, and from the cache
        index = ImageSource.read_index(f"wds:{tmp_path / 'x.tar'}", DataSpec(label="cls"))
        assert index.labels is not None and index.labels.tolist() == [1, 1, 0, 1, 1, 1]


def test_a_damaged_header_in_the_middle_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as shard:
        for number in range(6):
            member = tarfile.TarInfo(f"{number}.png")
            member.size = len(png(number))
            shard.addfile(member, io.BytesIO(png(number)))
    with tarfile.open(tmp_path / "x.tar") as shard:
        place = shard.getmembers()[3].offset
    content = bytearray((tmp_path / "x.tar").read_bytes())
    content[place + 150] ^= 1  # in the checksum
    (tmp_path / "x.tar").write_bytes(content)
    assert len(ImageSource.read_index(f"wds:{tmp_path / 'x.tar'}", DataSpec())) == 3
    assert f"is damaged after byte {place:,}: the 3 images before that are used" in capsys.readouterr().err
