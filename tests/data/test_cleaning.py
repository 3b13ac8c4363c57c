"""Cleaning: boxes, images, categories and the fields that evaluation needs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fsn_d2.data import register_datasets
from fsn_d2.data.cleaning import _clip_box

from .small_sets import (
    HEIGHT,
    WARNINGS,
    WIDTH,
    boxes_of,
    coco_dict,
    perfect_ap,
    write_coco,
    write_image,
    write_voc,
    write_xml,
)

BAD_BOXES = {
    "no width": [5, 5, 0, 10],
    "negative height": [5, 5, 10, -1],
    "nan": [5, float("nan"), 10, 10],
    "nan width": [5, 5, float("nan"), 10],
    "infinite": [5, 5, float("inf"), 10],
    "right of the image": [WIDTH, 5, 10, 10],
    "above the image": [5, -10, 10, 10],
}


@pytest.mark.parametrize("box", BAD_BOXES.values(), ids=BAD_BOXES.keys())
def test_box_without_area_is_skipped_and_counted(tmp_path: Path, make_cfg, caplog, box) -> None:
    data = coco_dict()
    data["annotations"].append({"id": 13, "image_id": 9, "category_id": 2, "bbox": box})
    spec = write_coco(tmp_path, data)
    register_datasets(make_cfg((spec,)))
    warnings = [r.getMessage() for r in caplog.records if r.name == WARNINGS]
    assert warnings == [f"Data set {spec}: boxes without area in the image, skipped: 1 (two.jpg)."]
    assert len(boxes_of(spec)) == 2
    written = json.loads(Path(MetadataCatalog.get(spec).json_file).read_text())
    assert [a["id"] for a in written["annotations"]] == [11, 12]


def test_box_partly_outside_is_clipped(tmp_path: Path, make_cfg) -> None:
    data = coco_dict()
    data["annotations"][1]["bbox"] = [-10, -5, 20, 100]
    spec = write_coco(tmp_path, data)
    register_datasets(make_cfg((), (spec,)))
    assert boxes_of(spec)[1] == ("two.jpg", "cat", [0, 0, 10, HEIGHT])
    written = json.loads(Path(MetadataCatalog.get(spec).json_file).read_text())
    assert written["annotations"][1]["area"] == 10 * HEIGHT
    assert written["annotations"][0] == data["annotations"][0]


def test_rounding_beyond_the_border_is_no_defect(tmp_path: Path, make_cfg) -> None:
    data = coco_dict()
    data["annotations"][1]["bbox"] = [0, 0, WIDTH + 0.01, 15]
    spec = write_coco(tmp_path, data)
    register_datasets(make_cfg((spec,)))
    assert MetadataCatalog.get(spec).json_file == str(tmp_path / "boxes.json")


NUMBER = st.floats(-100, 100)


@given(st.tuples(NUMBER, NUMBER, NUMBER, NUMBER))
def test_clipping_equals_counting_in_interval_arithmetic(box: tuple[float, ...]) -> None:
    """The clipped box is the intersection with the image, up to the slack, or None if empty."""
    x, y, w, h = box
    clipped = _clip_box(box, WIDTH, HEIGHT)
    xs, ys = np.clip([x, x + w], 0, WIDTH), np.clip([y, y + h], 0, HEIGHT)
    if w <= 0 or h <= 0 or xs[0] >= xs[1] or ys[0] >= ys[1]:
        assert clipped is None
        return
    assert clipped is not None
    expected = [xs[0], ys[0], xs[1] - xs[0], ys[1] - ys[0]]
    assert np.abs(np.subtract(clipped, expected)).max() <= 0.1 + 0.1


def cut_off(path: Path) -> None:
    """Keeps the header and half of the pixels."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def test_unreadable_images_are_skipped_and_counted(voc: Path, make_cfg, caplog) -> None:
    (voc / "JPEGImages" / "a.jpg").write_bytes(b"no image at all")
    (voc / "JPEGImages" / "b.jpg").unlink()
    register_datasets(make_cfg((), (f"voc://{voc}:train",)))
    assert "images that cannot be read, skipped: 2 (a.jpg, b.jpg)" in caplog.text
    files = [Path(r["file_name"]).name for r in DatasetCatalog.get(f"voc://{voc}:train")]
    assert files == ["empty.jpg"]


