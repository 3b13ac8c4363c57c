"""What a stage costs is what a count by hand says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

ROOT = Path(__file__).parents[2]
SAMPLE = {"image": torch.zeros(3, 64, 96, dtype=torch.uint8)}


@pytest.fixture
def cost(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from comparison import cost

    return cost


def cells(*strides: int) -> int:
    """Of an image of 64 x 96 pixels."""
    return sum((64 // stride) * (96 // stride) for stride in strides)


@pytest.mark.parametrize("merge", ["sum", "concat"])
@pytest.mark.parametrize("banks", [0, 1, 2])
def test_fsn_by_hand(
    banks: int, merge: str, cost: SimpleNamespace, small_cfg: Callable[..., CfgNode]
) -> None:
    without = {"MODEL__FSN__RATIOS": [], "MODEL__FSN__SUB_REGION": "none"}
    without = dict(list(without.items())[: 2 - banks])
    cfg = small_cfg(MODEL__FSN__CHANNELS=5, MODEL__FSN__MERGE=merge, **without)
    model = build_model(cfg)
    found = cost.stage_cost(model, SAMPLE)
    pyramid, hidden = cfg.MODEL.FPN.OUT_CHANNELS, cfg.MODEL.ROI_BOX_HEAD.FC_DIM
    outputs = 5 * cfg.MODEL.ROI_HEADS.NUM_CLASSES + 1
    merged = 5 * (1 + banks) if merge == "concat" else 0  # channels that its convolution reads
    per_bin = 5 * 5 * banks + merged * 5
    per_roi = 49 * per_bin + 49 * 5 * hidden + hidden * outputs
    assert found.gmac * 1e9 == cells(4, 8, 16, 32) * pyramid * 5 + 300 * per_roi
    maps = {0: 0, 1: 9, 2: 9 + 3}[banks]
    weights = (pyramid + 1) * 5 + maps * (5 * 5 + 5) + (merged * 5 + 5 if merged else 0)
    weights += (49 * 5 + 1) * hidden + (hidden + 1) * outputs
    assert found.parameters == weights


@pytest.mark.parametrize("mode", ["anchors", "anchor_free", "joint"])
def test_fsaf_by_hand(mode: str, cost: SimpleNamespace, small_cfg: Callable[..., CfgNode]) -> None:
    cfg = small_cfg("fsaf_R50_joint.yaml", MODEL__FSAF__MODE=mode)
    found = cost.stage_cost(build_model(cfg), SAMPLE)
    pyramid, classes = cfg.MODEL.FPN.OUT_CHANNELS, cfg.MODEL.RETINANET.NUM_CLASSES
    anchors = {"anchors": 9, "anchor_free": 1, "joint": 10}[mode]  # the branch has one per cell
    towers = 2 * cfg.MODEL.RETINANET.NUM_CONVS
    outputs = anchors * (classes + 4)
    levels = cells(8, 16, 32) + 2 + 1  # 2 x 3 cells of stride 32, halved twice and rounded up
    assert found.gmac * 1e9 == levels * 9 * pyramid * (towers * pyramid + outputs)
    biases = towers * pyramid + outputs
    assert found.parameters == 9 * pyramid * (towers * pyramid + outputs) + biases


def test_a_model_is_left_as_it_was(
    cost: SimpleNamespace, small_cfg: Callable[..., CfgNode]
) -> None:
    model = build_model(small_cfg()).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    cost.stage_cost(model, SAMPLE)
    assert model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
