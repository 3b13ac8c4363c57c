"""Models; importing this registers them with Detectron2."""

from . import backbone, meta_arch, roi_heads  # noqa: F401
from .attention_banks import AttentionBanks, DeferredMaps, SelectiveMaps
from .bank_pooler import BankROIPooler
from .large_separable_conv import LargeSeparableConv2d
from .merges import Merge, build_merge
from .poolers import SelectiveROIPooler
from .position_sensitive import (
    PositionSensitiveROIPooler,
    VotingROIPooler,
    bank_major,
    class_major,
)

__all__ = [
    "AttentionBanks",
    "BankROIPooler",
    "DeferredMaps",
    "LargeSeparableConv2d",
    "Merge",
    "PositionSensitiveROIPooler",
    "SelectiveMaps",
    "SelectiveROIPooler",
    "VotingROIPooler",
    "bank_major",
    "build_merge",
    "class_major",
]
