"""AP by class and part: COCO's own where COCO has it, by hand elsewhere."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable

import numpy as np
import pytest
from pycocotools.cocoeval import COCOeval

from fsn_d2.report.inputs import Evaluated
from fsn_d2.report.precision import IOU_50, IOU_75, by_place, by_ratio, by_size, place


def test_the_whole_and_the_sizes_are_cocos(random_case: Evaluated) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        found = random_case.truth.loadRes([dict(d) for d in random_case.detections])
        evaluation = COCOeval(random_case.truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    sizes = by_size(random_case)
    whole = sizes["AP"]
    ours = [whole.average(*ious)[-1] for ious in ((), (IOU_50,), (IOU_75,))]
    ours += [sizes[name].average()[-1] for name in ("APs", "APm", "APl")]
    stats = np.where(evaluation.stats[:6] < 0, np.nan, 100 * evaluation.stats[:6])
    np.testing.assert_allclose(ours, stats, rtol=1e-9)
    per_class = 100 * evaluation.eval["precision"][:, :, :, 0, -1].mean(axis=(0, 1))
    np.testing.assert_allclose(whole.average()[:-1], per_class, rtol=1e-9)
    assert whole.boxes.tolist() == np.bincount(random_case.annotated.label).tolist()
    assert sum(part.boxes.sum() for name, part in sizes.items() if name != "AP") == 40


def test_a_curve_by_hand(build: Callable[..., Evaluated]) -> None:
    boxes = [[10.0, 10, 40, 40], [100.0, 10, 40, 40]]
    found = [(1, 0, boxes[0], 0.9), (1, 0, [200.0, 200, 40, 40], 0.8), (1, 0, boxes[1], 0.7)]
    curves = by_size(build([(1, 0, box) for box in boxes], found))["AP"].curves(IOU_50)
    # Found, false, found: up to half of the recall precision 1, then 2 / 3.
    assert curves[0] == pytest.approx([1.0] * 51 + [2 / 3] * 50)
    assert curves[1] == []  # no bear, no curve
    assert curves[2] == curves[0]  # the mean of the classes that have one


def test_places_by_hand() -> None:
    left, right, middle = 0.1, 0.8, 0.45
    boxes = [
        [left, left, 0.1, 0.1],
        [right, left, 0.1, 0.1],
        [left, middle, 0.1, 0.1],
        [0.0, right, 1.0, 0.1],
        [right, right, 0.4, 0.4],  # its centre is the corner
        [-0.3, -0.3, 0.1, 0.1],  # outside
    ]
    assert place(np.array(boxes)).tolist() == [0, 2, 3, 7, 8, 0]


def test_precision_by_place_by_hand(build: Callable[..., Evaluated]) -> None:
    """Found at the top left of a large image, missed at the bottom right of a small one."""
    evaluated = build(
        [(1, 0, [10.0, 10, 40, 40]), (3, 0, [90.0, 45, 20, 10])],
        [(1, 0, [10.0, 10, 40, 40], 0.9), (3, 0, [10.0, 45, 20, 10], 0.8)],
    )
    parts = by_place(evaluated)
    averages = {name: part.average()[-1] for name, part in parts.items()}
    assert averages.pop("AP-00") == pytest.approx(100)
    assert averages.pop("AP-22") == 0
    assert len(averages) == 7
    assert all(math.isnan(value) for value in averages.values())
    assert {name: part.boxes.tolist() for name, part in parts.items() if part.boxes.any()} == {
        "AP-00": [1, 0],
        "AP-22": [1, 0],
    }


def test_scaling_images_changes_no_overlap(random_case: Evaluated) -> None:
    """Nine parts of one cell each, all boxes in the middle: what the whole gives."""
    for entry in [*random_case.truth.dataset["annotations"], *random_case.detections]:
        x, y, w, h = entry["bbox"]
        entry["bbox"] = [135 + x / 10, 135 + y / 10, w / 10, h / 10]
    whole, middle = by_size(random_case)["AP"], by_place(random_case)["AP-11"]
    assert middle.boxes.tolist() == whole.boxes.tolist()
    np.testing.assert_allclose(middle.precision, whole.precision)
    assert 5 < middle.average()[-1] < 95


def test_ratios_by_hand(build: Callable[..., Evaluated]) -> None:
    wide, tall = [10.0, 10, 90, 30], [10.0, 100, 30, 90]
    parts = by_ratio(build([(1, 0, wide), (1, 1, tall), (2, 1, tall)], [(1, 0, wide, 0.9)]))
    assert {name: part.boxes.tolist() for name, part in parts.items()} == {
        "AP-wide": [1, 0],
        "AP-square": [0, 0],
        "AP-tall": [0, 2],
    }
    assert parts["AP-wide"].average()[0] == pytest.approx(100)
    assert parts["AP-tall"].average()[1] == 0
    assert math.isnan(parts["AP-square"].average()[-1])


def test_crowds_are_not_counted(by_hand: Evaluated) -> None:
    assert by_size(by_hand)["AP"].boxes.tolist() == [2, 1]
    assert sum(part.boxes for part in by_place(by_hand).values()).tolist() == [2, 1]
