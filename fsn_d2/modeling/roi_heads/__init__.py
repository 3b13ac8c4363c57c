"""RoI heads; importing this registers them."""

from .fast_pooling_heads import FastPoolingROIHeads
from .fsn_heads import FSNCascadeROIHeads, FSNRes5ROIHeads, FSNROIHeads
from .lighthead_heads import LightHeadROIHeads
from .rfcn_heads import RFCNROIHeads

__all__ = [
    "FSNCascadeROIHeads",
    "FSNROIHeads",
    "FSNRes5ROIHeads",
    "FastPoolingROIHeads",
    "LightHeadROIHeads",
    "RFCNROIHeads",
]
