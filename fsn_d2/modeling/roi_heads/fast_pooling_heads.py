"""StandardROIHeads with this project's op as box pooler.

Detectron2 chooses a pooler by name inside ROIPooler, without a registry; the place it leaves for
another one is the heads' `_init_box_head`. So these heads differ from StandardROIHeads in that one
part, hold the same weights, and every other key means the same.
"""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import StandardROIHeads

from ..bank_pooler import BankROIPooler
from .box_levels import box_levels

# MODEL.ROI_BOX_HEAD.POOLER_TYPE -> what it is called here.
POOLINGS = {"ROIPool": "max", "ROIAlignV2": "align"}


@ROI_HEADS_REGISTRY.register()
class FastPoolingROIHeads(StandardROIHeads):
    """StandardROIHeads, equal to Detectron2's own for POOLER_TYPE ROIPool and ROIAlignV2."""

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        box_head = cfg.MODEL.ROI_BOX_HEAD
        if box_head.POOLER_TYPE not in POOLINGS:
            raise ValueError(
                f"MODEL.ROI_BOX_HEAD.POOLER_TYPE must be one of {list(POOLINGS)} for "
                f"FastPoolingROIHeads, got {box_head.POOLER_TYPE!r}; StandardROIHeads takes others"
            )
        _, scales = box_levels(cfg, input_shape)
        pooler = BankROIPooler(
            output_size=box_head.POOLER_RESOLUTION,
            scales=scales,
            sampling_ratio=box_head.POOLER_SAMPLING_RATIO,
            pooling=POOLINGS[box_head.POOLER_TYPE],
            bank_index=torch.zeros(1, 1, 1, dtype=torch.int64),
        )
        return {**super()._init_box_head(cfg, input_shape), "box_pooler": pooler}
