"""The survey: counts and sizes against the file itself, and each suspicious thing planted."""

from __future__ import annotations

import os
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import transforms as T

from fsn_d2.data.survey import NO_BOX, REPEATED_IMAGE, survey_datasets
from fsn_d2.data.survey_text import survey_text

from .small_sets import coco_dict, write_coco, write_image, write_voc, write_xml

BCCD = Path(
    os.environ.get("FSN_BCCD", Path(__file__).parents[3] / "shared" / "data" / "bccd"), "BCCD"
)


@pytest.fixture
def survey(make_cfg):
    def look(train: tuple[str, ...], test: tuple[str, ...] = (), **keys: Any):
        return survey_datasets(make_cfg(train, test, num_classes=80, **keys))

    return look


def test_counts_and_sizes(voc: Path, survey) -> None:
    found = survey((f"voc://{voc}:train",), (f"voc://{voc}:test",))
    (train,), (test,) = found.train, found.test
    assert found.classes == ["cat", "dog"]
    assert not found.problems and not found.alike
    assert train.image_sizes.tolist() == [[40, 30]] * 3
    assert sorted(train.boxes.tolist()) == [[10, 20], [40, 30], [40, 30]]
    assert sorted(train.ratios.tolist()) == [0.75, 0.75, 2]
    assert [train.images_with(label) for label in (0, 1)] == [2, 1]
    assert train.findings[NO_BOX] == ["empty.jpg"]
    assert not test.findings


def test_sides_are_those_after_detectron2s_resizing(voc: Path, survey) -> None:
    for name, size in {"a": (200, 100), "b": (37, 90)}.items():
        write_image(voc / "JPEGImages" / f"{name}.jpg", size)
        write_xml(voc, name, [("cat", (1, 1, size[0], size[1]))], size=size)
    (train,) = survey((f"voc://{voc}:train",)).train
    resize = T.ResizeShortestEdge(60, 100)
    areas = []
    for width, height in ((200, 100), (37, 90)):
        image = resize.get_transform(np.zeros((height, width, 3), np.uint8))
        areas.append(image.new_h * image.new_w)  # the box is the image
    assert train.box_sides(60, 100) == pytest.approx(np.sqrt(areas), rel=0.02)


def test_crowds_are_no_boxes(tmp_path: Path, survey) -> None:
    data = coco_dict()
    data["annotations"][0]["iscrowd"] = 1
    (train,) = survey((write_coco(tmp_path, data),)).train
    assert train.boxes.tolist() == [[20, 15]]


def test_an_image_in_training_and_test_is_found_under_any_name(voc: Path, survey) -> None:
    write_voc(voc, "test", {"c": [("cat", (1, 1, 9, 9))], "d": [("dog", (1, 1, 9, 9))]})
    for name in "abcd":
        write_image(voc / "JPEGImages" / f"{name}.jpg", (40 + ord(name), 30))
    shutil.copy(voc / "JPEGImages" / "b.jpg", voc / "JPEGImages" / "d.jpg")
    found = survey((f"voc://{voc}:train",), (f"voc://{voc}:test",))
    assert [[Path(p).name for p in pair] for pair in found.shared] == [["b.jpg", "d.jpg"]]
    assert "training and a test set, byte for byte: 1 (" in survey_text(found, 800, 1333)


def test_one_file_in_both_sets(voc: Path, survey) -> None:
    name = f"voc://{voc}:train"
    assert len(survey((name,), (name,)).shared) == 3


def test_a_copy_within_a_set(voc: Path, survey) -> None:
    for name in ("a", "b", "empty"):
        write_image(voc / "JPEGImages" / f"{name}.jpg", (40 + len(name), 30))
    shutil.copy(voc / "JPEGImages" / "a.jpg", voc / "JPEGImages" / "b.jpg")
    (train,) = survey((f"voc://{voc}:train",)).train
    assert train.findings[REPEATED_IMAGE] == ["b.jpg"]


def test_class_names_that_differ_in_case_or_spaces(voc: Path, survey) -> None:
    names = ("cat", "Cat", "big dog", "big_dog", "bigger dog", "c at", "猫", "犬")
    write_voc(voc, "zoo", {"z": [(name, (1, 1, 9, 9)) for name in names]})
    found = survey((f"voc://{voc}:zoo",))
    assert sorted(map(sorted, found.alike)) == [["Cat", "c at", "cat"], ["big dog", "big_dog"]]


