"""Parts that two-stage and dense detectors share, as LazyConfig trees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

from detectron2.config import CfgNode
from detectron2.config import LazyCall as L
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher

STRIDES = {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64, "p7": 128}


def require_values(cfg: CfgNode, values: Mapping[str, Any]) -> None:
    """Refuses a config that a tree could not hold, rather than build something else from it.

    Args:
        cfg: whose tree is to be built.
        values: key -> the one value that the tree is right for.

    Raises:
        ValueError: a key has another value.
    """
    for key, value in values.items():
        found = reduce(getattr, key.split("."), cfg)
        if found != value:
            raise ValueError(
                f"{key} {found!r} has no LazyConfig version here; {value!r} has. Use the YAML "
                "config, or change the key."
            )


def lazy_anchors(cfg: CfgNode, levels: Sequence[str]) -> Any:
    require_values(cfg, {"MODEL.ANCHOR_GENERATOR.NAME": "DefaultAnchorGenerator"})
    anchors = cfg.MODEL.ANCHOR_GENERATOR
    return L(DefaultAnchorGenerator)(
        sizes=anchors.SIZES,
        aspect_ratios=anchors.ASPECT_RATIOS,
        strides=[STRIDES[level] for level in levels],
        offset=anchors.OFFSET,
    )


def num_anchors(cfg: CfgNode) -> int:
    """Per cell; the same on every level."""
    anchors = cfg.MODEL.ANCHOR_GENERATOR
    return len(anchors.SIZES[0]) * len(anchors.ASPECT_RATIOS[0])


def lazy_matcher(thresholds: Sequence[float], labels: Sequence[int], *, low_quality: bool) -> Any:
    return L(Matcher)(
        thresholds=list(thresholds), labels=list(labels), allow_low_quality_matches=low_quality
    )


def lazy_box_transform(weights: Sequence[float]) -> Any:
    return L(Box2BoxTransform)(weights=list(weights))
