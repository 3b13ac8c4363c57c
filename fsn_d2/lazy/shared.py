"""Parts that two-stage and dense detectors share, as LazyConfig trees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.config import LazyCall as L
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher

STRIDES = {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64, "p7": 128}


def lazy_anchors(cfg: CfgNode, levels: Sequence[str]) -> Any:
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
