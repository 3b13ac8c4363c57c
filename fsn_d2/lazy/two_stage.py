"""Two-stage detectors on a feature pyramid as LazyConfig trees: Faster R-CNN and FSN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN, StandardRPNHead
from detectron2.modeling.roi_heads import (
    FastRCNNConvFCHead,
    FastRCNNOutputLayers,
    StandardROIHeads,
)

from ..modeling.attention_banks import AttentionBanks
from ..modeling.merges import build_merge
from ..modeling.poolers import SelectiveROIPooler, pools_in_one_pass
from ..modeling.roi_heads import FSNROIHeads
from .backbones import lazy_pyramid
from .shared import (
    STRIDES,
    lazy_anchors,
    lazy_box_transform,
    lazy_matcher,
    num_anchors,
    require_values,
)

# Paths as the trees below see them: OmegaConf counts a dot per step towards the root.
_POOLER = "${...box_pooler"


def lazy_generalized_rcnn(cfg: CfgNode) -> Any:
    """Faster R-CNN or FSN as the config describes it.

    Raises:
        ValueError: the config asks for other heads, or for another proposal generator.
    """
    builders = {"StandardROIHeads": _standard_heads, "FSNROIHeads": _fsn_heads}
    name = cfg.MODEL.ROI_HEADS.NAME
    if name not in builders:
        raise ValueError(
            f"MODEL.ROI_HEADS.NAME {name!r} has no LazyConfig version here; {sorted(builders)} do."
        )
    return L(GeneralizedRCNN)(
        backbone=lazy_pyramid(cfg),
        proposal_generator=_rpn(cfg),
        roi_heads=builders[name](cfg),
        pixel_mean=cfg.MODEL.PIXEL_MEAN,
        pixel_std=cfg.MODEL.PIXEL_STD,
        input_format=cfg.INPUT.FORMAT,
        vis_period=cfg.VIS_PERIOD,
    )


def _rpn(cfg: CfgNode) -> Any:
    require_values(
        cfg,
        {"MODEL.PROPOSAL_GENERATOR.NAME": "RPN", "MODEL.RPN.HEAD_NAME": "StandardRPNHead"},
    )
    rpn = cfg.MODEL.RPN
    return L(RPN)(
        in_features=rpn.IN_FEATURES,
        head=L(StandardRPNHead)(
            in_channels=cfg.MODEL.FPN.OUT_CHANNELS,
            num_anchors=num_anchors(cfg),
            conv_dims=rpn.CONV_DIMS,
        ),
        anchor_generator=lazy_anchors(cfg, rpn.IN_FEATURES),
        anchor_matcher=lazy_matcher(rpn.IOU_THRESHOLDS, rpn.IOU_LABELS, low_quality=True),
        box2box_transform=lazy_box_transform(rpn.BBOX_REG_WEIGHTS),
        batch_size_per_image=rpn.BATCH_SIZE_PER_IMAGE,
        positive_fraction=rpn.POSITIVE_FRACTION,
        pre_nms_topk=(rpn.PRE_NMS_TOPK_TRAIN, rpn.PRE_NMS_TOPK_TEST),
        post_nms_topk=(rpn.POST_NMS_TOPK_TRAIN, rpn.POST_NMS_TOPK_TEST),
        nms_thresh=rpn.NMS_THRESH,
        min_box_size=cfg.MODEL.PROPOSAL_GENERATOR.MIN_SIZE,
        anchor_boundary_thresh=rpn.BOUNDARY_THRESH,
        loss_weight={
            "loss_rpn_cls": rpn.LOSS_WEIGHT,
            "loss_rpn_loc": rpn.BBOX_REG_LOSS_WEIGHT * rpn.LOSS_WEIGHT,
        },
        box_reg_loss_type=rpn.BBOX_REG_LOSS_TYPE,
        smooth_l1_beta=rpn.SMOOTH_L1_BETA,
    )


def _standard_heads(cfg: CfgNode) -> Any:
    box_head = cfg.MODEL.ROI_BOX_HEAD
    pooler = L(ROIPooler)(
        output_size=box_head.POOLER_RESOLUTION,
        scales=_scales(cfg),
        sampling_ratio=box_head.POOLER_SAMPLING_RATIO,
        pooler_type=box_head.POOLER_TYPE,
    )
    parts = _common_parts(cfg, channels=cfg.MODEL.FPN.OUT_CHANNELS)
    return L(StandardROIHeads)(box_pooler=pooler, **parts)


def _fsn_heads(cfg: CfgNode) -> Any:
    fsn, box_head = cfg.MODEL.FSN, cfg.MODEL.ROI_BOX_HEAD
    merge = {
        "name": fsn.MERGE,
        "channels": "${...box_banks.channels}",
        "num_banks": L(_num_banks)(sub_region="${...sub_region}", ratios="${...ratios}"),
        "activation": fsn.ACTIVATION,
    }
    pooler = L(SelectiveROIPooler)(
        output_size=box_head.POOLER_RESOLUTION,
        scales=_scales(cfg),
        sampling_ratio=box_head.POOLER_SAMPLING_RATIO,
        pooler_type=box_head.POOLER_TYPE,
        sub_region=fsn.SUB_REGION,
        grid=fsn.GRID,
        ratios=fsn.RATIOS,
        merge=L(build_merge)(**merge),
        pooling=fsn.POOLING,
    )
    banks = L(AttentionBanks)(
        in_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        channels=fsn.CHANNELS,
        grid=L(_grid_of_banks)(sub_region=f"{_POOLER}.sub_region}}", grid=f"{_POOLER}.grid}}"),
        shift=fsn.SHIFT,
        num_ratios=L(_count)(values=f"{_POOLER}.ratios}}"),
        kernel_size=fsn.BANK_KERNEL,
        input=fsn.BANK_INPUT,
        start=L(_start_of)(**{key: f"{_POOLER}.merge.{key}}}" for key in merge}),
        readies_maps=L(_readies_maps)(
            pooling=f"{_POOLER}.pooling}}", pooler_type=f"{_POOLER}.pooler_type}}"
        ),
    )
    parts = _common_parts(cfg, channels="${...box_banks.channels}")
    return L(FSNROIHeads)(box_pooler=pooler, box_banks=banks, **parts)


def _num_banks(sub_region: str, ratios: Sequence[float]) -> int:
    return int(sub_region != "none") + int(len(ratios) > 0)


def _grid_of_banks(sub_region: str, grid: int) -> int:
    return 0 if sub_region == "none" else grid


def _count(values: Sequence[float]) -> int:
    return len(values)


def _start_of(**merge: Any) -> float | None:
    return build_merge(merge.pop("name"), **merge).start


def _readies_maps(pooling: str, pooler_type: str) -> bool:
    return not pools_in_one_pass(pooling, pooler_type)


def _scales(cfg: CfgNode) -> tuple[float, ...]:
    return tuple(1.0 / STRIDES[level] for level in cfg.MODEL.ROI_HEADS.IN_FEATURES)


def _common_parts(cfg: CfgNode, channels: int | str) -> dict[str, Any]:
    """What both heads have: sampling, the layers behind the pooler, the predictor."""
    require_values(cfg, {"MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead"})
    heads, box_head = cfg.MODEL.ROI_HEADS, cfg.MODEL.ROI_BOX_HEAD
    if box_head.NUM_FC < 1:  # the predictor's width would be that of the layers before
        raise ValueError("MODEL.ROI_BOX_HEAD.NUM_FC 0 has no LazyConfig version here; 1 has.")
    resolution = box_head.POOLER_RESOLUTION
    return {
        "num_classes": heads.NUM_CLASSES,
        "batch_size_per_image": heads.BATCH_SIZE_PER_IMAGE,
        "positive_fraction": heads.POSITIVE_FRACTION,
        "proposal_matcher": lazy_matcher(heads.IOU_THRESHOLDS, heads.IOU_LABELS, low_quality=False),
        "proposal_append_gt": heads.PROPOSAL_APPEND_GT,
        "box_in_features": heads.IN_FEATURES,
        "box_head": L(FastRCNNConvFCHead)(
            input_shape=L(ShapeSpec)(channels=channels, height=resolution, width=resolution),
            conv_dims=[box_head.CONV_DIM] * box_head.NUM_CONV,
            fc_dims=[box_head.FC_DIM] * box_head.NUM_FC,
            conv_norm=box_head.NORM,
        ),
        "box_predictor": L(FastRCNNOutputLayers)(
            input_shape=L(ShapeSpec)(channels=box_head.FC_DIM),
            box2box_transform=lazy_box_transform(box_head.BBOX_REG_WEIGHTS),
            num_classes="${..num_classes}",
            cls_agnostic_bbox_reg=box_head.CLS_AGNOSTIC_BBOX_REG,
            smooth_l1_beta=box_head.SMOOTH_L1_BETA,
            test_score_thresh=heads.SCORE_THRESH_TEST,
            test_nms_thresh=heads.NMS_THRESH_TEST,
            test_topk_per_image=cfg.TEST.DETECTIONS_PER_IMAGE,
            box_reg_loss_type=box_head.BBOX_REG_LOSS_TYPE,
            loss_weight={"loss_box_reg": box_head.BBOX_REG_LOSS_WEIGHT},
        ),
        "train_on_pred_boxes": box_head.TRAIN_ON_PRED_BOXES,
    }
