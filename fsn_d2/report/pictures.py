"""The best and the worst images, small enough to be put into the page, with their boxes."""

from __future__ import annotations

import base64
import logging
from typing import Any

import cv2
import numpy as np

from ..data.image_header import MAX_PIXELS
from ..data.mapper import read_image
from .counting import FIRST_LEVEL, levels_of
from .inputs import Columns, Evaluated
from .matching import Matches

__all__ = ["encode", "pictures", "rank"]

logger = logging.getLogger(__name__)

SIDE = 640  # pixels, the longer side of a picture in the page
QUALITY = 75  # of JPEG


def rank(evaluated: Evaluated, matches: Matches, level: int) -> list[int]:
    """Images from worst to best by F1; among equals, those with more boxes lie further out.

    Args:
        evaluated: ground truth and detections.
        matches: within classes.
        level: score threshold in hundredths.

    Returns:
        indices of the images that have an object or a detection that scores enough.
    """
    kept = levels_of(evaluated.scores) >= level
    correct, false, boxes = (
        np.bincount(images, minlength=len(evaluated.images))
        for images in (
            evaluated.detected.image[matches.correct & kept],
            evaluated.detected.image[matches.false & kept],
            evaluated.annotated.image[~evaluated.crowd],
        )
    )
    outcomes = correct + false + boxes
    f1 = 2 * correct / np.maximum(outcomes, 1)
    order = np.lexsort(((2 * f1 - 1) * outcomes, f1))
    return [int(i) for i in order if outcomes[i]]


def pictures(
    evaluated: Evaluated,
    matches: Matches,
    level: int,
    limit: int,
    *,
    max_pixels: int = MAX_PIXELS,
) -> list[dict[str, Any]]:
    """The images to show, the worst first, then the best.

    Args:
        evaluated: ground truth and detections.
        matches: within classes.
        level: score threshold in hundredths, by which the images are ranked.
        limit: how many of either kind, at most half of the images.
        max_pixels: ``INPUT.MAX_PIXELS``; a larger image is not shown.
    """
    order = rank(evaluated, matches, level)
    worst = order[: min(limit, len(order) // 2)]
    best = order[::-1][: min(limit, len(order) - len(worst))]
    return [
        {"list": name, "rank": place, **_picture(evaluated, matches, index, max_pixels)}
        for name, chosen in (("worst", worst), ("best", best))
        for place, index in enumerate(chosen, start=1)
    ]


def _picture(evaluated: Evaluated, matches: Matches, index: int, max_pixels: int) -> dict[str, Any]:
    image = evaluated.images[index]
    here = (evaluated.annotated.image == index) & ~evaluated.crowd
    objects = np.flatnonzero(here).tolist()
    return {
        "name": str(image["file_name"]).rsplit("/", 1)[-1],
        "width": image["width"],
        "height": image["height"],
        "jpeg": encode(evaluated.files[image["id"]], max_pixels),
        "objects": [_box(evaluated.annotated, i) for i in objects],
        "detections": _detections(evaluated, matches, index, objects),
    }


def _detections(
    evaluated: Evaluated, matches: Matches, index: int, objects: list[int]
) -> list[list[float]]:
    """Box, class, score in hundredths, and the place of what was found among the objects, or -1."""
    levels = levels_of(evaluated.scores)
    here = (evaluated.detected.image == index) & matches.counted & (levels >= FIRST_LEVEL)
    places = {annotation: place for place, annotation in enumerate(objects)}
    return [
        [*_box(evaluated.detected, i), int(levels[i]), places.get(int(matches.annotation[i]), -1)]
        for i in np.flatnonzero(here).tolist()
    ]


def _box(columns: Columns, index: int) -> list[float]:
    """x, y, width, height in pixels, and the class."""
    return [*np.round(columns.box[index], 1).tolist(), int(columns.label[index])]


def encode(file_name: str, max_pixels: int) -> str:
    """A small JPEG as base64; empty, with a warning, where the image cannot be read."""
    try:
        image = read_image(file_name, "BGR", max_pixels)
    except Exception as error:  # Pillow's decoders raise nearly any type on a broken file
        logger.warning("Image %s is not shown: it cannot be read (%s).", file_name, error)
        return ""
    height, width = image.shape[:2]
    scale = min(1, SIDE / max(height, width))
    size = max(1, round(scale * width)), max(1, round(scale * height))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    _, data = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return base64.b64encode(data.tobytes()).decode()
