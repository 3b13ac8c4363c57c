"""Average precision over a part of the boxes: by size as COCO has it, by aspect ratio, by place.

pycocotools knows one way of dividing boxes, by the field "area". Here that field is given another
attribute of the box, and the rest of COCO's rules stays: a ground truth outside the range does not
count, nor does a detection outside the range that matches nothing.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

Attribute = Callable[[np.ndarray], np.ndarray]
Ranges = dict[str, tuple[float, float]]

ALL = (-np.inf, np.inf)
SIZES: Ranges = {"APs": (0, 32**2), "APm": (32**2, 96**2), "APl": (96**2, np.inf)}
# The ratio bank's default borders: nearest to 1/2, 1 or 2 on a log scale.
ASPECT_RATIOS: Ranges = {
    "AP-wide": (0, 2**-0.5),
    "AP-square": (2**-0.5, 2**0.5),
    "AP-tall": (2**0.5, np.inf),
}
MEASURES = ("AP", "AP50", "AP75", *SIZES, *ASPECT_RATIOS)


def aspect_ratio(boxes: np.ndarray) -> np.ndarray:
    """Height / width of boxes [N, 4], XYWH; infinite where there is no width."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(boxes[:, 3] / boxes[:, 2], nan=1.0, posinf=np.inf)


def average_precisions(annotations: Path, detections: Sequence[dict]) -> dict[str, float]:
    """COCO's box AP over all boxes, by size and by aspect ratio.

    Args:
        annotations: COCO json of the ground truth.
        detections: in COCO's results format.

    Returns:
        In per cent; nan where no ground truth counts: AP, AP50, AP75, APs, APm, APl (by COCO's
        areas) and AP-wide, AP-square, AP-tall (height / width below 0.707, up to 1.414, above).
        Each is a mean over the classes that have such objects, however few: `fewest_objects`.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
    by_size = sliced_precision(truth, detections, None, {"AP": ALL, **SIZES})
    by_ratio = sliced_precision(truth, detections, aspect_ratio, ASPECT_RATIOS)
    thresholds = {"AP50": 0, "AP75": 5}
    return {
        "AP": _mean(by_size["AP"]),
        **{name: _mean(by_size["AP"][index]) for name, index in thresholds.items()},
        **{name: _mean(by_size[name]) for name in SIZES},
        **{name: _mean(values) for name, values in by_ratio.items()},
    }


def fewest_objects(annotations: Path) -> dict[str, int]:
    """How far an AP by size or aspect ratio can be trusted: a class of one object weighs as any.

    Args:
        annotations: COCO json of the ground truth.

    Returns:
        Objects, without crowds, of the class that has the fewest of that size or ratio, of those
        that have any: APs, APm, APl, AP-wide, AP-square, AP-tall. 0: no class has any.
    """
    every = json.loads(annotations.read_text())["annotations"]
    counted = [annotation for annotation in every if not annotation.get("iscrowd", 0)]
    labels = np.array([annotation["category_id"] for annotation in counted], dtype=int)
    areas = np.array([annotation["area"] for annotation in counted], dtype=float)
    boxes = np.array([annotation["bbox"] for annotation in counted], dtype=float).reshape(-1, 4)
    return {
        name: _rarest(labels[(low <= values) & (values <= high)])
        for values, ranges in ((areas, SIZES), (aspect_ratio(boxes), ASPECT_RATIOS))
        for name, (low, high) in ranges.items()
    }


def _rarest(labels: np.ndarray) -> int:
    counts = np.unique(labels, return_counts=True)[1]
    return int(counts.min()) if counts.size else 0


def sliced_precision(
    truth: COCO, detections: Sequence[dict], attribute: Attribute | None, ranges: Ranges
) -> dict[str, np.ndarray]:
    """Precision at COCO's recall thresholds, per range of an attribute.

    Args:
        truth: ground truth.
        detections: in COCO's results format.
        attribute: from boxes [N, 4] (XYWH, pixels) to values [N]; None: COCO's areas.
        ranges: name -> lowest and highest value, both included.

    Returns:
        Per range [10, 101, classes]: IoU thresholds 0.5 to 0.95, recall 0 to 1; -1 where no ground
        truth counts.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        truth = _with_attribute(truth.dataset, attribute)
        found = _results(truth, detections, attribute)
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.params.areaRng = [list(bounds) for bounds in ranges.values()]
        evaluation.params.areaRngLbl = list(ranges)
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"]  # thresholds, recalls, classes, ranges, limits
    return {name: precision[:, :, :, i, -1] for i, name in enumerate(ranges)}


def _with_attribute(dataset: dict[str, Any], attribute: Attribute | None) -> COCO:
    coco = COCO()
    coco.dataset = {**dataset, "annotations": copy.deepcopy(dataset["annotations"])}
    coco.dataset.setdefault("info", {})
    coco.createIndex()
    _set_area(coco, attribute)
    return coco


def _results(truth: COCO, detections: Sequence[dict], attribute: Attribute | None) -> COCO:
    if not detections:  # pycocotools cannot load none
        empty = COCO()
        empty.dataset = {**truth.dataset, "annotations": []}
        empty.createIndex()
        return empty
    found = truth.loadRes(copy.deepcopy(list(detections)))
    _set_area(found, attribute)
    return found


def _set_area(coco: COCO, attribute: Attribute | None) -> None:
    annotations = coco.dataset["annotations"]
    if attribute is None or not annotations:
        return
    boxes = np.array([annotation["bbox"] for annotation in annotations], dtype=float)
    for annotation, value in zip(annotations, attribute(boxes), strict=True):
        annotation["area"] = float(value)


def _mean(precision: np.ndarray) -> float:
    counted = precision[precision > -1]
    return 100 * float(counted.mean()) if counted.size else float("nan")
