"""COCO's average precision and precision-recall curves, per class and per part of the boxes.

A part is a size, an aspect ratio or a place in the image. What counts in a part is COCO's rule for
sizes, which `fsn_d2.evaluation.slices` applies to any attribute of a box.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..evaluation.slices import (
    ALL,
    ASPECT_RATIOS,
    SIZES,
    Attribute,
    Ranges,
    aspect_ratio,
    sliced_precision,
)
from .inputs import Entry, Evaluated, as_coco

__all__ = ["IOU_50", "IOU_75", "Part", "by_place", "by_ratio", "by_size", "place"]

IOU_50, IOU_75 = 0, 5  # among COCO's IoU thresholds, 0.5 to 0.95

GRID = 3  # rows and columns of places, as of FSN's sub-regions
PLACES: Ranges = {f"AP-{cell // GRID}{cell % GRID}": (cell, cell) for cell in range(GRID**2)}


@dataclass(frozen=True)
class Part:
    """The boxes in one range of an attribute.

    Attributes:
        precision: float64 [10, 101, K]: IoU 0.5 to 0.95, recall 0 to 1; -1 without ground truth.
        boxes: int64 [K], objects that count.
    """

    precision: np.ndarray
    boxes: np.ndarray

    def average(self, *ious: int) -> list[float]:
        """AP in per cent per class and, at the end, its mean; nan without ground truth.

        Args:
            ious: IoU thresholds to average over (IOU_50, IOU_75), all ten by default.
        """
        chosen = self.precision[list(ious)] if ious else self.precision
        known = self.precision[0, 0] > -1
        per_class = np.where(known, 100 * chosen.mean(axis=(0, 1)), np.nan)
        return [*per_class, per_class[known].mean() if known.any() else np.nan]

    def curves(self, iou: int) -> list[list[float]]:
        """Precision, 0 to 1, at recall 0, 0.01 to 1, per class, at the end their mean.

        A class without ground truth has an empty curve.
        """
        known = self.precision[iou, 0] > -1
        columns = self.precision[iou].T
        mean = columns[known].mean(axis=0) if known.any() else np.empty(0)
        return [list(c) if k else [] for c, k in zip(columns, known, strict=True)] + [list(mean)]


def by_size(evaluated: Evaluated) -> dict[str, Part]:
    """AP over all boxes, and APs, APm, APl by COCO's areas."""
    return _parts(evaluated, None, {"AP": ALL, **SIZES})


def by_ratio(evaluated: Evaluated) -> dict[str, Part]:
    """AP-wide, AP-square, AP-tall: height / width below 0.707, up to 1.414, above."""
    return _parts(evaluated, aspect_ratio, ASPECT_RATIOS)


def by_place(evaluated: Evaluated) -> dict[str, Part]:
    """AP-00 to AP-22: the row and the column, of three each, in which a box's centre lies.

    For this all images are scaled to one unit square, which leaves every IoU as it is.
    """
    sizes = {image["id"]: (image["width"], image["height"]) for image in evaluated.images}

    def relative(entry: Entry) -> Entry:
        box = np.array(entry["bbox"]) / np.tile(sizes[entry["image_id"]], 2)
        return {**entry, "bbox": box.tolist()}

    dataset = evaluated.truth.dataset
    truth = as_coco(dataset, [relative(a) for a in dataset["annotations"]])
    detections = [relative(d) for d in evaluated.detections]
    scaled = Evaluated(evaluated.name, truth, detections, evaluated.files)
    return _parts(scaled, place, PLACES)


def place(boxes: np.ndarray) -> np.ndarray:
    """Cell of the raster, row by row, in which each centre lies; the nearest one if outside.

    Args:
        boxes: [N, 4], XYWH in units of the image's width and height.
    """
    centres = boxes[:, :2] + boxes[:, 2:] / 2
    columns, rows = np.clip(np.floor(GRID * centres), 0, GRID - 1).T
    return GRID * rows + columns


def _parts(evaluated: Evaluated, attribute: Attribute | None, ranges: Ranges) -> dict[str, Part]:
    if attribute is None:
        values = np.array([a["area"] for a in evaluated.truth.dataset["annotations"]], float)
    else:
        values = attribute(evaluated.annotated.box)
    precision = sliced_precision(evaluated.truth, evaluated.detections, attribute, ranges)
    return {
        name: Part(precision[name], _count(evaluated, (low <= values) & (values <= high)))
        for name, (low, high) in ranges.items()
    }


def _count(evaluated: Evaluated, chosen: np.ndarray) -> np.ndarray:
    labels = evaluated.annotated.label[chosen & ~evaluated.crowd]
    return np.bincount(labels, minlength=len(evaluated.classes))
