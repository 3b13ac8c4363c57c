"""FSAF exported by tracing gives what the eager model gives, in every mode."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from fsn_d2.export import compare_export, export_torchscript
from fsn_d2.modeling.meta_arch.fsaf import MODES

from .samples import OTHERS, TRACED, check_equal, image_of


@pytest.fixture
def build(small_cfg: Callable) -> Callable:
    """(config, model) whose scores and boxes differ clearly from cell to cell."""

    def model(config: str, **changes: object) -> tuple:
        cfg = small_cfg(config, MODEL__RETINANET__NUM_CONVS=1, **changes)
        torch.manual_seed(0)
        made = build_model(cfg).eval()
        for name, parameter in made.named_parameters():
            if name.endswith(("cls_score.weight", "bbox_pred.weight")):
                nn.init.normal_(parameter, std=0.2)
        return cfg, made

    return model


# More cells than TOPK_CANDIDATES_TEST on the fine levels of the traced image, fewer on the others.
@pytest.mark.parametrize(
    ("config", "changes"),
    [
        *[("fsaf_R50.yaml", {"MODEL__FSAF__MODE": mode}) for mode in MODES],
        ("fsaf_R50_stride4.yaml", {}),
    ],
)
def test_equals_the_eager_model_for_images_of_other_sizes(
    config: str, changes: dict, build: Callable, tmp_path: Path
) -> None:
    limits = {"SCORE_THRESH_TEST": 0.0, "TOPK_CANDIDATES_TEST": 50}
    limits = {f"MODEL__RETINANET__{key}": value for key, value in limits.items()}
    cfg, model = build(config, **limits, **changes)
    check_equal(export_torchscript, cfg, model, tmp_path / "model.ts")


def test_boxes_end_at_the_border(build: Callable, tmp_path: Path) -> None:
    cfg, model = build("fsaf_R50.yaml", MODEL__RETINANET__SCORE_THRESH_TEST=0.0)
    exported = export_torchscript(cfg, model, image_of(*TRACED), tmp_path / "model.ts")
    height, width = OTHERS[3]
    image = image_of(height, width)
    found = model.inference([{"image": image}], do_postprocess=False)[0]
    assert (found.pred_boxes.tensor < 0).any()
    boxes = exported(image)[0]
    assert len(boxes) == len(found) and (boxes >= 0).all()
    assert (boxes <= torch.tensor([width, height, width, height])).all()


def test_traced_on_a_small_image_it_still_limits_its_candidates(
    build: Callable, tmp_path: Path
) -> None:
    limits = {"MODEL__RETINANET__SCORE_THRESH_TEST": 0.0, "TEST__DETECTIONS_PER_IMAGE": 10_000}
    cfg, model = build("fsaf_R50_joint.yaml", **limits, MODEL__RETINANET__TOPK_CANDIDATES_TEST=300)
    model.test_nms_thresh = 2.0  # the limit per level is the only one
    exported = export_torchscript(cfg, model, image_of(32, 32), tmp_path / "model.ts")
    large = image_of(128, 160)
    assert len(model.inference([{"image": large}], do_postprocess=False)[0]) < 10 * 300
    difference = compare_export(model, exported, [large])
    assert difference.detections > 5 * 300
    assert difference.within(), difference


@pytest.mark.parametrize("mode", MODES)
def test_an_image_without_detections(mode: str, build: Callable, tmp_path: Path) -> None:
    none = {"MODEL__RETINANET__SCORE_THRESH_TEST": 1.0}
    cfg, model = build("fsaf_R50.yaml", MODEL__FSAF__MODE=mode, **none)
    exported = export_torchscript(cfg, model, image_of(*TRACED), tmp_path / "model.ts")
    boxes, classes, scores, image_size = exported(image_of(*OTHERS[3]))
    assert boxes.shape == (0, 4)
    assert len(classes) == len(scores) == 0
    assert tuple(int(side) for side in image_size) == OTHERS[3]
