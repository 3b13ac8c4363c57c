"""RoI heads whose box features come from Feature Selective Networks' banks.

Each is one of Detectron2's own heads with another pooler, so mask and keypoint heads, losses,
matching and inference stay Detectron2's.
"""

from __future__ import annotations

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import CascadeROIHeads, Res5ROIHeads, StandardROIHeads
from detectron2.structures import Boxes, Instances
from fvcore.nn import weight_init
from torch import Tensor, nn

from ..attention_banks import AttentionBanks, SelectiveMaps
from ..checks import require_positive
from ..merges import build_merge
from ..poolers import SelectiveROIPooler
from .box_levels import box_levels


def build_selective_pooling(
    cfg: CfgNode, input_shape: dict[str, ShapeSpec]
) -> tuple[AttentionBanks, SelectiveROIPooler]:
    """Builds the banks and the pooler that MODEL.FSN describes, for the box head's levels.

    Raises:
        ValueError: naming the key that does not fit.
    """
    fsn, box_head = cfg.MODEL.FSN, cfg.MODEL.ROI_BOX_HEAD
    width, scales = box_levels(cfg, input_shape)
    grid = 0 if fsn.SUB_REGION == "none" else fsn.GRID
    num_banks = bool(grid) + bool(len(fsn.RATIOS))
    merge = build_merge(
        fsn.MERGE, channels=fsn.CHANNELS, num_banks=num_banks, activation=fsn.ACTIVATION
    )
    pooler = SelectiveROIPooler(
        output_size=box_head.POOLER_RESOLUTION,
        scales=scales,
        sampling_ratio=box_head.POOLER_SAMPLING_RATIO,
        pooler_type=box_head.POOLER_TYPE,
        sub_region=fsn.SUB_REGION,
        grid=grid,
        ratios=fsn.RATIOS,
        merge=merge,
        pooling=fsn.POOLING,
    )
    banks = AttentionBanks(
        width,
        fsn.CHANNELS,
        grid=grid,
        shift=fsn.SHIFT,
        num_ratios=len(fsn.RATIOS),
        kernel_size=fsn.BANK_KERNEL,
        input=fsn.BANK_INPUT,
        start=merge.start,
        readies_maps=not pooler.is_fused,
    )
    return banks, pooler


def _thin(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, ShapeSpec]:
    """The levels as the box head sees them behind the pooler: CHANNELS wide."""
    require_positive("MODEL.FSN.CHANNELS", cfg.MODEL.FSN.CHANNELS)  # before the box head is built
    return {
        name: ShapeSpec(channels=cfg.MODEL.FSN.CHANNELS, stride=shape.stride)
        for name, shape in input_shape.items()
    }


def _image_sizes(proposals: list[Instances]) -> list:
    return [p.image_size for p in proposals]


@ROI_HEADS_REGISTRY.register()
class FSNROIHeads(StandardROIHeads):
    """StandardROIHeads with FSN box features (FSN, section 3): banks, selective pooling, merge."""

    box_in_features: list[str]

    @configurable
    def __init__(self, *, box_banks: AttentionBanks, **kwargs) -> None:
        """
        Args:
            box_banks: computes what the box pooler pools from.
            kwargs: as for StandardROIHeads; `box_pooler` is a SelectiveROIPooler.
        """
        super().__init__(**kwargs)
        self.box_banks = box_banks

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        parts = super()._init_box_head(cfg, _thin(cfg, input_shape))
        parts["box_banks"], parts["box_pooler"] = build_selective_pooling(cfg, input_shape)
        return parts

    def _forward_box(self, features: dict[str, Tensor], proposals: list[Instances], *args):
        features = {name: features[name] for name in self.box_in_features}
        maps = self.box_banks(features, _image_sizes(proposals))
        return super()._forward_box(maps, proposals, *args)


@ROI_HEADS_REGISTRY.register()
class FSNCascadeROIHeads(FSNROIHeads, CascadeROIHeads):
    """CascadeROIHeads with FSN box features: each stage reads the same banks with its boxes."""


@ROI_HEADS_REGISTRY.register()
class FSNRes5ROIHeads(Res5ROIHeads):
    """Res5ROIHeads (C4) with FSN features, widened again to what the pretrained res5 takes in."""

    in_features: list[str]

    @configurable
    def __init__(self, *, banks: AttentionBanks, widen: nn.Module, **kwargs) -> None:
        """
        Args:
            banks: computes what the pooler pools from.
            widen: from C channels to what `res5` takes in.
            kwargs: as for Res5ROIHeads; `pooler` is a SelectiveROIPooler.
        """
        super().__init__(**kwargs)
        self.banks = banks
        self.widen = widen

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        parts = super().from_config(cfg, input_shape)
        parts["banks"], parts["pooler"] = build_selective_pooling(cfg, input_shape)
        (name,) = cfg.MODEL.ROI_HEADS.IN_FEATURES
        parts["widen"] = nn.Conv2d(cfg.MODEL.FSN.CHANNELS, input_shape[name].channels, 1)
        weight_init.c2_xavier_fill(parts["widen"])  # res5 is used to features of this size
        return parts

    def forward(self, images, features, proposals, targets=None):
        features = {name: features[name] for name in self.in_features}
        return super().forward(
            images, self.banks(features, _image_sizes(proposals)), proposals, targets
        )

    def forward_with_given_boxes(
        self, features: dict[str, Tensor | SelectiveMaps], instances: list[Instances]
    ) -> list[Instances]:
        # Called from forward with maps, and by test-time augmentation with plain features.
        if self.mask_on and isinstance(features[self.in_features[0]], Tensor):
            features = {name: features[name] for name in self.in_features}
            features = self.banks(features, _image_sizes(instances))
        return super().forward_with_given_boxes(features, instances)

    def _shared_roi_transform(self, features: list[SelectiveMaps], boxes: list[Boxes]) -> Tensor:
        return self.res5(self.widen(self.pooler(features, boxes)))
