"""Backbones as LazyConfig trees, from the keys MODEL.BACKBONE, RESNETS, TIMM and FPN."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.config import LazyCall as L
from detectron2.modeling.backbone import FPN, BasicStem, BottleneckBlock, ResNet
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7

from ..modeling.backbone.timm_backbone import TimmBackbone
from .shared import require_values

RES5_CHANNELS = 2048


def lazy_pyramid(cfg: CfgNode) -> Any:
    """A feature pyramid over a ResNet or a timm model.

    Raises:
        ValueError: the config names another backbone, or a ResNet with other kinds of blocks.
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


def resnet_stages(
    depth: int, *, num_groups: int, width_per_group: int, **options: Any
) -> list[list[BottleneckBlock]]:
    """Detectron2's default stages, ResNeXt's widths among them.

    Args:
        depth: 50, 101 or 152.
        num_groups: of the 3 x 3 convolutions.
        width_per_group: their channels per group in res2; every further stage has twice as many.
        options: of `BottleneckBlock`.
    """

    def block(*, bottleneck_channels: int, **of_block: Any) -> BottleneckBlock:
        # Detectron2 gives ResNet's own width here: 64 in res2, twice that in every further stage.
        width = bottleneck_channels * num_groups * width_per_group // 64
        return BottleneckBlock(bottleneck_channels=width, num_groups=num_groups, **of_block)

    return ResNet.make_default_stages(depth, block_class=block, **options)


def _resnet(cfg: CfgNode) -> Any:
    require_values(
        cfg,
        {
            "MODEL.RESNETS.STEM_OUT_CHANNELS": 64,
            "MODEL.RESNETS.RES2_OUT_CHANNELS": 256,
            "MODEL.RESNETS.RES5_DILATION": 1,
            "MODEL.RESNETS.DEFORM_ON_PER_STAGE": [False] * 4,
        },
    )
    resnet = cfg.MODEL.RESNETS
    return L(ResNet)(
        stem=L(BasicStem)(in_channels=3, out_channels=resnet.STEM_OUT_CHANNELS, norm=resnet.NORM),
        stages=L(resnet_stages)(
            depth=resnet.DEPTH,
            stride_in_1x1=resnet.STRIDE_IN_1X1,
            norm=resnet.NORM,
            num_groups=resnet.NUM_GROUPS,
            width_per_group=resnet.WIDTH_PER_GROUP,
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
