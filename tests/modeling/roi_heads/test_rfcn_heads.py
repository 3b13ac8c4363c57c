"""R-FCN's heads: maps, vote and losses; nothing learnt behind the pooler."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model, build_roi_heads
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.modeling.test_time_augmentation import GeneralizedRCNNWithTTA
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from torchvision.ops import ps_roi_align

from fsn_d2.export import compare_export, export_torchscript
from fsn_d2.modeling import class_major
from fsn_d2.modeling.hard_examples import loss_per_roi

from .small_heads import (
    CLASSES,
    NOTHING,
    ONE_MAP,
    PYRAMID,
    SIZE,
    build,
    check_detections,
    check_it_trains,
    detections_of,
    head_cfg,
    losses_of,
    make_features,
    make_proposals,
)

NAME = "RFCNROIHeads"
BOTH = pytest.mark.parametrize("levels", [ONE_MAP, PYRAMID], ids=["one map", "pyramid"])
POOLINGS = pytest.mark.parametrize("pooling", ["avg", "max", "align"])


@torch.no_grad()
def predictions_of(heads: nn.Module, features: dict, boxes: list[Boxes]) -> tuple[Tensor, Tensor]:
    maps = [heads.box_maps(features[name]) for name in heads.box_in_features]
    return heads.box_predictor(heads.box_head(heads.box_pooler(maps, boxes)))


# ---------------------------------------------------------------------------- architecture


def test_all_parameters_lie_in_convolutions_in_front_of_the_pooler() -> None:
    heads = build(head_cfg(NAME))
    assert {name.split(".")[0] for name, _ in heads.named_parameters()} == {"box_maps"}
    learnt = [m for m in heads.modules() if list(m.parameters(recurse=False))]
    assert len(learnt) == 3
    assert all(isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1) for m in learnt)
    for behind in (heads.box_pooler, heads.box_head, heads.box_predictor):
        assert not list(behind.parameters())


@pytest.mark.parametrize("k", [3, 7])
def test_the_numbers_of_maps_are_the_papers(k: int) -> None:
    heads = build(head_cfg(NAME, RFCN__K=k, RFCN__REDUCTION=1024))
    assert heads.box_maps.reduce.out_channels == 1024
    assert heads.box_maps.cls_score.out_channels == k * k * (CLASSES + 1)
    assert heads.box_maps.bbox_pred.out_channels == 4 * k * k


def test_without_reduction_the_maps_come_from_the_feature() -> None:
    heads = build(head_cfg(NAME, RFCN__REDUCTION=0))
    assert len(list(heads.parameters())) == 4


@torch.no_grad()
def test_predictions_against_torchvision(boxes: list[Boxes]) -> None:
    """The maps in torchvision's order, pooled by it, and averaged over the bins by hand."""
    cfg = head_cfg(NAME, ONE_MAP, RFCN__POOLING="align", ROI_BOX_HEAD__POOLER_SAMPLING_RATIO=2)
    heads, features = build(cfg, ONE_MAP), make_features(ONE_MAP)
    rois = [b.tensor for b in boxes]
    found = predictions_of(heads, features, boxes)
    for maps, voted, width in zip(
        heads.box_maps(features["res5"]), found, (CLASSES + 1, 4), strict=True
    ):
        pooled = ps_roi_align(class_major(maps, 49, dim=1), rois, 7, 1 / 16, 2)
        assert voted.shape == (40, width)
        torch.testing.assert_close(voted, pooled.flatten(2).sum(2) / 49, atol=1e-6, rtol=1e-4)


@BOTH
@POOLINGS
def test_probabilities_and_boxes(levels: dict, pooling: str, boxes: list[Boxes]) -> None:
    heads = build(head_cfg(NAME, levels, RFCN__POOLING=pooling), levels)
    predictions = predictions_of(heads, make_features(levels), boxes)
    proposals = make_proposals(boxes)
    for probabilities in heads.box_predictor.predict_probs(predictions, proposals):
        assert probabilities.shape == (20, CLASSES + 1)
        torch.testing.assert_close(probabilities.sum(1), torch.ones(20))
    for predicted in heads.box_predictor.predict_boxes(predictions, proposals):
        assert predicted.shape == (20, 4)


