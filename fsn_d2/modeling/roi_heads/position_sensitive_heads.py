"""What R-FCN's and Light-Head R-CNN's heads share: maps for the whole image, which the box pooler
reads in the place of the backbone's features.
"""

from __future__ import annotations

from detectron2.config import configurable
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


def require_pooling(key: str, pooling: str) -> None:
    """Raises ValueError unless `pooling`, the value of `key`, is one that the pooler knows."""
    if pooling not in BANK_POOLINGS:
        raise ValueError(f"{key} must be one of {BANK_POOLINGS}, got {pooling!r}")
