"""RetinaNet's head, opened between its towers and what is predicted from them."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from torch import Tensor, nn

Towers = tuple[list[Tensor], list[Tensor]]


def _group_norm(channels: int) -> nn.GroupNorm:
    """Detectron2's "GN", which its v0.6 cannot put into this head: it tries it on one channel."""
    return nn.GroupNorm(min(32, channels), channels)


class TowerHead(RetinaNetHead):
    """RetinaNetHead that gives its towers' features; the names of its parameters are the same."""

    @configurable
    def __init__(self, *, anchors: bool, norm: Any = "", **kwargs) -> None:
        """
        Args:
            anchors: whether there are the layers that predict from anchors.
            norm, kwargs: as for RetinaNetHead.
        """
        super().__init__(norm=_group_norm if norm == "GN" else norm, **kwargs)
        if not anchors:
            del self.cls_score, self.bbox_pred

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict[str, Any]:
        parts = super().from_config(cfg, input_shape)
        parts["anchors"] = cfg.MODEL.FSAF.MODE != "anchor_free"
        return parts

    def forward(self, features: list[Tensor]) -> Towers:
        """Class features and box features per level, each as large as the level."""
        return [self.cls_subnet(f) for f in features], [self.bbox_subnet(f) for f in features]

    def predict_from_anchors(self, towers: Towers) -> Towers:
        """Logits Tensor[N, A * K, H, W] and deltas Tensor[N, A * 4, H, W] per level."""
        cls_features, box_features = towers
        return [self.cls_score(f) for f in cls_features], [self.bbox_pred(f) for f in box_features]
