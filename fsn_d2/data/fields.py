"""The fields of an annotation beside its box: filled in, repaired, or left out."""

from __future__ import annotations

import math
from typing import Any

from .source import Coco

__all__ = ["AREA", "KEYPOINTS", "MASK", "repair_fields"]

AREA = "areas that are no positive number or larger than the image, the box's taken"
MASK = "segmentations that are malformed, left out (their boxes are kept)"
KEYPOINTS = "keypoints that are malformed, left out (their boxes are kept)"


def repair_fields(annotation: Coco, width: int, height: int) -> tuple[Coco, list[str]]:
    """Brings the optional fields into the form that Detectron2 and COCO's evaluation read.

    Detectron2 would drop the box along with a malformed polygon, and the evaluation, at the end of
    a training, would stop at an area or an `iscrowd` that is null.

    Args:
        annotation: with a sound `bbox`.
        width: of the image, in pixels.
        height: of the image, in pixels.

    Returns:
        The annotation, and what was found amiss in it (AREA, MASK, KEYPOINTS).
    """
    new = {**annotation, "iscrowd": int(annotation.get("iscrowd") or 0)}
    findings = []
    if not _is_area(new.get("area"), width, height):
        new["area"] = new["bbox"][2] * new["bbox"][3]
        findings += [AREA] if "area" in annotation else []
    if new.get("ignore", 0) != 0:  # null or the like: another value is refused when reading
        del new["ignore"]
    if new.get("segmentation"):
        new["segmentation"] = _usable_mask(new["segmentation"], width, height)
        if new["segmentation"] != annotation["segmentation"]:
            findings.append(MASK)
        if new["segmentation"] is None:
            del new["segmentation"]
    if "keypoints" in new and not _are_keypoints(new["keypoints"]):
        del new["keypoints"]
        findings.append(KEYPOINTS)
    if "keypoints" in new and not _is_number(new.get("num_keypoints")):
        new["num_keypoints"] = sum(visible > 0 for visible in new["keypoints"][2::3])
    return new, findings


def _is_area(value: Any, width: int, height: int) -> bool:
    return _is_number(value) and 0 < value <= (width + 1) * (height + 1)


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and math.isfinite(value)
    except (TypeError, OverflowError):
        return False


def _usable_mask(segmentation: Any, width: int, height: int) -> list | dict | None:
    """The polygons that have an area's form, or the run lengths if they fit the image."""
    if isinstance(segmentation, dict):
        return segmentation if _fits(segmentation, width, height) else None
    if not isinstance(segmentation, list):
        return None
    return [polygon for polygon in segmentation if _is_polygon(polygon)] or None


def _is_polygon(value: Any) -> bool:
    if not isinstance(value, list) or len(value) % 2 or len(value) < 6:
        return False
    return all(map(_is_number, value))


def _fits(rle: Coco, width: int, height: int) -> bool:
    counts = rle.get("counts")
    runs = _run_lengths(counts) if isinstance(counts, str) else counts
    if rle.get("size") != [height, width] or not isinstance(runs, list):
        return False
    whole = all(isinstance(run, int) and run >= 0 for run in runs)
    return whole and sum(runs) == width * height


def _run_lengths(text: str) -> list[int] | None:
    """Unpacks COCO's compressed run lengths; None where they are cut off or hold another character.

    pycocotools unpacks them too, but decodes runs that do not fill the image without a complaint,
    from memory that nothing was written to.
    """
    runs: list[int] = []
    value = shift = 0
    for char in text:
        bits = ord(char) - 48  # six of them: five of the number, and whether more follow
        if not 0 <= bits < 64:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        value -= (bits & 16) << (shift - 4)  # the last five bits hold the sign
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    return None if shift else runs


def _are_keypoints(value: Any) -> bool:
    return isinstance(value, list) and len(value) % 3 == 0 and all(map(_is_number, value))
