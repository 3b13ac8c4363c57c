"""COCO files: equality with the raw json, and every error."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from fsn_d2.data import register_datasets

from .small_sets import HEIGHT, WARNINGS, WIDTH, coco_dict, write_coco


def test_coco_equals_the_raw_json(tmp_path: Path, make_cfg, caplog) -> None:
    data = coco_dict()
    spec = write_coco(tmp_path, data)
    with caplog.at_level(logging.WARNING, WARNINGS):
        register_datasets(make_cfg((spec,)))
    assert not caplog.records
    assert MetadataCatalog.get(spec).thing_classes == ["cat", "dog"]
    first, second = DatasetCatalog.get(spec)
    assert (first["image_id"], first["width"], first["height"]) == (7, WIDTH, HEIGHT)
    assert first["file_name"] == str(tmp_path / "images" / "one.jpg")
    (annotation,) = first["annotations"]
    raw = data["annotations"][0]
    assert annotation["bbox"] == raw["bbox"]
    assert annotation["bbox_mode"] == BoxMode.XYWH_ABS
    assert annotation["segmentation"] == raw["segmentation"]
    assert annotation["keypoints"] == [3.5, 4.5, 2]  # pixel indices to coordinates
    assert [a["category_id"] for r in (first, second) for a in r["annotations"]] == [1, 0]


def test_coco_test_set_without_annotations(tmp_path: Path, make_cfg) -> None:
    data = coco_dict()
    del data["annotations"]
    spec = write_coco(tmp_path, data)
    register_datasets(make_cfg((), (spec,)))
    assert [r["annotations"] for r in DatasetCatalog.get(spec)] == [[], []]
    with pytest.raises(ValueError, match="no list 'annotations'"):
        register_datasets(make_cfg((spec,)))


def test_missing_coco_paths(tmp_path: Path, make_cfg) -> None:
    write_coco(tmp_path, coco_dict())
    file = tmp_path / "boxes.json"
    with pytest.raises(FileNotFoundError, match=r"annotation file .*other\.json does not exist"):
        register_datasets(make_cfg((f"coco://{tmp_path}/other.json:{tmp_path}/images",)))
    with pytest.raises(FileNotFoundError, match=r"image folder .*pictures does not exist"):
        register_datasets(make_cfg((f"coco://{file}:{tmp_path}/pictures",)))
    with pytest.raises(FileNotFoundError, match=r"boxes\.json is not a folder"):
        register_datasets(make_cfg((f"coco://{file}:{file}",)))


def edited(**changes: Any) -> dict[str, Any]:
    return {**coco_dict(), **changes}


def with_annotation(**changes: Any) -> dict[str, Any]:
    data = coco_dict()
    data["annotations"][1].update(changes)
    return data


BROKEN_JSON = {
    "syntax": ('{"images": [', r"not a readable json file: .*line 1"),
    "a list at the top": ([], "holds a list at the top"),
    "no images": (edited(images=None), "no list 'images'"),
    "no categories": (edited(categories={}), "no list 'categories'"),
    "image without a file": (edited(images=[{"id": 1}]), r"images\[0\] lacks 'file_name'"),
    "category is no object": (edited(categories=["cat"]), r"categories\[0\] lacks 'id', 'name'"),
    "image id is a list": (
        edited(images=[{"id": [1], "file_name": "one.jpg"}]),
        r"images\[0\] has id \[1\], expected a number or text",
    ),
    "image id twice": (edited(images=coco_dict()["images"] * 2), "id 7 occurs 2 times in 'images'"),
    "class twice": (
        edited(categories=[{"id": 2, "name": "cat"}, {"id": 5, "name": "cat"}]),
        "name 'cat' occurs 2 times",
    ),
    "unknown category": (
        with_annotation(category_id=99),
        r"annotations\[1\] \(id 12\) names the unknown class 99; .*'dog'",
    ),
    "three numbers": (with_annotation(bbox=[1, 2, 3]), r"bbox \[1, 2, 3\], expected 4 numbers"),
    "text in the box": (with_annotation(bbox=[1, 2, 3, "4"]), r"annotations\[1\].*expected 4"),
    "no box": (with_annotation(bbox=None), "has bbox None"),
    "ignore": (with_annotation(ignore=1), "use 'iscrowd': 1"),
    "crowd is text": (with_annotation(iscrowd="0"), "has iscrowd '0', expected 0 or 1"),
    "image id is a truth value": (with_annotation(image_id=True), "has image_id True, expected"),
    "file name is a number": (
        edited(images=[{"id": 1, "file_name": 5}]),
        r"images\[0\] has file_name 5, expected text",
    ),
    "blank class name": (
        edited(categories=[{"id": 2, "name": " "}, {"id": 5, "name": "cat"}]),
        r"categories\[0\] has name ' ', expected a name that can be written",
    ),
    "half of a surrogate pair": (
        edited(categories=[{"id": 2, "name": "\ud83d"}, {"id": 5, "name": "cat"}]),
        r"categories\[0\] has name '\\ud83d', expected a name that can be written",
    ),
    "a class as number and as text": (
        edited(categories=[{"id": 2, "name": 1}, {"id": 5, "name": "1"}]),
        "name '1' occurs 2 times",
    ),
    "deeper than Python reads": ("[" * 100_000, "not a readable json file"),
    "image ids of another type": (
        edited(
            annotations=[{**a, "image_id": str(a["image_id"])} for a in coco_dict()["annotations"]]
        ),
        r"no annotation's image_id is an id of 'images' .*'7' against \[7\]",
    ),
}


@pytest.mark.parametrize("data, message", BROKEN_JSON.values(), ids=BROKEN_JSON.keys())
def test_malformed_json(tmp_path: Path, make_cfg, data: Any, message: str) -> None:
    spec = write_coco(tmp_path, data)
    with pytest.raises(ValueError, match=rf"boxes\.json.*{message}"):
        register_datasets(make_cfg((spec,)))
