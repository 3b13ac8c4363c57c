"""Detectron2's feature pyramid over any backbone that has the maps MODEL.FPN names."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.modeling import Backbone
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool


def build_fpn(cfg: CfgNode, bottom_up: Backbone) -> FPN:
    """Build the pyramid that ``MODEL.FPN`` describes, p6 being a subsampled p5.

    Args:
        cfg: ``MODEL.FPN.{IN_FEATURES, OUT_CHANNELS, NORM, FUSE_TYPE}`` are read.
        bottom_up: the backbone below.

    Raises:
        ValueError: ``MODEL.FPN.IN_FEATURES`` is empty or names a map the backbone lacks.
    """
    in_features = cfg.MODEL.FPN.IN_FEATURES
    known = list(bottom_up.output_shape())
    if not in_features or not set(in_features) <= set(known):
        raise ValueError(
            f"MODEL.FPN.IN_FEATURES is {list(in_features)}; expected contiguous names of {known}, "
            "from high to low resolution."
        )
    return FPN(
        bottom_up=bottom_up,
        in_features=in_features,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
