"""Everything that the page shows, as one plain dict.

Lists over classes have an entry more than there are classes: the last stands for all of them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..data.image_header import MAX_PIXELS
from .counting import FIRST_LEVEL, LAST_LEVEL, Counts, confusion, count
from .inputs import Evaluated
from .matching import match
from .pictures import pictures
from .precision import IOU_50, IOU_75, Part, by_place, by_ratio, by_size

__all__ = ["build_facts"]

logger = logging.getLogger(__name__)


def build_facts(
    evaluated: Evaluated, *, images: int = 12, max_pixels: int = MAX_PIXELS
) -> dict[str, Any]:
    """Evaluates, and gathers what the page shows.

    Args:
        evaluated: ground truth and detections.
        images: how many of the best and of the worst images to show.
        max_pixels: ``INPUT.MAX_PIXELS``; a larger image is not shown.

    Returns:
        A dict that json can hold; None where a number is not defined.

    Raises:
        ValueError: `images` is negative.
    """
    if images < 0:
        raise ValueError(f"images: expected 0 or more, got {images}.")
    logger.info(
        "Evaluating %d detections on %d images, whole and in parts: this takes several times as "
        "long as COCO's evaluation.",
        len(evaluated.detections),
        len(evaluated.images),
    )
    matches = match(evaluated)
    counts = count(evaluated, matches)
    best = counts.best_levels()
    return {
        "name": evaluated.name,
        "classes": evaluated.classes,
        "images": len(evaluated.images),
        "detections": len(evaluated.detections),
        "boxes": counts.boxes.tolist(),
        **_precisions(evaluated),
        "thresholds": _thresholds(counts),
        "best": best.tolist(),
        "confusion": confusion(evaluated, match(evaluated, across_classes=True)).tolist(),
        "pictures": pictures(evaluated, matches, int(best[-1]), images, max_pixels=max_pixels),
    }


def _precisions(evaluated: Evaluated) -> dict[str, Any]:
    sizes = by_size(evaluated)
    whole = sizes.pop("AP")
    return {
        "ap": _per_cent(whole.average()),
        "ap50": _per_cent(whole.average(IOU_50)),
        "ap75": _per_cent(whole.average(IOU_75)),
        "curves": {"50": _curves(whole, IOU_50), "75": _curves(whole, IOU_75)},
        "sizes": _parts(sizes),
        "ratios": _parts(by_ratio(evaluated)),
        "places": _parts(by_place(evaluated)),
    }


def _parts(parts: dict[str, Part]) -> list[dict[str, Any]]:
    return [
        {
            "boxes": [*part.boxes.tolist(), int(part.boxes.sum())],
            "ap": _per_cent(part.average()),
            "ap50": _per_cent(part.average(IOU_50)),
        }
        for part in parts.values()
    ]


def _thresholds(counts: Counts) -> dict[str, Any]:
    return {
        "first": FIRST_LEVEL,
        "last": LAST_LEVEL,
        "correct": counts.correct.tolist(),
        "false": counts.false.tolist(),
    }


def _curves(part: Part, iou: int) -> list[list[float]]:
    return [np.round(curve, 3).tolist() for curve in part.curves(iou)]


def _per_cent(values: Iterable[float]) -> list[float | None]:
    return [None if math.isnan(value) else round(float(value), 4) for value in values]
