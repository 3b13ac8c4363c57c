"""Detectron2's feature pyramid over any backbone that has the maps MODEL.FPN names."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.modeling import Backbone
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool, LastLevelP6P7


def build_fpn(cfg: CfgNode, bottom_up: Backbone, *, retinanet: bool = False) -> FPN:
    """Build the pyramid that ``MODEL.FPN`` describes.

    Args:
        cfg: ``MODEL.FPN.{IN_FEATURES, OUT_CHANNELS, NORM, FUSE_TYPE}`` are read.
        bottom_up: the backbone below.
        retinanet: False: p6 is a subsampled p5; True: p6 and p7 are convolutions of res5, as in
            Detectron2's RetinaNet.

    Raises:
        ValueError: ``MODEL.FPN.IN_FEATURES`` is empty, names a map the backbone lacks, or does not
            end in res5, from which the levels above are made.
    """
    in_features = cfg.MODEL.FPN.IN_FEATURES
    known = list(bottom_up.output_shape())
    if not set(in_features) <= set(known) or list(in_features)[-1:] != ["res5"]:
        raise ValueError(
            f"MODEL.FPN.IN_FEATURES is {list(in_features)}; expected contiguous names of {known}, "
            "from high resolution to res5, which the levels above are made from."
        )
    out_channels = cfg.MODEL.FPN.OUT_CHANNELS
    top_block = LastLevelMaxPool()
    if retinanet:
        top_block = LastLevelP6P7(bottom_up.output_shape()["res5"].channels, out_channels)
    return FPN(
        bottom_up=bottom_up,
        in_features=in_features,
        out_channels=out_channels,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