def test_truncation_is_found_in_test_sets(voc: Path, make_cfg, caplog) -> None:
    write_voc(voc, "test", {"c": [("cat", (1, 1, 9, 9))], "d": [("dog", (1, 1, 9, 9))]})
    for name in ("a", "c"):
        cut_off(voc / "JPEGImages" / f"{name}.jpg")
    train, test = f"voc://{voc}:train", f"voc://{voc}:test"
    register_datasets(make_cfg((train,), (test,)))
    assert len(DatasetCatalog.get(train)) == 3  # left to the mapper
    assert len(DatasetCatalog.get(test)) == 1
    assert "skipped: 1 (c.jpg)" in caplog.text
    written = json.loads(Path(MetadataCatalog.get(test).json_file).read_text())
    assert [i["file_name"] for i in written["images"]] == ["d.jpg"]
    assert len(written["annotations"]) == 1


def test_no_readable_image_is_an_error(voc: Path, make_cfg) -> None:
    for path in (voc / "JPEGImages").iterdir():
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of its 3 images can be read in .*JPEGImages"):
        register_datasets(make_cfg((f"voc://{voc}:train",)))


def test_real_image_size_wins(voc: Path, make_cfg, caplog) -> None:
    write_image(voc / "JPEGImages" / "b.jpg", (20, 10))
    register_datasets(make_cfg((f"voc://{voc}:train",)))
    record = DatasetCatalog.get(f"voc://{voc}:train")[1]
    assert (record["width"], record["height"]) == (20, 10)
    assert boxes_of(f"voc://{voc}:train")[2] == ("b.jpg", "cat", [0, 0, 20, 10])
    assert "real size taken: 1 (b.jpg)" in caplog.text


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_size_is_that_of_the_turned_image(voc: Path, make_cfg, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (voc / "JPEGImages" / "b.jpg").unlink()
    write_image(voc / "JPEGImages" / f"b{suffix}", (WIDTH, HEIGHT), exif=exif)
    write_xml(voc, "b", [("cat", (1, 1, 9, 9))], size=(HEIGHT, WIDTH))
    register_datasets(make_cfg((f"voc://{voc}:train",)))
    record = DatasetCatalog.get(f"voc://{voc}:train")[1]
    assert (record["width"], record["height"]) == (HEIGHT, WIDTH)


@pytest.mark.parametrize(
    ("size", "turn", "message"),
    [
        ((WIDTH, HEIGHT), 6, "two.jpg is annotated as 40 x 30, as it is stored.*Turn"),
        ((WIDTH // 2, HEIGHT // 2), 1, "two.jpg is annotated as 40 x 30.*20 x 15.*Scale"),
        ((3 * WIDTH, 3 * HEIGHT), 1, "120 x 90 pixels: it was scaled"),
        ((WIDTH, HEIGHT), 3, None),  # upside down: the same size, and nobody can tell
        ((WIDTH + 1, HEIGHT), 1, None),
        ((WIDTH, HEIGHT // 2), 1, None),
    ],
)
def test_boxes_of_an_image_before_it_was_turned_or_scaled_are_refused(
    size: tuple[int, int], turn: int, message: str | None, tmp_path: Path, make_cfg
) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    write_image(tmp_path / "images" / "two.jpg", size, exif=exif)
    spec = write_coco(tmp_path, coco_dict())
    if message is None:
        register_datasets(make_cfg((spec,)))
        return
    with pytest.raises(ValueError, match=message):
        register_datasets(make_cfg((spec,)))


def test_a_size_that_is_no_whole_number_is_written_anew(tmp_path: Path, make_cfg) -> None:
    data = coco_dict()
    data["images"][0]["width"] = float(WIDTH)
    spec = write_coco(tmp_path, data)
    register_datasets(make_cfg((spec,)))
    sides = [record["width"] for record in DatasetCatalog.get(spec)]
    assert [type(side) for side in sides] == [int, int]


def test_images_of_one_file_are_refused(tmp_path: Path, make_cfg) -> None:
    data = coco_dict()
    data["images"][1]["file_name"] = "one.jpg"
    with pytest.raises(ValueError, match=r"the images 7, 9 have one file, one\.jpg\. Merge"):
        register_datasets(make_cfg((write_coco(tmp_path, data),)))


def test_a_stale_file_name_of_another_image_is_refused(voc: Path, make_cfg) -> None:
    (voc / "JPEGImages" / "b.jpg").unlink()
    write_xml(voc, "b", [("cat", (1, 1, 9, 9))], filename="a.jpg")
    with pytest.raises(ValueError, match=r"have one file, a\.jpg"):
        register_datasets(make_cfg((f"voc://{voc}:train",)))


def test_annotation_of_an_unlisted_image_is_counted(tmp_path: Path, make_cfg, caplog) -> None:
    data = coco_dict()
    data["annotations"][1]["image_id"] = 1000
    spec = write_coco(tmp_path, data)
    register_datasets(make_cfg((spec,)))
    assert "annotations of images that are not listed, skipped: 1 (1000)" in caplog.text


def test_one_warning_names_all_defects_and_three_images_each(voc: Path, make_cfg, caplog) -> None:
    images = {f"i{k}": [("cat", (9, 9, 9, 9)), ("dog", (1, 1, 9, 9))] for k in range(5)}
    spec = write_voc(voc, "many", images)
    write_image(voc / "JPEGImages" / "i4.jpg", (50, 50))
    register_datasets(make_cfg((spec,), classes=["cat", "dog"]))
    messages = [r.getMessage() for r in caplog.records if r.name == WARNINGS]
    assert len(messages) == 1
    assert "skipped: 5 (i0.jpg, i1.jpg, i2.jpg, ...)" in messages[0]
    assert "real size taken: 1 (i4.jpg)" in messages[0]


def test_class_order_of_the_config_holds_in_evaluation(tmp_path: Path, make_cfg) -> None:
    """Per-class results must not swap names when the order is not that of the category ids."""
    data = coco_dict()
    data["annotations"][0]["segmentation"] = []
    spec = write_coco(tmp_path, data)
    register_datasets(make_cfg((), (spec,), num_classes=3, classes=["dog", "bird", "cat"]))
    metadata = MetadataCatalog.get(spec)
    assert metadata.thing_classes == ["dog", "bird", "cat"]
    assert boxes_of(spec) == [
        ("one.jpg", "dog", [2.5, 3, 12.5, 11]),
        ("two.jpg", "cat", [0, 0, 20, 15]),
    ]
    written = json.loads(Path(metadata.json_file).read_text())
    assert [c["name"] for c in sorted(written["categories"], key=lambda c: c["id"])] == [
        "dog",
        "bird",
        "cat",
    ]
    results = perfect_ap(spec)
    assert results["AP-dog"] == results["AP-cat"] == pytest.approx(100)
    assert np.isnan(results["AP-bird"])


def test_fields_that_evaluation_needs_are_filled_in(tmp_path: Path, make_cfg) -> None:
    data = coco_dict()
    for image in data["images"]:
        del image["width"], image["height"]
    for index, annotation in enumerate(data["annotations"]):
        del annotation["area"], annotation["iscrowd"]
        annotation["id"] = index  # an id of 0 never counts as matched in pycocotools
    spec = write_coco(tmp_path, data)
    register_datasets(make_cfg((), (spec,)))
    written = json.loads(Path(MetadataCatalog.get(spec).json_file).read_text())
    assert [a["id"] for a in written["annotations"]] == [1, 2]
    assert [a["area"] for a in written["annotations"]] == [80, 300]
    assert {(r["width"], r["height"]) for r in DatasetCatalog.get(spec)} == {(WIDTH, HEIGHT)}
    assert perfect_ap(spec)["AP"] == pytest.approx(100)
