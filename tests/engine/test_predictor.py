"""The predictor for single images agrees with Detectron2's."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model

from fsn_d2.engine import Predictor
from fsn_d2.engine.memory import limit_convolution_caches


def test_it_detects_what_detectron2s_does(
    small_cfg: Callable, detector: Callable, tmp_path: Path
) -> None:
    cfg = small_cfg(MODEL__ROI_HEADS__SCORE_THRESH_TEST=0.0, DATASETS__TEST=())
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    torch.save({"model": detector(cfg).state_dict()}, cfg.MODEL.WEIGHTS)
    cfg.freeze()
    image = np.random.default_rng(0).integers(0, 255, (70, 90, 3), dtype=np.uint8)
    ours, theirs = (kind(cfg)(image)["instances"] for kind in (Predictor, DefaultPredictor))
    assert len(ours) == len(theirs) > 0
    assert torch.equal(ours.pred_boxes.tensor, theirs.pred_boxes.tensor)
    assert torch.equal(ours.scores, theirs.scores)
    assert cfg.MODEL.WEIGHTS and cfg.is_frozen()


def test_missing_weights_are_named(small_cfg: Callable) -> None:
    with pytest.raises(FileNotFoundError, match=r"MODEL\.WEIGHTS.*absent\.pth"):
        Predictor(small_cfg(MODEL__WEIGHTS="absent.pth"))


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ("fsn_Lite0_digits.yaml", "MODEL__TIMM__PRETRAINED"),
        ("fsn_GoogLeNet.yaml", "MODEL__GOOGLENET__PRETRAINED"),
    ],
)
def test_start_weights_that_a_checkpoint_replaces_may_be_gone(
    config: str, key: str, small_cfg: Callable, tmp_path: Path
) -> None:
    cfg = small_cfg(config, DATASETS__TEST=())
    weights = tmp_path / "model.pth"
    torch.save({"model": build_model(cfg).state_dict()}, weights)
    gone = {"MODEL__WEIGHTS": weights, key: tmp_path / "gone.pth", "DATASETS__TEST": ()}
    image = np.zeros((64, 64, 3), dtype=np.uint8)
    assert "instances" in Predictor(small_cfg(config, **gone))(image)


def test_few_compiled_convolutions_are_kept_unless_the_environment_says_how_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LRU_CACHE_CAPACITY", "7")
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "1024")  # is put back after the test
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY")
    limit_convolution_caches()
    assert os.environ["LRU_CACHE_CAPACITY"] == "7"
    assert int(os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"]) < 1024
