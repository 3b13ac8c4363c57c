"""RoI heads; importing this registers them."""

from .fsn_heads import FSNCascadeROIHeads, FSNRes5ROIHeads, FSNROIHeads

__all__ = ["FSNCascadeROIHeads", "FSNROIHeads", "FSNRes5ROIHeads"]