def test_boxes_per_class_where_detectron2s_key_asks_for_them(boxes: list[Boxes]) -> None:
    heads = build(head_cfg(NAME, ROI_BOX_HEAD__CLS_AGNOSTIC_BBOX_REG=False))
    assert predictions_of(heads, make_features(), boxes)[1].shape == (40, 4 * CLASSES)
    assert set(losses_of(heads, make_features(), boxes)) == {"loss_cls", "loss_box_reg"}


# ---------------------------------------------------------------------------- training


@BOTH
@POOLINGS
@pytest.mark.parametrize("ohem", [False, True])
def test_it_trains(levels: dict, pooling: str, ohem: bool, boxes: list[Boxes]) -> None:
    cfg = head_cfg(NAME, levels, RFCN__POOLING=pooling, RFCN__OHEM=ohem, RFCN__OHEM_ROIS=5)
    check_it_trains(build(cfg, levels), make_features(levels), boxes)


def test_with_normalisation_and_masks(boxes: list[Boxes]) -> None:
    cfg = head_cfg(NAME, RFCN__REDUCTION=32, RFCN__NORM="GN", MASK_ON=True)
    heads = build(cfg)
    check_it_trains(heads, make_features(), boxes)
    found = detections_of(heads, make_features(), boxes)
    check_detections(found, cfg.TEST.DETECTIONS_PER_IMAGE)
    given = [
        Instances(SIZE, pred_boxes=image.pred_boxes, pred_classes=image.pred_classes)
        for image in found
    ]
    with torch.no_grad():
        again = heads.forward_with_given_boxes(make_features(), given)
    for image, repeated in zip(found, again, strict=True):
        torch.testing.assert_close(repeated.pred_masks, image.pred_masks)


def test_hard_examples_lower_to_all_where_fewer_were_sampled(boxes: list[Boxes]) -> None:
    plain = build(head_cfg(NAME))
    mining = build(head_cfg(NAME, RFCN__OHEM=True, RFCN__OHEM_ROIS=128))
    features = make_features()
    expected, got = losses_of(plain, features, boxes), losses_of(mining, features, boxes)
    for key, value in expected.items():
        torch.testing.assert_close(got[key], value)


def test_the_loss_is_that_of_the_hardest_of_each_image(boxes: list[Boxes]) -> None:
    """By hand: the mean over the kept RoIs of the losses that are sorted here."""
    heads = build(head_cfg(NAME, RFCN__OHEM=True, RFCN__OHEM_ROIS=4))
    nn.init.normal_(heads.box_maps.cls_score.weight)
    features, seen = make_features(), {}
    losses_method = heads.box_predictor.losses

    def spy(predictions, proposals):
        seen["predictions"], seen["proposals"] = predictions, proposals
        return losses_method(predictions, proposals)

    heads.box_predictor.losses = spy
    got = losses_of(heads, features, boxes)
    sizes = [len(p) for p in seen["proposals"]]
    assert min(sizes) > 4
    parts = zip(*(x.split(sizes) for x in seen["predictions"]), seen["proposals"], strict=True)
    kept = []
    for scores, deltas, proposals in parts:
        each = loss_per_roi(heads.box_predictor, scores, deltas, proposals)
        kept += sorted(each.tolist(), reverse=True)[:4]
    assert float(got["loss_cls"] + got["loss_box_reg"]) == pytest.approx(sum(kept) / 8, rel=1e-4)


# ---------------------------------------------------------------------------- inference


@BOTH
def test_detections(levels: dict, boxes: list[Boxes]) -> None:
    cfg = head_cfg(NAME, levels)
    heads, features = build(cfg, levels), make_features(levels)
    check_detections(detections_of(heads, features, boxes), cfg.TEST.DETECTIONS_PER_IMAGE)
    assert [len(found) for found in detections_of(heads, features, NOTHING)] == [0, 0]


