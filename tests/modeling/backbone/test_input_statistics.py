"""Pixel statistics and channel order reach the config, unless the user set them."""

from __future__ import annotations

import logging

import pytest
from detectron2.config import CfgNode, get_cfg

from fsn_d2.modeling.backbone import (
    add_backbone_config,
    adopt_input_statistics,
)

DETECTRON2 = ([103.530, 116.280, 123.675], [1.0, 1.0, 1.0], "BGR")


def config(backbone: str, **timm: str) -> CfgNode:
    cfg = get_cfg()
    add_backbone_config(cfg)
    cfg.MODEL.BACKBONE.NAME = backbone
    for key, value in timm.items():
        cfg.MODEL.TIMM[key] = value
    return cfg


def input_of(cfg: CfgNode) -> tuple:
    return cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD, cfg.INPUT.FORMAT


@pytest.mark.parametrize("backbone", ["build_timm_backbone", "build_timm_fpn_backbone"])
@pytest.mark.parametrize(
    ("timm", "mean", "std"),
    [
        # ImageNet's usual statistics, 0.485 * 255 and so on
        ({"NAME": "resnet18"}, [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]),
        ({"NAME": "tf_efficientnet_lite0"}, [127.5] * 3, [127.5] * 3),
        (
            {"NAME": "tf_efficientnet_lite0", "PRETRAINED": "embedded"},
            [127.0] * 3,
            [128.0] * 3,
        ),
    ],
)
def test_timms_statistics_are_adopted_as_rgb(backbone, timm, mean, std, caplog) -> None:
    pytest.importorskip("timm")
    cfg = config(backbone, **timm)
    with caplog.at_level(logging.INFO, logger="fsn_d2"):
        adopt_input_statistics(cfg)
    assert list(cfg.MODEL.PIXEL_MEAN) == pytest.approx(mean)
    assert list(cfg.MODEL.PIXEL_STD) == pytest.approx(std)
    assert cfg.INPUT.FORMAT == "RGB"
    assert [record.levelname for record in caplog.records] == ["INFO"] * 3


RESNET18 = {
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "INPUT.FORMAT": "RGB",
}


@pytest.mark.parametrize(
    ("key", "value", "fits"),
    [
        ("MODEL.PIXEL_MEAN", [1.0, 2.0, 3.0], False),
        ("MODEL.PIXEL_MEAN", [124.0, 116.0, 104.0], True),
        ("MODEL.PIXEL_STD", [1.0, 57.0, 58.0], False),
        ("MODEL.PIXEL_STD", [1.0], False),
        ("INPUT.FORMAT", "RGB", True),
        ("INPUT.FORMAT", "L", False),
    ],
)
@pytest.mark.parametrize("pretrained", ["", "timm"])
def test_what_the_user_set_stays_and_the_rest_is_adopted(
    key: str, value: object, fits: bool, pretrained: str, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("timm")
    cfg = config("build_timm_fpn_backbone", NAME="resnet18", PRETRAINED=pretrained)
    cfg.MODEL.WEIGHTS = ""
    section, name = key.split(".")
    cfg[section][name] = value
    with caplog.at_level(logging.WARNING, logger="fsn_d2"):
        adopt_input_statistics(cfg)
    found = dict(zip(RESNET18, input_of(cfg), strict=True))
    assert found.pop(key) == value
    for other, adopted in found.items():
        wanted = RESNET18[other]
        assert adopted == wanted if isinstance(wanted, str) else adopted == pytest.approx(wanted)
    warned = [record.getMessage() for record in caplog.records]
    if pretrained and not fits:
        (message,) = warned
        assert message.startswith(f"{key} is {value}, but") and str(RESNET18[key][0]) in message
    else:
        assert not warned


def test_weights_of_a_checkpoint_are_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    cfg = config("build_googlenet_fpn_backbone")
    cfg.MODEL.GOOGLENET.PRETRAINED = "torchvision"  # not read beside the checkpoint
    cfg.MODEL.PIXEL_STD = [1.0, 1.0, 2.0]
    for weights, count in (("model_final.pth", 0), ("", 1)):
        cfg.MODEL.WEIGHTS = weights
        adopt_input_statistics(cfg)
        assert len([r for r in caplog.records if r.levelname == "WARNING"]) == count


def test_other_backbones_are_left() -> None:
    cfg = config("build_resnet_fpn_backbone")
    adopt_input_statistics(cfg)
    assert input_of(cfg) == DETECTRON2


def test_googlenet_takes_rgb_on_minus_one_to_one() -> None:
    cfg = config("build_googlenet_fpn_backbone")
    adopt_input_statistics(cfg)
    assert input_of(cfg) == ([127.5] * 3, [127.5] * 3, "RGB")


def test_unknown_model_is_refused() -> None:
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match="no model 'resnet81'"):
        adopt_input_statistics(config("build_timm_backbone", NAME="resnet81"))
