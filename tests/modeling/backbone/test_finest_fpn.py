"""The finest map of a pyramid equals the pyramid's own, and RetinaNet's levels on a timm model."""

from __future__ import annotations

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_backbone
from torch import Tensor

from fsn_d2 import add_fsn_config

TIMM = {"MODEL.TIMM.NAME": "resnet18", "MODEL.TIMM.NORM": "BN", "MODEL.BACKBONE.FREEZE_AT": 0}


def cfg_of(name: str, in_features: list[str], **changes: object) -> CfgNode:
    cfg = get_cfg()
    add_fsn_config(cfg)
    values = {
        "MODEL.BACKBONE.NAME": name,
        "MODEL.FPN.IN_FEATURES": in_features,
        "MODEL.FPN.OUT_CHANNELS": 8,
        "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
        "MODEL.RESNETS.DEPTH": 18,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
        **TIMM,
        **changes,
    }
    cfg.merge_from_list([item for pair in values.items() for item in pair])
    return cfg


def image() -> Tensor:
    return torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["resnet", "timm"])
@pytest.mark.parametrize(
    "in_features", [["res2", "res3", "res4", "res5"], ["res3", "res4", "res5"]]
)
def test_it_equals_the_finest_map_of_the_whole_pyramid(kind: str, in_features: list[str]) -> None:
    whole = build_backbone(cfg_of(f"build_{kind}_fpn_backbone", in_features)).eval()
    finest = build_backbone(cfg_of(f"build_{kind}_finest_fpn_backbone", in_features)).eval()
    report = finest.pyramid.load_state_dict(whole.state_dict(), strict=False)
    assert not report.missing_keys
    assert {key.split(".")[0] for key in report.unexpected_keys} == {
        f"fpn_output{name[-1]}" for name in in_features[1:]
    }
    name = f"p{in_features[0][-1]}"
    shape = finest.output_shape()
    assert {key: (s.stride, s.channels) for key, s in shape.items()} == {
        name: (2 ** int(name[1]), 8)
    }
    assert finest.size_divisibility == whole.size_divisibility
    maps = finest(image())
    assert list(maps) == [name]
    torch.testing.assert_close(maps[name], whole(image())[name])


def test_every_parameter_of_it_has_a_gradient() -> None:
    names = ["res2", "res3", "res4", "res5"]
    backbone = build_backbone(cfg_of("build_timm_finest_fpn_backbone", names))
    backbone(image())["p2"].sum().backward()
    assert not [n for n, p in backbone.named_parameters() if p.requires_grad and p.grad is None]


def test_retinanets_pyramid_over_a_timm_model() -> None:
    backbone = build_backbone(
        cfg_of("build_timm_retinanet_fpn_backbone", ["res3", "res4", "res5"])
    ).eval()
    assert {key: s.stride for key, s in backbone.output_shape().items()} == {
        f"p{level}": 2**level for level in range(3, 8)
    }
    sizes = {name: tuple(level.shape[1:]) for name, level in backbone(image()).items()}
    assert sizes == {
        "p3": (8, 8, 12),
        "p4": (8, 4, 6),
        "p5": (8, 2, 3),
        "p6": (8, 1, 2),
        "p7": (8, 1, 1),
    }
    res5 = backbone.bottom_up(image())["res5"]
    assert torch.equal(backbone.top_block(res5)[0], backbone(image())["p6"])
