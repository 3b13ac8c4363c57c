"""Light-Head R-CNN's heads: thin maps, position-sensitive pooling, one fully connected layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.structures import Boxes
from torch import Tensor, nn
from torchvision.ops import ps_roi_align

from fsn_d2.export import compare_export, export_torchscript
from fsn_d2.modeling import class_major

from .small_heads import (
    CLASSES,
    NOTHING,
    ONE_MAP,
    PYRAMID,
    build,
    check_detections,
    check_it_trains,
    detections_of,
    head_cfg,
    losses_of,
    make_features,
)

NAME = "LightHeadROIHeads"
BOTH = pytest.mark.parametrize("levels", [ONE_MAP, PYRAMID], ids=["one map", "pyramid"])


def test_the_sizes_are_the_papers() -> None:
    light = {"LIGHT_HEAD__MIDDLE": 256, "LIGHT_HEAD__KERNEL": 15, "ROI_BOX_HEAD__FC_DIM": 2048}
    heads = build(head_cfg(NAME, **light))
    convolutions = [m for m in heads.box_maps.modules() if isinstance(m, nn.Conv2d)]
    assert [tuple(c.kernel_size) for c in convolutions] == [(15, 1), (1, 15), (1, 15), (15, 1)]
    assert {c.out_channels for c in convolutions} == {256, 490}
    linear = [m for m in heads.modules() if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linear] == [
        (490, 2048),
        (2048, CLASSES + 1),
        (2048, 4),
    ]
    assert not list(heads.box_pooler.parameters())


@torch.no_grad()
def test_the_features_of_an_roi_against_torchvision(boxes: list[Boxes]) -> None:
    cfg = head_cfg(NAME, ONE_MAP, ROI_BOX_HEAD__POOLER_SAMPLING_RATIO=2)
    heads, feature = build(cfg, ONE_MAP), make_features(ONE_MAP)["res5"]
    maps = heads.box_maps(feature)
    assert (maps >= 0).all()
    assert maps.any()
    expected = ps_roi_align(
        class_major(maps, 49, dim=1), [b.tensor for b in boxes], 7, 1 / 16, sampling_ratio=2
    )
    got = heads.box_pooler([maps], boxes)
    assert got.shape == (40, 10, 7, 7)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-4)


@BOTH
@pytest.mark.parametrize("pooling", ["avg", "max", "align"])
def test_it_trains(levels: dict, pooling: str, boxes: list[Boxes]) -> None:
    cfg = head_cfg(NAME, levels, LIGHT_HEAD__POOLING=pooling)
    check_it_trains(build(cfg, levels), make_features(levels), boxes)


def test_masks_come_from_detectron2(boxes: list[Boxes]) -> None:
    heads = build(head_cfg(NAME, MASK_ON=True))
    assert set(losses_of(heads, make_features(), boxes)) == {
        "loss_cls",
        "loss_box_reg",
        "loss_mask",
    }
    assert detections_of(heads, make_features(), boxes)[0].has("pred_masks")


@BOTH
def test_detections(levels: dict, boxes: list[Boxes]) -> None:
    cfg = head_cfg(NAME, levels)
    heads, features = build(cfg, levels), make_features(levels)
    check_detections(detections_of(heads, features, boxes), cfg.TEST.DETECTIONS_PER_IMAGE)
    assert [len(found) for found in detections_of(heads, features, NOTHING)] == [0, 0]


@pytest.mark.parametrize("pooling", ["max", "align"])
def test_the_exported_model_detects_what_the_eager_one_does(
    pooling: str, small_cfg: Callable, detector: Callable, tmp_path: Path
) -> None:
    changes = {
        "MODEL__ROI_HEADS__SCORE_THRESH_TEST": 0.0,
        "MODEL__RESNETS__DEPTH": 50,
        "MODEL__LIGHT_HEAD__POOLING": pooling,
    }
    cfg = small_cfg("lighthead_R50.yaml", **changes)
    model = detector(cfg)
    rng = torch.Generator().manual_seed(0)
    images: list[Tensor] = [
        torch.rand(3, *size, generator=rng) * 255 for size in [(64, 80), (80, 64), (50, 131)]
    ]
    exported = export_torchscript(cfg, model, images[0], tmp_path / "model.ts")
    difference = compare_export(model, exported, images)
    assert difference.detections >= 10 * len(images)
    assert difference.within(), difference


@pytest.mark.parametrize(
    ("key", "value"), [("CHANNELS", 0), ("KERNEL", 4), ("MIDDLE", 0), ("POOLING", "sum")]
)
def test_a_wrong_value_is_refused_with_its_key(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"MODEL\.LIGHT_HEAD\.{key}\b"):
        build(head_cfg(NAME, **{f"LIGHT_HEAD__{key}": value}))
