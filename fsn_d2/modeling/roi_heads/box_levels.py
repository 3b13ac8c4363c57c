"""The pyramid levels that a box head reads."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec

from ..checks import require_positive


def box_levels(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> tuple[int, tuple[float, ...]]:
    """The width of MODEL.ROI_HEADS.IN_FEATURES, and 1 / stride of each.

    Raises:
        ValueError: the levels' widths differ, or bins or samples of MODEL.ROI_BOX_HEAD's pooler are
            too few.
    """
    box_head = cfg.MODEL.ROI_BOX_HEAD
    require_positive("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", box_head.POOLER_RESOLUTION)
    samples = box_head.POOLER_SAMPLING_RATIO
    require_positive("MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO", samples, least=0)
    levels = [input_shape[name] for name in cfg.MODEL.ROI_HEADS.IN_FEATURES]
    widths = {level.channels for level in levels}
    if len(widths) != 1:
        raise ValueError(
            "the levels of MODEL.ROI_HEADS.IN_FEATURES must have one number of channels, "
            f"got {sorted(widths)}"
        )
    return widths.pop(), tuple(1.0 / level.stride for level in levels)
