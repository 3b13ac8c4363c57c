"""The heads with this project's box pooler are Detectron2's own, with the same weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.structures import Boxes

from fsn_d2.export import compare_export, export_torchscript

from .small_heads import (
    ONE_MAP,
    PYRAMID,
    build,
    check_it_trains,
    detections_of,
    head_cfg,
    losses_of,
    make_features,
)

TYPES = pytest.mark.parametrize("pooler_type", ["ROIPool", "ROIAlignV2"])


@TYPES
@pytest.mark.parametrize("levels", [ONE_MAP, PYRAMID], ids=["one map", "pyramid"])
def test_they_equal_standard_roi_heads(pooler_type: str, levels: dict, boxes: list[Boxes]) -> None:
    changes = {"ROI_BOX_HEAD__POOLER_TYPE": pooler_type, "MASK_ON": True}
    theirs = build(head_cfg("StandardROIHeads", levels, **changes), levels)
    ours = build(head_cfg("FastPoolingROIHeads", levels, **changes), levels)
    ours.load_state_dict(theirs.state_dict())
    features = make_features(levels)
    expected, got = losses_of(theirs, features, boxes), losses_of(ours, features, boxes)
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(got[key], value)
    sum(expected.values()).backward()
    sum(got.values()).backward()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-5, rtol=1e-4)
    pairs = zip(
        detections_of(ours, features, boxes), detections_of(theirs, features, boxes), strict=True
    )
    for found, wanted in pairs:
        assert len(found) == len(wanted) > 0
        torch.testing.assert_close(found.scores, wanted.scores)
        torch.testing.assert_close(found.pred_boxes.tensor, wanted.pred_boxes.tensor)


@TYPES
def test_it_trains(pooler_type: str, boxes: list[Boxes]) -> None:
    cfg = head_cfg("FastPoolingROIHeads", ROI_BOX_HEAD__POOLER_TYPE=pooler_type)
    check_it_trains(build(cfg), make_features(), boxes)


@pytest.mark.parametrize("config", ["faster_rcnn_R50_roipool", "faster_rcnn_R50_fast_roipool"])
def test_the_exported_model_detects_what_the_eager_one_does(
    config: str, small_cfg: Callable, detector: Callable, tmp_path: Path
) -> None:
    cfg = small_cfg(f"{config}.yaml", MODEL__ROI_HEADS__SCORE_THRESH_TEST=0.0)
    model = detector(cfg)
    rng = torch.Generator().manual_seed(0)
    images = [torch.rand(3, *size, generator=rng) * 255 for size in [(64, 80), (50, 131)]]
    exported = export_torchscript(cfg, model, images[0], tmp_path / "model.ts")
    difference = compare_export(model, exported, images)
    assert difference.detections >= 10 * len(images)
    assert difference.within(), difference


def test_another_pooler_type_is_refused() -> None:
    with pytest.raises(ValueError, match=r"MODEL\.ROI_BOX_HEAD\.POOLER_TYPE"):
        build(head_cfg("FastPoolingROIHeads", ROI_BOX_HEAD__POOLER_TYPE="ROIAlign"))
