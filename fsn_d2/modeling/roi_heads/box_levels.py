"""The pyramid levels that a box head reads."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec


def box_levels(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> tuple[int, tuple[float, ...]]:
    """The width of MODEL.ROI_HEADS.IN_FEATURES, and 1 / stride of each.

    Raises:
        ValueError: the levels' widths differ.
    """
    levels = [input_shape[name] for name in cfg.MODEL.ROI_HEADS.IN_FEATURES]
    widths = {level.channels for level in levels}
    if len(widths) != 1:
        raise ValueError(
            "the levels of MODEL.ROI_HEADS.IN_FEATURES must have one number of channels, "
            f"got {sorted(widths)}"
        )
    return widths.pop(), tuple(1.0 / level.stride for level in levels)
