"""Backbones beside Detectron2's own; importing this package registers them."""

from .config import add_backbone_config
from .embedded_lite0 import read_embedded_lite0
from .finest_fpn import FinestFPN
from .fpn import build_fpn
from .googlenet import GoogLeNetBackbone, build_googlenet_backbone, build_googlenet_fpn_backbone
from .input_statistics import adopt_input_statistics
from .timm_backbone import (
    TimmBackbone,
    build_timm_backbone,
    build_timm_fpn_backbone,
    build_timm_retinanet_fpn_backbone,
)

__all__ = [
    "FinestFPN",
    "GoogLeNetBackbone",
    "TimmBackbone",
    "add_backbone_config",
    "adopt_input_statistics",
    "build_fpn",
    "build_googlenet_backbone",
    "build_googlenet_fpn_backbone",
    "build_timm_backbone",
    "build_timm_fpn_backbone",
    "build_timm_retinanet_fpn_backbone",
    "read_embedded_lite0",
]
