"""Reading a data set and its detections, and refusing what is neither."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import BoxMode

from fsn_d2.report.inputs import Evaluated, read_detections, read_evaluated

NAME = "report_test_set"
GOOD = {"image_id": 1, "category_id": 10, "bbox": [1.0, 2, 3, 4], "score": 0.5}


@pytest.fixture(autouse=True)
def catalogs() -> Iterator[None]:
    yield
    for catalog in (DatasetCatalog, MetadataCatalog):
        if NAME in catalog:
            catalog.remove(NAME)


@pytest.fixture
def evaluated(build: Callable[..., Evaluated]) -> Evaluated:
    return build([(1, 1, [1.0, 2, 3, 4])], [])


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_coco_set(evaluated: Evaluated, tmp_path: Path) -> None:
    content = {**evaluated.truth.dataset}
    content["annotations"] = [
        {**content["annotations"][0], "id": 0, "segmentation": [[1, 2, 4, 2, 4, 6]]}
    ]
    del content["annotations"][0]["iscrowd"]
    truth = write(tmp_path / "truth.json", content)
    register_coco_instances(NAME, {}, str(truth), str(tmp_path))
    found = write(tmp_path / "found.json", [{**GOOD, "segmentation": {"counts": "x"}}])
    got = read_evaluated(NAME, found)
    assert got.classes == ["apple", "bear"]
    assert got.truth.dataset["annotations"] == [
        {"id": 1, "image_id": 1, "category_id": 10, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0}
    ]
    assert got.detections == [GOOD]
    assert got.annotated.label.tolist() == got.detected.label.tolist() == [1]
    assert got.files[3] == str(tmp_path / "3.png")


def test_a_set_that_is_registered_by_code(tmp_path: Path) -> None:
    """Without a json, as Detectron2's evaluator: category ids are the places of the classes."""
    box = {"bbox": [1, 2, 4, 6], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1}
    record = {"image_id": "seven", "file_name": "7.png", "height": 9, "width": 8}
    DatasetCatalog.register(NAME, lambda: [{**record, "annotations": [box]}])
    MetadataCatalog.get(NAME).thing_classes = ["apple", "bear"]
    found = write(tmp_path / "found.json", [{**GOOD, "image_id": "seven", "category_id": 0}])
    got = read_evaluated(NAME, found)
    assert got.classes == ["apple", "bear"]
    assert got.annotated.box.tolist() == [[1, 2, 3, 4]]
    assert (got.annotated.label.tolist(), got.detected.label.tolist()) == ([1], [0])
    assert got.files == {"seven": "7.png"}


def test_a_set_without_annotations_is_refused(evaluated: Evaluated, tmp_path: Path) -> None:
    content = {k: v for k, v in evaluated.truth.dataset.items() if k != "annotations"}
    register_coco_instances(NAME, {}, str(write(tmp_path / "t.json", content)), str(tmp_path))
    with pytest.raises(ValueError, match=f"'{NAME}' has no annotations"):
        read_evaluated(NAME, write(tmp_path / "found.json", []))


def test_no_detections_are_fine(evaluated: Evaluated, tmp_path: Path) -> None:
    assert read_detections(write(tmp_path / "found.json", []), evaluated.truth) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2", "is not json"),
        ("[" * 100_000, "is not json"),
        ({"detections": []}, "holds a dict, expected a list"),
        ([GOOD, 7], "entry 1: expected an object, got 7"),
        ([{**GOOD, "image_id": 99}], "entry 0: image_id 99 is not in the data set"),
        ([{**GOOD, "image_id": [1]}], r"entry 0: image_id \[1\] is not in the data set"),
        ([{**GOOD, "category_id": 11}], "category_id 11 is not in the data set"),
        ([{**GOOD, "bbox": [1, 2, 3]}], r"bbox \[1, 2, 3\], expected four numbers"),
        ([{**GOOD, "bbox": [1, 2, 3, float("nan")]}], "expected four numbers"),
        ([{**GOOD, "bbox": [1, 2, 3, "4"]}], "expected four numbers"),
        ([{**GOOD, "bbox": [1, 2, 3, -4]}], "negative width or height"),
        ([{**GOOD, "score": 1.5}], "score 1.5, expected a number from 0 to 1"),
        ([{**GOOD, "score": None}], "score None"),
        ([{k: v for k, v in GOOD.items() if k != "score"}], "score None"),
    ],
)
def test_what_is_no_detection_is_refused(
    evaluated: Evaluated, tmp_path: Path, content: Any, message: str
) -> None:
    path = write(tmp_path / "found.json", content)
    with pytest.raises(
        ValueError, match=rf"(?s)--detections: .*found\.json.*{message}.*--eval-only"
    ):
        read_detections(path, evaluated.truth)


def test_a_missing_file_is_named(evaluated: Evaluated, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json does not exist; write one with"):
        read_detections(tmp_path / "nowhere.json", evaluated.truth)
