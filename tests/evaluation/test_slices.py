"""Average precision over parts of the boxes: COCO's own where COCO has it, by hand elsewhere."""

from __future__ import annotations

import contextlib
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from fsn_d2.evaluation.slices import (
    aspect_ratio,
    average_precisions,
    fewest_objects,
    sliced_precision,
)


def write_truth(path: Path, boxes: list[tuple[int, int, list[float]]]) -> Path:
    """From (image, class, XYWH)."""
    annotations = [
        {
            "id": i,
            "image_id": image,
            "category_id": label,
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": 0,
        }
        for i, (image, label, box) in enumerate(boxes, start=1)
    ]
    images = [{"id": i, "width": 500, "height": 500, "file_name": f"{i}.jpg"} for i in range(1, 6)]
    categories = [{"id": i, "name": str(i)} for i in (1, 2)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content))
    return path


def detection(image: int, label: int, box: list[float], score: float) -> dict:
    return {"image_id": image, "category_id": label, "bbox": box, "score": score}


@pytest.fixture
def random_case(tmp_path: Path) -> tuple[Path, list[dict]]:
    rng = np.random.default_rng(0)
    boxes, found = [], []
    for _ in range(60):
        image, label = int(rng.integers(1, 6)), int(rng.integers(1, 3))
        box = [*rng.uniform(0, 300, 2), *np.exp(rng.uniform(2, 5, 2))]
        boxes.append((image, label, [float(v) for v in box]))
        near = [float(v) for v in np.array(box) + rng.normal(0, 4, 4)]
        near[2:] = [max(side, 1.0) for side in near[2:]]
        found.append(detection(image, label, near, float(rng.random())))
    return write_truth(tmp_path / "truth.json", boxes), found


def test_over_all_boxes_and_by_size_it_is_cocos(random_case: tuple[Path, list[dict]]) -> None:
    path, found = random_case
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        truth.dataset["info"] = {}
        evaluation = COCOeval(truth, truth.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    ours = average_precisions(path, found)
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl")
    expected = dict(zip(names, 100 * evaluation.stats[:6], strict=True))
    assert {name: ours[name] for name in names} == pytest.approx(expected, abs=1e-9)
    assert 5 < ours["AP"] < 95


def test_aspect_ratios_by_hand(tmp_path: Path) -> None:
    wide, square, tall = [10.0, 10, 90, 30], [10.0, 150, 50, 50], [300.0, 10, 20, 80]
    truth = write_truth(tmp_path / "t.json", [(1, 1, wide), (1, 1, square), (1, 1, tall)])
    shifted = [310.0, 10, 20, 80]  # IoU with `tall` is 1 / 3
    found = [
        detection(1, 1, wide, 0.9),
        detection(1, 1, square, 0.8),
        detection(1, 1, shifted, 0.7),
    ]
    result = average_precisions(truth, found)
    # Found, found, and a tall box that matches nothing.
    assert [result[f"AP-{name}"] for name in ("wide", "square", "tall")] == pytest.approx(
        [100, 100, 0]
    )
    # Two of three are found, before the false one: precision 1 at 67 of the 101 recall thresholds.
    assert result["AP"] == pytest.approx(100 * 67 / 101)


def test_what_lies_outside_a_range_neither_counts_nor_harms(tmp_path: Path) -> None:
    truth = write_truth(tmp_path / "t.json", [(1, 1, [0.0, 0, 40, 40])])
    false_and_wide = detection(1, 1, [200.0, 200, 90, 20], 0.99)
    result = average_precisions(truth, [false_and_wide, detection(1, 1, [0.0, 0, 40, 40], 0.5)])
    assert result["AP-square"] == pytest.approx(
        100
    )  # the false wide box is not among the square ones
    assert result["AP"] == pytest.approx(50)
    assert math.isnan(result["AP-wide"]) and math.isnan(result["AP-tall"])


def test_without_detections_everything_is_zero(tmp_path: Path) -> None:
    truth = write_truth(tmp_path / "t.json", [(1, 1, [0.0, 0, 40, 40])])
    result = average_precisions(truth, [])
    assert result["AP"] == result["AP50"] == result["AP-square"] == 0


def test_the_fewest_objects_of_a_class_by_hand(tmp_path: Path) -> None:
    small_square, medium_wide = [0.0, 0, 20, 20], [0.0, 0, 90, 40]
    boxes = [(1, 1, small_square), (2, 1, small_square), (1, 2, small_square), (3, 1, medium_wide)]
    truth = write_truth(tmp_path / "t.json", boxes)
    found = {"APs": 1, "APm": 1, "APl": 0, "AP-wide": 1, "AP-square": 1, "AP-tall": 0}
    assert fewest_objects(truth) == found
    content = json.loads(truth.read_text())
    content["annotations"][2]["iscrowd"] = 1  # the one small object of class 2
    truth.write_text(json.dumps(content))
    assert fewest_objects(truth) == {**found, "APs": 2, "AP-square": 2}
    truth.write_text(json.dumps({**content, "annotations": []}))
    assert fewest_objects(truth) == dict.fromkeys(found, 0)


def test_ratios_of_boxes_without_extent() -> None:
    boxes = np.array([[0, 0, 2.0, 4], [0, 0, 0, 4], [0, 0, 4, 0], [0, 0, 0, 0]])
    assert aspect_ratio(boxes).tolist() == [2, math.inf, 0, 1]


def test_any_attribute_can_divide_the_boxes_and_the_arguments_stay(
    random_case: tuple[Path, list[dict]],
) -> None:
    path, found = random_case
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
    before = json.dumps([truth.dataset["annotations"], found])
    halves = {"left": (-np.inf, 200), "right": (200, np.inf)}
    got = sliced_precision(truth, found, lambda boxes: boxes[:, 0] + boxes[:, 2] / 2, halves)
    assert json.dumps([truth.dataset["annotations"], found]) == before

    assert (got["left"] != got["right"]).any()


def test_a_set_and_its_parts_agree(tmp_path: Path) -> None:
    """Two far halves of an image: a range of places gives what the half alone gives."""
    rng = np.random.default_rng(1)
    sides = {"left": 0.0, "right": 1000.0}
    parts: dict[str, tuple[list, list]] = {side: ([], []) for side in sides}
    for side, offset in sides.items():
        for image in range(1, 6):
            box = [offset + float(rng.uniform(0, 50)), *map(float, rng.uniform(20, 60, 3))]
            parts[side][0].append((image, 1, box))
            moved = [box[0] + float(rng.normal(0, 6)), *box[1:]]
            parts[side][1].append(detection(image, 1, moved, float(rng.random())))
    whole = write_truth(tmp_path / "whole.json", parts["left"][0] + parts["right"][0])
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(whole))
    ranges = {"left": (-np.inf, 500.0), "right": (500.0, np.inf)}
    found = parts["left"][1] + parts["right"][1]
    got = sliced_precision(truth, found, lambda boxes: boxes[:, 0], ranges)
    for side, (boxes, detections) in parts.items():
        alone = average_precisions(write_truth(tmp_path / f"{side}.json", boxes), detections)
        values = got[side][got[side] > -1]
        assert 0 < alone["AP"] < 100
        assert 100 * values.mean() == pytest.approx(alone["AP"], abs=1e-9)
