"""The pyramid reads MODEL.FPN, as Detectron2's own builder does."""

from __future__ import annotations

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone, build_resnet_backbone

from fsn_d2.modeling.backbone import build_fpn


def config() -> CfgNode:
    cfg = get_cfg()
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    cfg.MODEL.FPN.NORM = "GN"
    cfg.MODEL.FPN.FUSE_TYPE = "avg"
    return cfg


def test_pyramid_equals_detectron2s() -> None:
    cfg = config()
    ours = build_fpn(cfg, build_resnet_backbone(cfg, ShapeSpec(channels=3))).eval()
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    theirs = build_backbone(cfg).eval()
    theirs.load_state_dict(ours.state_dict())
    assert ours.output_shape() == theirs.output_shape()
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(ours(image), theirs(image))


@pytest.mark.parametrize("in_features", [[], ["res2", "res6"], ["res2", "res3", "res4"]])
def test_unusable_in_features_are_refused(in_features: list[str]) -> None:
    cfg = config()
    cfg.MODEL.FPN.IN_FEATURES = in_features
    with pytest.raises(ValueError, match=r"MODEL\.FPN\.IN_FEATURES.*res2"):
        build_fpn(cfg, build_resnet_backbone(cfg, ShapeSpec(channels=3)))
