"""Images that must not be decoded: bombs, and programs that call themselves pictures."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MapDataset
from PIL import EpsImagePlugin, Image, ImageFile

from fsn_d2.data import TolerantMapper, register_datasets
from fsn_d2.data.config import add_data_config
from fsn_d2.data.image_header import MAX_PIXELS, check_header, orientation, upright_size
from fsn_d2.data.mapper import read_image

from .small_sets import HEIGHT, WIDTH, coco_dict, write_coco, write_image


def chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def write_bomb(path: Path, width: int, height: int) -> Path:
    """A PNG of a few hundred bytes whose header claims any size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 999)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    return path


@pytest.fixture
def no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Image.Image) -> None:
        raise AssertionError(f"{self.size} is decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", refuse)


def data_cfg(max_pixels: int = MAX_PIXELS) -> CfgNode:
    cfg = get_cfg()
    add_data_config(cfg)
    cfg.INPUT.MAX_PIXELS = max_pixels
    return cfg


def record(path: Path) -> dict[str, Any]:
    return {"file_name": str(path), "annotations": [], "image_id": 1}


# ---------------------------------------------------------------------------- the limit


def test_the_default_is_where_pillow_stops(tmp_path: Path) -> None:
    assert MAX_PIXELS // 2 == Image.MAX_IMAGE_PIXELS
    assert data_cfg().INPUT.MAX_PIXELS == MAX_PIXELS


def test_the_limit_itself_is_allowed() -> None:
    image = Image.new("L", (30, 40))
    check_header(image, 1200)
    with pytest.raises(Image.DecompressionBombError, match=r"30 x 40 .*INPUT\.MAX_PIXELS 1199"):
        check_header(image, 1199)


@pytest.mark.usefixtures("no_decoding")
@pytest.mark.parametrize("size", [(3000, 3000), (60000, 60000), (2**31 - 1, 2**31 - 1)])
def test_reading_refuses_a_bomb_by_its_header(tmp_path: Path, size: tuple[int, int]) -> None:
    path = write_bomb(tmp_path / "bomb.png", *size)
    with pytest.raises(Image.DecompressionBombError):
        read_image(str(path), "BGR", max_pixels=8_000_000)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(3000, 3000), (60000, 60000)])
def test_the_mapper_takes_a_bomb_for_an_unreadable_image(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, size: tuple[int, int]
) -> None:
    bomb, photo = write_bomb(tmp_path / "bomb.png", *size), tmp_path / "photo.jpg"
    write_image(photo)
    cfg = data_cfg(1_000_000)
    mapper = TolerantMapper(cfg, is_train=True)
    assert MapDataset([record(bomb), record(photo)], mapper)[0]["file_name"] == str(photo)
    assert "bomb.png cannot be read" in caplog.text
    with pytest.raises(OSError, match=r"bomb\.png cannot be read"):
        TolerantMapper(cfg, is_train=False)(record(bomb))


def test_a_map_of_labels_is_held_to_the_limit_too(tmp_path: Path) -> None:
    write_image(tmp_path / "photo.jpg")
    labels = write_bomb(tmp_path / "labels.png", 3000, 3000)
    sample = {**record(tmp_path / "photo.jpg"), "sem_seg_file_name": str(labels)}
    with pytest.raises(Image.DecompressionBombError, match=r"INPUT\.MAX_PIXELS 1000000"):
        TolerantMapper(data_cfg(1_000_000), is_train=True)(sample)


@pytest.mark.parametrize("as_test_set", [False, True])
@pytest.mark.parametrize("size", [(WIDTH, HEIGHT + 1), (60000, 60000)])
def test_a_bomb_in_a_set_is_skipped_and_counted(
    tmp_path: Path, make_cfg, caplog, as_test_set: bool, size: tuple[int, int]
) -> None:
    """Decoded in full as a test set, by its header as a training set."""
    data = coco_dict()
    data["images"][0]["file_name"] = "bomb.png"
    spec = write_coco(tmp_path, data)
    write_bomb(tmp_path / "images" / "bomb.png", *size)
    cfg = make_cfg(*(((), (spec,)) if as_test_set else ((spec,), ())))
    cfg.INPUT.MAX_PIXELS = WIDTH * HEIGHT
    register_datasets(cfg)
    assert "images of more pixels than INPUT.MAX_PIXELS, skipped: 1 (bomb.png)" in caplog.text
    assert [Path(r["file_name"]).name for r in DatasetCatalog.get(spec)] == ["two.jpg"]


# ---------------------------------------------------------------------------- orientation


def write_turned_png(path: Path, value: int, *, late: bool) -> Path:
    exif = Image.Exif()
    exif[0x0112] = value
    write_image(path)
    data = path.read_bytes()
    place = len(data) - 12 if late else data.index(b"IDAT") - 4  # before the end, or the pixels
    block = chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    path.write_bytes(data[:place] + block + data[place:])
    return path


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("value", range(1, 9))
def test_orientation_is_the_one_that_reading_follows(
    tmp_path: Path, value: int, late: bool
) -> None:
    path = write_turned_png(tmp_path / "a.png", value, late=late)
    with Image.open(path) as image:
        assert orientation(image) == value
        assert upright_size(image) == ((HEIGHT, WIDTH) if value >= 5 else (WIDTH, HEIGHT))
        image.load()  # the file is where it was
    height, width = read_image(str(path), "RGB").shape[:2]
    assert ((width, height) == (HEIGHT, WIDTH)) == (value >= 5)


@pytest.mark.usefixtures("no_decoding")
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "b.png"])
def test_orientation_is_found_without_decoding(tmp_path: Path, name: str) -> None:
    if name == "b.png":
        write_turned_png(tmp_path / name, 6, late=False)
    else:
        write_image(tmp_path / name)
    with Image.open(tmp_path / name) as image:
        assert orientation(image) == (6 if name == "b.png" else 1)


# ---------------------------------------------------------------------------- programs


@pytest.fixture
def interpreter(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Calls of the PostScript interpreter, which is not run."""
    calls: list[Any] = []

    def run(*arguments: Any, **keywords: Any) -> Any:
        calls.append(arguments)
        return Image.new("RGB", (WIDTH, HEIGHT)).im

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", run)
    return calls


def write_eps(path: Path) -> Path:
    Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(path, "EPS")
    return path


def test_a_postscript_program_named_as_a_photograph_is_not_run(
    tmp_path: Path, interpreter: list[Any]
) -> None:
    path = write_eps(tmp_path / "photo.jpg")
    with pytest.raises(ValueError, match="EPS file, a program"):
        read_image(str(path), "BGR")
    assert TolerantMapper(data_cfg(), is_train=True)(record(path)) is None
    assert not interpreter
    Image.open(path).load()  # so that the test can fail: Pillow would run it
    assert len(interpreter) == 1


def test_a_postscript_program_in_a_set_is_skipped(
    tmp_path: Path, make_cfg, caplog: pytest.LogCaptureFixture, interpreter: list[Any]
) -> None:
    spec = write_coco(tmp_path, coco_dict())
    write_eps(tmp_path / "images" / "one.jpg")
    register_datasets(make_cfg((), (spec,)))
    assert "images that cannot be read, skipped: 1 (one.jpg)" in caplog.text
    assert not interpreter