def rfcn_detector(cfg) -> nn.Module:
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    nn.init.normal_(model.roi_heads.box_maps.cls_score.weight, std=0.5)
    nn.init.normal_(model.roi_heads.box_maps.bbox_pred.weight, std=0.1)
    nn.init.normal_(model.proposal_generator.rpn_head.objectness_logits.weight, std=0.2)
    return model


def pictures() -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    coarse = torch.rand(4, 3, 6, 8, generator=rng) * 255
    sizes = [(64, 80), (80, 64), (50, 131), (33, 40)]
    return [
        nn.functional.interpolate(x[None], size, mode="bilinear")[0]
        for x, size in zip(coarse, sizes, strict=True)
    ]


SMALL_R50 = {"MODEL__RESNETS__DEPTH": 50, "MODEL__RESNETS__WIDTH_PER_GROUP": 16}


@pytest.mark.parametrize("pooling", ["avg", "max", "align"])
@pytest.mark.parametrize(
    ("config", "changes"), [("rfcn_R50.yaml", SMALL_R50), ("rfcn_R50_FPN.yaml", {})]
)
def test_the_exported_model_detects_what_the_eager_one_does(
    config: str, changes: dict, pooling: str, small_cfg: Callable, tmp_path: Path
) -> None:
    score = {"MODEL__ROI_HEADS__SCORE_THRESH_TEST": 0.0, "MODEL__RFCN__POOLING": pooling}
    cfg = small_cfg(config, **score, **changes)
    model, images = rfcn_detector(cfg), pictures()
    exported = export_torchscript(cfg, model, images[0], tmp_path / "model.ts")
    difference = compare_export(model, exported, images)
    assert difference.detections >= 10 * len(images)
    assert difference.within(), difference


@torch.no_grad()
def test_test_time_augmentation(small_cfg: Callable, random_image: Tensor) -> None:
    cfg = small_cfg("rfcn_R50_FPN.yaml", TEST__AUG__MIN_SIZES=(64, 80), TEST__AUG__MAX_SIZE=100)
    model = GeneralizedRCNNWithTTA(cfg, rfcn_detector(cfg))
    height, width = random_image.shape[1:]
    found = model([{"image": random_image, "height": height, "width": width}])[0]["instances"]
    assert len(found) > 0


# ---------------------------------------------------------------------------- config


@pytest.mark.parametrize(
    ("key", "value", "changes"),
    [
        ("K", 0, {}),
        ("POOLING", "sum", {}),
        ("REDUCTION", -1, {}),
        ("OHEM_ROIS", 0, {"RFCN__OHEM": True}),
        ("OHEM", True, {"ROI_BOX_HEAD__BBOX_REG_LOSS_TYPE": "giou"}),
        ("NORM", "GN", {"RFCN__REDUCTION": 0}),
    ],
)
def test_a_wrong_value_is_refused_with_its_key(key: str, value: object, changes: dict) -> None:
    with pytest.raises(ValueError, match=rf"MODEL\.RFCN\.{key}\b"):
        build(head_cfg(NAME, **{f"RFCN__{key}": value}, **changes))


@pytest.mark.parametrize(("sampled", "warns"), [(128, True), (129, False)])
def test_mining_that_chooses_nothing_is_warned_of(
    sampled: int, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    build(head_cfg(NAME, RFCN__OHEM=True, ROI_HEADS__BATCH_SIZE_PER_IMAGE=sampled))
    assert ("OHEM chooses nothing" in caplog.text) == warns


def test_hard_examples_are_not_ranked_by_another_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FastRCNNOutputLayers, "use_sigmoid_ce", True, raising=False)
    build(head_cfg(NAME))
    with pytest.raises(ValueError, match=r"MODEL\.ROI_BOX_HEAD\.USE_SIGMOID_CE"):
        build(head_cfg(NAME, RFCN__OHEM=True))


def test_levels_of_different_widths_are_refused() -> None:
    shapes = {n: ShapeSpec(channels=8 + s, stride=s) for n, s in PYRAMID.items()}
    with pytest.raises(ValueError, match=r"MODEL\.ROI_HEADS\.IN_FEATURES"):
        build_roi_heads(head_cfg(NAME), shapes)
