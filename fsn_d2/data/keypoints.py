"""What a model with keypoints needs of data: their names, and all of them on every annotation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from detectron2.config import CfgNode

from .cleaning import CleanedSet
from .problems import Problem
from .source import Coco
from .wording import shorten, show

__all__ = ["keypoint_metadata", "keypoint_problems"]

COCO_SIGMAS = 17  # values that pycocotools takes where TEST.KEYPOINT_OKS_SIGMAS is empty


def keypoint_metadata(coco: Coco) -> dict[str, Any]:
    """Detectron2's metadata of keypoints; empty where the categories name none.

    Args:
        coco: the list `keypoints` of a category holds their names.

    Returns:
        ``keypoint_names``; and as ``keypoint_flip_map`` those that change places when an image is
        mirrored, left_NAME with right_NAME, where both are there.
    """
    names = _keypoint_names(coco)
    if not names:
        return {}
    left = [name.removeprefix("left_") for name in names if name.startswith("left_")]
    pairs = [(f"left_{part}", f"right_{part}") for part in left if f"right_{part}" in names]
    return {"keypoint_names": names, "keypoint_flip_map": pairs}


def keypoint_problems(cfg: CfgNode, sets: Mapping[str, CleanedSet]) -> list[Problem]:
    """What keeps a model with keypoints from being trained on, or measured by, the sets.

    Args:
        cfg: reads ``MODEL.KEYPOINT_ON``, ``MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS``,
            ``TEST.KEYPOINT_OKS_SIGMAS`` and ``DATASETS.TEST``.
        sets: by name; those without annotations are not looked at.

    Returns:
        Nothing for a model without keypoints.
    """
    if not cfg.MODEL.KEYPOINT_ON:
        return []
    count = cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS
    annotated = {name: each for name, each in sets.items() if "annotations" in each.coco}
    problems: list[Problem] = []
    first: list[str] = []
    for name, each in annotated.items():
        names = _keypoint_names(each.coco)
        first = first or names
        if len(names) != count:
            problems.append(_wrong_number(name, names, count))
        elif names != first:
            text = (
                f"Data set {name!r} has the keypoints {names}, another one {first}; use the same."
            )
            problems.append(Problem(text, "keypoint names"))
        problems += _missing_keypoints(each, count)
    sigmas = len(cfg.TEST.KEYPOINT_OKS_SIGMAS) or COCO_SIGMAS
    if sigmas != count and any(name in annotated for name in cfg.DATASETS.TEST):
        text = (
            f"TEST.KEYPOINT_OKS_SIGMAS stands for {sigmas} keypoints, and "
            f"MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS is {count}; set one value for each, the spread "
            "that annotators have (COCO's: 0.025 for an eye to 0.107 for a hip; empty: COCO's 17)."
        )
        problems.append(Problem(text, "keypoint sigmas"))
    return problems


def _keypoint_names(coco: Coco) -> list[str]:
    """The names that all categories which name any agree on; else, and where one recurs, none."""
    lists = [c["keypoints"] for c in coco["categories"] if c.get("keypoints")]
    names = lists[0] if lists else []
    alike = isinstance(names, list) and all(each == names for each in lists)
    if not alike or not all(isinstance(name, str) for name in names):
        return []
    return names if len(set(names)) == len(names) else []


def _wrong_number(name: str, names: list[str], count: int) -> Problem:
    text = (
        f"Data set {name!r} names {len(names)} keypoints ({shorten(names) or 'none'}), and "
        f"MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS is {count}. Give every category the same list "
        "'keypoints' of different names, and set the key to their number."
    )
    return Problem(text, "keypoint names")


def _missing_keypoints(cleaned: CleanedSet, count: int) -> Iterable[Problem]:
    for annotation in cleaned.coco["annotations"]:
        if len(annotation.get("keypoints", ())) != 3 * count:
            text = (
                f"{cleaned.source.spec.path}: the annotation (id {show(annotation['id'])}) of "
                f"image {show(annotation['image_id'])} has no usable keypoints, {count} times x, y "
                "and visibility, which MODEL.KEYPOINT_ON needs."
            )
            yield Problem(text, "no keypoints")
