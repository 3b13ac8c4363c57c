"""Models; importing this registers them with Detectron2."""

from . import backbone, roi_heads  # noqa: F401
from .attention_banks import AttentionBanks, SelectiveMaps
from .merges import build_merge
from .poolers import SelectiveROIPooler

__all__ = ["AttentionBanks", "SelectiveMaps", "SelectiveROIPooler", "build_merge"]