def test_images_that_lack_a_common_class(voc: Path, survey) -> None:
    both = [("cat", (1, 1, 9, 9)), ("dog", (1, 1, 9, 9))]
    images = {f"i{k}": both for k in range(9)} | {"odd": [("dog", (1, 1, 9, 9))]}
    images["rare"] = [*both, ("bird", (1, 1, 9, 9))]
    (train,) = survey((write_voc(voc, "many", images),)).train
    lacking = {k: v for k, v in train.findings.items() if k.startswith("images without any")}
    assert lacking == {"images without any cat, which most images show": ["odd.jpg"]}


def test_images_are_decoded_in_training_sets_too(voc: Path, survey) -> None:
    path = voc / "JPEGImages" / "b.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    (train,) = survey((f"voc://{voc}:train",)).train
    assert train.findings["images that cannot be read, skipped"] == ["b.jpg"]


def test_a_test_set_with_fewer_categories_is_no_problem(tmp_path: Path, survey) -> None:
    train = write_coco(tmp_path, coco_dict())
    data = coco_dict()
    data["categories"], data["annotations"] = data["categories"][:1], data["annotations"][:1]
    assert not survey((train,), (write_coco(tmp_path, data, "test.json"),)).problems


def test_problems_are_kept_beside_what_could_be_read(tmp_path: Path, voc: Path, survey) -> None:
    data = coco_dict()
    data["annotations"][0]["bbox"] = None
    found = survey((write_coco(tmp_path, data),), (f"voc://{voc}:test",))
    assert len(found.problems) == 1
    assert len(found.train[0].boxes) == 1
    assert len(found.test[0].boxes) == 2
    assert survey((f"voc://{tmp_path}/nowhere:x",)).problems[0].missing


def test_the_text_tells_all_numbers(voc: Path, survey) -> None:
    text = survey_text(survey((f"voc://{voc}:train",)), 60, 100)
    lines = {" ".join(line.split()) for line in text.splitlines()}
    assert "3 images, 3 boxes, 2 classes" in lines
    assert {"cat 2 2 1", "dog 1 1 2"} <= lines
    assert "image width 40 40 40 40 40" in lines
    assert "as the network sees it, height 60 60 60 60 60" in lines
    assert f"Suspicious: {NO_BOX}: 1 (empty.jpg)" in lines


def test_a_set_without_annotations_can_be_described(tmp_path: Path, survey) -> None:
    data = coco_dict()
    del data["annotations"]
    train = write_coco(tmp_path, coco_dict(), "train.json")
    found = survey((train,), (write_coco(tmp_path, data),))
    assert "2 images, 0 boxes, 2 classes" in survey_text(found, 60, 100)
    assert NO_BOX not in found.test[0].findings


def test_a_set_of_which_nothing_can_be_read_is_described(voc: Path, survey) -> None:
    for path in (voc / "JPEGImages").iterdir():
        path.write_bytes(b"")
    found = survey((f"voc://{voc}:train",))
    assert "can be read in" in found.problems[0].text
    text = survey_text(found, 60, 100)
    assert "0 images, 0 boxes" in text and "images that cannot be read, skipped: 3" in text


def boxes_of_class(name: str, split: str) -> dict[str, int]:
    """Image id -> boxes of the class, by a literal reading of BCCD."""
    ids = (BCCD / "ImageSets" / "Main" / f"{split}.txt").read_text().split()
    return {
        i: sum(e.text == name for e in ET.parse(BCCD / "Annotations" / f"{i}.xml").iter("name"))
        for i in ids
    }


@pytest.mark.skipif(not BCCD.is_dir(), reason=f"{BCCD} is not there")
def test_bccd(survey) -> None:
    found = survey((f"voc://{BCCD}:trainval",), (f"voc://{BCCD}:test",))
    train, test = found.train[0], found.test[0]
    assert [len(s.image_sizes) for s in (train, test)] == [292, 72]
    assert sorted(train.findings["boxes without area in the image, skipped"]) == [
        "BloodImage_00338.jpg",
        "BloodImage_00343.jpg",
    ]
    for each, split in ((train, "trainval"), (test, "test")):
        without = [f"{i}.jpg" for i, n in boxes_of_class("RBC", split).items() if n == 0]
        assert each.findings["images without any RBC, which most images show"] == without
        assert len(without) > 0
