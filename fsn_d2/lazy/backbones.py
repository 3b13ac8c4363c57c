"""Backbones as LazyConfig trees, from the keys MODEL.BACKBONE, RESNETS, TIMM and FPN."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.config import LazyCall as L
from detectron2.modeling.backbone import FPN, BasicStem, ResNet
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7

from ..modeling.backbone.timm_backbone import TimmBackbone

RES5_CHANNELS = 2048


def lazy_pyramid(cfg: CfgNode) -> Any:
    """A feature pyramid over a ResNet or a timm model.

    Raises:
        ValueError: the config names another backbone.
    """
    builders = {
        "build_resnet_fpn_backbone": (_resnet, False),
        "build_retinanet_resnet_fpn_backbone": (_resnet, True),
        "build_timm_fpn_backbone": (_timm, False),
        "build_timm_retinanet_fpn_backbone": (_timm, True),
    }
    name = cfg.MODEL.BACKBONE.NAME
    if name not in builders:
        raise ValueError(
            f"MODEL.BACKBONE.NAME {name!r} has no LazyConfig version here; {sorted(builders)} do."
        )
    bottom_up, is_retinanet = builders[name]
    fpn = cfg.MODEL.FPN
    return L(FPN)(
        bottom_up=bottom_up(cfg),
        in_features=fpn.IN_FEATURES,
        out_channels=fpn.OUT_CHANNELS,
        norm=fpn.NORM,
        top_block=_top_block(cfg, is_retinanet),
        fuse_type=fpn.FUSE_TYPE,
    )


def _top_block(cfg: CfgNode, is_retinanet: bool) -> Any:
    if not is_retinanet:
        return L(LastLevelMaxPool)()
    if cfg.MODEL.BACKBONE.NAME.startswith("build_timm"):
        channels = L(_timm_channels)(name="${...bottom_up.name}")
    else:
        channels = RES5_CHANNELS
    return L(LastLevelP6P7)(in_channels=channels, out_channels="${..out_channels}")


def _timm_channels(name: str) -> int:
    return TimmBackbone(name=name).output_shape()["res5"].channels


def _resnet(cfg: CfgNode) -> Any:
    resnet = cfg.MODEL.RESNETS
    return L(ResNet)(
        stem=L(BasicStem)(in_channels=3, out_channels=resnet.STEM_OUT_CHANNELS, norm=resnet.NORM),
        stages=L(ResNet.make_default_stages)(
            depth=resnet.DEPTH,
            stride_in_1x1=resnet.STRIDE_IN_1X1,
            norm=resnet.NORM,
            num_groups=resnet.NUM_GROUPS,
        ),
        out_features=resnet.OUT_FEATURES,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )


def _timm(cfg: CfgNode) -> Any:
    return L(TimmBackbone)(
        name=cfg.MODEL.TIMM.NAME,
        pretrained=cfg.MODEL.TIMM.PRETRAINED,
        norm=cfg.MODEL.TIMM.NORM,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )
