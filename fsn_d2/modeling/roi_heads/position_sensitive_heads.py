"""What R-FCN's and Light-Head R-CNN's heads share: maps for the whole image, which the box pooler
reads in the place of the backbone's features.
"""

from __future__ import annotations

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.structures import Instances
from torch import Tensor, nn

from ..bank_pooler import BANK_POOLINGS


class PositionSensitiveROIHeads(StandardROIHeads):
    """StandardROIHeads whose box pooler reads maps that `box_maps` computes from the features.

    Mask and keypoint heads read the features, as in StandardROIHeads.
    """

    box_in_features: list[str]

    @configurable
    def __init__(self, *, box_maps: nn.Module, **kwargs) -> None:
        """
        Args:
            box_maps: from one level's feature to what `box_pooler` takes for it; the levels share
                its weights.
            kwargs: as for StandardROIHeads.
        """
        super().__init__(**kwargs)
        self.box_maps = box_maps

    def _forward_box(self, features: dict[str, Tensor], proposals: list[Instances]):
        maps = {name: self.box_maps(features[name]) for name in self.box_in_features}
        return super()._forward_box(maps, proposals)


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


def require_pooling(key: str, pooling: str) -> None:
    """Raises ValueError unless `pooling`, the value of `key`, is one that the pooler knows."""
    if pooling not in BANK_POOLINGS:
        raise ValueError(f"{key} must be one of {BANK_POOLINGS}, got {pooling!r}")


def require_positive(key: str, number: int, least: int = 1) -> None:
    """Raises ValueError unless `number`, the value of `key`, is at least `least`."""
    if number < least:
        raise ValueError(f"{key} must be at least {least}, got {number}")
