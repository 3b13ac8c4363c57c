"""The tolerant mapper: pixels of odd files, broken images, agreement with Detectron2's mapper."""

from __future__ import annotations

import copy
import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper, MapDataset
from detectron2.structures import BoxMode
from PIL import Image

from fsn_d2.data.image_header import upright_size
from fsn_d2.data.mapper import TolerantMapper, read_image

WIDTH, HEIGHT = 48, 32
RAMP = np.linspace(0, 65535, WIDTH * HEIGHT).reshape(HEIGHT, WIDTH).astype(np.uint16)


def make_record(path: Path) -> dict[str, Any]:
    annotation = {
        "bbox": [4.0, 5.0, 20.0, 10.0],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": 1,
        "segmentation": [[4.0, 5.0, 24.0, 5.0, 24.0, 15.0]],
    }
    return {
        "file_name": str(path),
        "image_id": 1,
        "width": WIDTH,
        "height": HEIGHT,
        "annotations": [annotation],
    }


def write_photo(path: Path) -> Path:
    pixels = np.random.default_rng(1).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write_cut_off(path: Path) -> Path:
    data = write_photo(path).read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return path


# ---------------------------------------------------------------------------- pixels

GRAY = (RAMP >> 8).astype(np.uint8)
ODD_FILES = {
    "gray.png": Image.fromarray(GRAY),
    "alpha.png": Image.fromarray(GRAY).convert("RGBA"),
    "gray_alpha.png": Image.fromarray(GRAY).convert("LA"),
    "palette.png": Image.fromarray(GRAY).convert("RGB").quantize(256),
    "cmyk.jpg": Image.fromarray(GRAY).convert("RGB").convert("CMYK"),
    "deep.png": Image.fromarray(RAMP),
    "deep.tif": Image.fromarray(RAMP),
    "deeper.tif": Image.fromarray(RAMP.astype(np.int32)),
}


@pytest.mark.parametrize("name", ODD_FILES)
def test_every_kind_of_file_shows_the_same_picture(tmp_path: Path, name: str) -> None:
    ODD_FILES[name].save(tmp_path / name)
    image = read_image(str(tmp_path / name), "BGR")
    assert image.shape == (HEIGHT, WIDTH, 3)
    assert image.dtype == np.uint8
    error = np.abs(image.astype(float) - GRAY[:, :, None]).max()
    assert error <= (6 if name in ("cmyk.jpg", "palette.png") else 1)


@pytest.mark.parametrize("name", ["colour.png", "colour.tif"])
@pytest.mark.parametrize(("order", "pixel"), [("RGB", [200, 30, 60]), ("BGR", [60, 30, 200])])
def test_colours_come_in_the_order_that_is_asked_for(
    tmp_path: Path, name: str, order: str, pixel: list[int]
) -> None:
    Image.new("RGB", (4, 3), (200, 30, 60)).save(tmp_path / name)
    assert read_image(str(tmp_path / name), order)[1, 2].tolist() == pixel


def test_sixteen_bits_are_divided(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 257, 300, 65535]], dtype=np.uint16)).save(tmp_path / "deep.png")
    image = read_image(str(tmp_path / "deep.png"), "BGR")
    assert image[0, :, 0].tolist() == [0, 1, 1, 255]


def turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """By what EXIF says of the stored row 0 and column 0: where they are in what is seen."""
    if orientation >= 5:  # the row is at a side
        pixels = pixels.T
    if orientation in (3, 4, 7, 8):  # the row at the bottom, or the column there
        pixels = pixels[::-1]
    return pixels[:, ::-1] if orientation in (2, 3, 6, 7) else pixels


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("name", "deep"),
    [("a.jpg", False), ("a.png", False), ("a.tif", False), ("a.png", True), ("a.tif", True)],
)
def test_image_is_turned_as_its_exif_says_and_its_size_is_known(
    tmp_path: Path, name: str, deep: bool, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / name
    Image.fromarray(RAMP if deep else GRAY).save(path, exif=exif)
    with Image.open(path) as image:
        width, height = upright_size(image)
    seen = read_image(str(path), "L")[:, :, 0].astype(float)
    assert seen.shape == (height, width)
    assert np.abs(seen - turn(GRAY, orientation)).max() <= (6 if name == "a.jpg" else 1)


# ---------------------------------------------------------------------------- mapping


@pytest.mark.parametrize("is_train", [True, False])
@pytest.mark.parametrize("masks", [True, False])
def test_good_image_is_mapped_as_by_detectron2(tmp_path: Path, is_train: bool, masks: bool) -> None:
    cfg = get_cfg()
    cfg.MODEL.MASK_ON = masks
    cfg.INPUT.CROP.ENABLED = not masks
    record = make_record(write_photo(tmp_path / "photo.png"))
    before = copy.deepcopy(record)
    results = []
    for mapper in (TolerantMapper(cfg, is_train=is_train), DatasetMapper(cfg, is_train=is_train)):
        np.random.seed(3)
        results.append(mapper(record))
    ours, theirs = results
    assert record == before
    assert ours is not None and ours.keys() == theirs.keys()
    assert torch.equal(ours["image"], theirs["image"])
    if is_train:
        a, b = ours["instances"], theirs["instances"]
        assert a.get_fields().keys() == b.get_fields().keys()
        assert torch.equal(a.gt_boxes.tensor, b.gt_boxes.tensor)
        assert a.gt_classes.tolist() == b.gt_classes.tolist() == [1]
        if masks:
            assert np.array_equal(a.gt_masks.polygons, b.gt_masks.polygons)


def test_semantic_map_and_proposals_are_mapped_as_by_detectron2(tmp_path: Path) -> None:
    cfg = get_cfg()
    cfg.MODEL.LOAD_PROPOSALS = True
    record = make_record(write_photo(tmp_path / "photo.png"))
    Image.fromarray(GRAY).save(tmp_path / "labels.png")
    record["sem_seg_file_name"] = str(tmp_path / "labels.png")
    record["proposal_boxes"] = np.array([[1.0, 2, 30, 20], [3, 3, 9, 9]])
    record["proposal_objectness_logits"] = np.array([2.0, 1.0])
    record["proposal_bbox_mode"] = BoxMode.XYXY_ABS
    results = []
    for mapper in (TolerantMapper(cfg), DatasetMapper(cfg)):
        np.random.seed(3)
        results.append(mapper(record))
    ours, theirs = results
    assert torch.equal(ours["sem_seg"], theirs["sem_seg"])
    assert torch.equal(
        ours["proposals"].proposal_boxes.tensor, theirs["proposals"].proposal_boxes.tensor
    )
    assert ours.keys() == theirs.keys()


def test_broken_image_in_training_gives_none(tmp_path: Path) -> None:
    mapper = TolerantMapper(get_cfg(), is_train=True)
    for path in (write_cut_off(tmp_path / "cut.png"), tmp_path / "absent.jpg"):
        assert mapper(make_record(path)) is None


def test_first_failure_is_warned_of_and_powers_of_two_are_logged(tmp_path: Path, caplog) -> None:
    mapper = TolerantMapper(get_cfg(), is_train=True)
    record = make_record(write_cut_off(tmp_path / "cut.jpg"))
    with caplog.at_level(logging.INFO, "fsn_d2.data.mapper"):
        for _ in range(9):
            mapper(record)
    levels = [r.levelname for r in caplog.records if r.name == "fsn_d2.data.mapper"]
    messages = [r.getMessage() for r in caplog.records if r.name == "fsn_d2.data.mapper"]
    assert levels == ["WARNING", "INFO", "INFO", "INFO"]
    assert str(tmp_path / "cut.jpg") in messages[0]
    assert [int(m.split()[0]) for m in messages[1:]] == [2, 4, 8]


def test_broken_image_in_inference_is_an_error(tmp_path: Path) -> None:
    mapper = TolerantMapper(get_cfg(), is_train=False)
    path = write_cut_off(tmp_path / "cut.png")
    with pytest.raises(OSError, match=r"cut\.png cannot be read"):
        mapper(make_record(path))


def test_other_faults_are_not_hidden(tmp_path: Path) -> None:
    """A size that contradicts the annotation is no broken image."""
    record = make_record(write_photo(tmp_path / "photo.png"))
    record["width"] += 1
    with pytest.raises(ValueError, match="Mismatched image shape"):
        TolerantMapper(get_cfg(), is_train=True)(record)


def test_detectron2_takes_another_image_for_a_broken_one(tmp_path: Path) -> None:
    records = [
        make_record(write_cut_off(tmp_path / "cut.png")),
        make_record(write_photo(tmp_path / "photo.png")),
    ]
    dataset = MapDataset(records, TolerantMapper(get_cfg(), is_train=True))
    dataset = pickle.loads(pickle.dumps(dataset))  # as it travels to a spawned loader process
    assert dataset[0]["file_name"] == records[1]["file_name"]
    assert dataset[1]["file_name"] == records[1]["file_name"]
