"""A feature pyramid of which only the finest map is read, for detectors of small objects."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone import build_resnet_backbone
from detectron2.modeling.backbone.fpn import FPN
from torch import Tensor, nn

from .timm_backbone import TimmBackbone


class FinestFPN(Backbone):
    """FPN's top-down path without the output layers of the coarser levels.

    Left in place, those layers would get no gradient, which distributed training refuses.

    Args:
        pyramid: an FPN without a top block; changed in place.
    """

    def __init__(self, pyramid: FPN) -> None:
        super().__init__()
        self.pyramid = pyramid
        self.name, self.shape = next(iter(pyramid.output_shape().items()))
        *unread, finest = pyramid.output_convs  # from coarse to fine
        for name in [name for name, module in pyramid.named_children() if module in unread]:
            delattr(pyramid, name)
        pyramid.output_convs = [*(nn.Identity() for _ in unread), finest]

    @property
    def size_divisibility(self) -> int:
        return self.pyramid.size_divisibility

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """The finest map of images Tensor[N, 3, H, W], by its name in the pyramid."""
        return {self.name: self.pyramid(image)[self.name]}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {self.name: self.shape}


def _build(cfg: CfgNode, bottom_up: Backbone) -> FinestFPN:
    fpn = cfg.MODEL.FPN
    return FinestFPN(
        FPN(
            bottom_up=bottom_up,
            in_features=fpn.IN_FEATURES,
            out_channels=fpn.OUT_CHANNELS,
            norm=fpn.NORM,
            fuse_type=fpn.FUSE_TYPE,
        )
    )


@BACKBONE_REGISTRY.register()
def build_resnet_finest_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FinestFPN:
    """Builds Detectron2's ResNet with the finest map of the pyramid that MODEL.FPN describes."""
    return _build(cfg, build_resnet_backbone(cfg, input_shape))


@BACKBONE_REGISTRY.register()
def build_timm_finest_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FinestFPN:
    """Builds the timm model of MODEL.TIMM with the finest map of its pyramid."""
    return _build(cfg, TimmBackbone(cfg, input_shape, read=cfg.MODEL.FPN.IN_FEATURES))
