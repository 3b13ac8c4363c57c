"""Light-Head R-CNN (Li et al. 2017) as Detectron2 RoI heads: thin position-sensitive maps from a
large separable convolution, and one fully connected layer per RoI.
"""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from torch import Tensor, nn

from ..checks import require_positive
from ..large_separable_conv import LargeSeparableConv2d
from ..position_sensitive import PositionSensitiveROIPooler
from .box_levels import box_levels
from .position_sensitive_heads import PositionSensitiveROIHeads, require_pooling


class ThinMaps(nn.Module):
    """Large separable convolution and ReLU (section 3); channels bank-major."""

    def __init__(
        self, in_channels: int, *, bins: int, channels: int, middle: int, kernel_size: int
    ) -> None:
        """
        Args:
            in_channels: channels of the backbone's feature.
            bins: p; there are p * p maps.
            channels: of each map.
            middle, kernel_size: as for `LargeSeparableConv2d`.
        """
        super().__init__()
        self.conv = LargeSeparableConv2d(in_channels, middle, bins * bins * channels, kernel_size)

    def forward(self, feature: Tensor) -> Tensor:
        """Tensor[N, in_channels, H, W] -> Tensor[N, p * p * channels, H, W]."""
        # A bin's channels then lie side by side in memory, which is how the op reads them.
        feature = feature.contiguous(memory_format=torch.channels_last)
        return self.conv(feature).relu()


@ROI_HEADS_REGISTRY.register()
class LightHeadROIHeads(PositionSensitiveROIHeads):
    """Light-Head R-CNN's heads (Li et al. 2017, section 3).

    The fully connected layer is MODEL.ROI_BOX_HEAD's box head, and POOLER_RESOLUTION is its p.
    """

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        light, box_head = cfg.MODEL.LIGHT_HEAD, cfg.MODEL.ROI_BOX_HEAD
        _check(light)
        width, scales = box_levels(cfg, input_shape)
        thin = {
            name: ShapeSpec(channels=light.CHANNELS, stride=shape.stride)
            for name, shape in input_shape.items()
        }
        bins = box_head.POOLER_RESOLUTION
        return {
            **super()._init_box_head(cfg, thin),
            "box_maps": ThinMaps(
                width,
                bins=bins,
                channels=light.CHANNELS,
                middle=light.MIDDLE,
                kernel_size=light.KERNEL,
            ),
            "box_pooler": PositionSensitiveROIPooler(
                bins=bins,
                scales=scales,
                sampling_ratio=box_head.POOLER_SAMPLING_RATIO,
                pooling=light.POOLING,
            ),
        }


def _check(light: CfgNode) -> None:
    """Raises ValueError naming the key of MODEL.LIGHT_HEAD that does not fit."""
    require_positive("MODEL.LIGHT_HEAD.CHANNELS", light.CHANNELS)
    require_positive("MODEL.LIGHT_HEAD.MIDDLE", light.MIDDLE)
    require_pooling("MODEL.LIGHT_HEAD.POOLING", light.POOLING)
    if light.KERNEL < 1 or light.KERNEL % 2 == 0:
        raise ValueError(f"MODEL.LIGHT_HEAD.KERNEL must be odd and positive, got {light.KERNEL}")
