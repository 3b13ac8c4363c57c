"""FSAF, alone and joint with anchors, and RetinaNet as LazyConfig trees."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec

from ..modeling.fsaf import AnchorFreeBranch
from ..modeling.meta_arch import FSAF
from ..modeling.meta_arch.tower_head import TowerHead
from .backbones import lazy_pyramid
from .shared import STRIDES, lazy_anchors, lazy_box_transform, lazy_matcher, num_anchors


def lazy_fsaf(cfg: CfgNode) -> Any:
    """The dense detector as the config describes it. With anchors alone FSAF is RetinaNet."""
    retinanet = cfg.MODEL.RETINANET
    mode = "anchors" if cfg.MODEL.META_ARCHITECTURE == "RetinaNet" else cfg.MODEL.FSAF.MODE
    return L(FSAF)(
        backbone=lazy_pyramid(cfg),
        head=_towers(cfg),
        branch=_branch(cfg) if mode != "anchors" else None,
        anchors=mode != "anchor_free",
        anchor_generator=lazy_anchors(cfg, retinanet.IN_FEATURES),
        box2box_transform=lazy_box_transform(retinanet.BBOX_REG_WEIGHTS),
        anchor_matcher=lazy_matcher(
            retinanet.IOU_THRESHOLDS, retinanet.IOU_LABELS, low_quality=True
        ),
        num_classes=retinanet.NUM_CLASSES,
        head_in_features=retinanet.IN_FEATURES,
        focal_loss_alpha=retinanet.FOCAL_LOSS_ALPHA,
        focal_loss_gamma=retinanet.FOCAL_LOSS_GAMMA,
        smooth_l1_beta=retinanet.SMOOTH_L1_LOSS_BETA,
        box_reg_loss_type=retinanet.BBOX_REG_LOSS_TYPE,
        test_score_thresh=retinanet.SCORE_THRESH_TEST,
        test_topk_candidates=retinanet.TOPK_CANDIDATES_TEST,
        test_nms_thresh=retinanet.NMS_THRESH_TEST,
        max_detections_per_image=cfg.TEST.DETECTIONS_PER_IMAGE,
        pixel_mean=cfg.MODEL.PIXEL_MEAN,
        pixel_std=cfg.MODEL.PIXEL_STD,
        vis_period=cfg.VIS_PERIOD,
        input_format=cfg.INPUT.FORMAT,
    )


def _towers(cfg: CfgNode) -> Any:
    retinanet, width = cfg.MODEL.RETINANET, cfg.MODEL.FPN.OUT_CHANNELS
    shape = L(ShapeSpec)(channels=width)
    return L(TowerHead)(
        input_shape=[shape for _ in retinanet.IN_FEATURES],
        num_classes="${..num_classes}",
        num_anchors=num_anchors(cfg),
        conv_dims=[width] * retinanet.NUM_CONVS,
        norm=retinanet.NORM,
        prior_prob=retinanet.PRIOR_PROB,
        anchors="${..anchors}",
    )


def _branch(cfg: CfgNode) -> Any:
    levels = cfg.MODEL.RETINANET.IN_FEATURES
    shapes = [ShapeSpec(channels=cfg.MODEL.FPN.OUT_CHANNELS, stride=STRIDES[p]) for p in levels]
    parts = AnchorFreeBranch.from_config(cfg, shapes)
    return L(AnchorFreeBranch)(**{**parts, "num_classes": "${..num_classes}"})
