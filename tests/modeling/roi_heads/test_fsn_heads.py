"""The heads: equal to Detectron2's own where FSN changes nothing, and complete where it does."""

from __future__ import annotations

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_roi_heads
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from fsn_d2 import add_fsn_config

from . import small_heads
from .small_heads import (
    CHANNELS,
    PYRAMID,
    SIZE,
    box_gradients,
    detections_of,
    losses_of,
    make_images,
    make_proposals,
)

C4_CHANNELS = 64
ORIGINALS = {
    "FSNROIHeads": "StandardROIHeads",
    "FSNCascadeROIHeads": "CascadeROIHeads",
    "FSNRes5ROIHeads": "Res5ROIHeads",
}
ALL_HEADS = list(ORIGINALS)


def head_cfg(name: str, **changes) -> CfgNode:
    cfg = get_cfg()
    add_fsn_config(cfg)
    c4 = "Res5" in name
    values = {
        "MODEL.DEVICE": "cpu",
        "MODEL.ROI_HEADS.NAME": name,
        "MODEL.ROI_HEADS.IN_FEATURES": ["res4"] if c4 else list(PYRAMID),
        "MODEL.ROI_HEADS.NUM_CLASSES": 3,
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
        "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
        "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
        "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": "Cascade" in name,
        "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",
        "MODEL.ROI_MASK_HEAD.NUM_CONV": 0 if c4 else 1,
        "MODEL.ROI_MASK_HEAD.CONV_DIM": 8,
        "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS": [8],
        "MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE": 0,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": C4_CHANNELS // 4,
        "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
        "MODEL.FSN.CHANNELS": 8,
        **{key.replace("__", "."): value for key, value in changes.items()},
    }
    cfg.merge_from_list([item for pair in values.items() for item in pair])
    return cfg


def build(cfg: CfgNode) -> nn.Module:
    torch.manual_seed(0)
    if "Res5" in cfg.MODEL.ROI_HEADS.NAME:
        shapes = {"res4": ShapeSpec(channels=C4_CHANNELS, stride=16)}
    else:
        shapes = {n: ShapeSpec(channels=CHANNELS, stride=s) for n, s in PYRAMID.items()}
    return build_roi_heads(cfg, shapes)


def make_features(cfg: CfgNode) -> dict[str, Tensor]:
    if "Res5" in cfg.MODEL.ROI_HEADS.NAME:
        return small_heads.make_features({"res4": 16}, C4_CHANNELS)
    return small_heads.make_features()


# ---------------------------------------------------------------------------- equal to Detectron2


def set_to_identity(conv: nn.Conv2d) -> None:
    with torch.no_grad():
        nn.init.dirac_(conv.weight)
        nn.init.zeros_(conv.bias)


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("name", ALL_HEADS)
def test_without_banks_and_with_an_identity_as_reduction_they_are_detectron2s_heads(
    name: str, mask: bool, boxes: list[Boxes]
) -> None:
    width = C4_CHANNELS if "Res5" in name else CHANNELS
    plain_cfg = head_cfg(ORIGINALS[name], MODEL__MASK_ON=mask)
    changes = {"FSN__SUB_REGION": "none", "FSN__RATIOS": [], "FSN__CHANNELS": width}
    changes["FSN__MERGE"] = "sum"
    cfg = head_cfg(name, MODEL__MASK_ON=mask, **{f"MODEL__{k}": v for k, v in changes.items()})
    heads, plain = build(cfg), build(plain_cfg)
    if "Res5" in name:
        set_to_identity(heads.banks.reduce)
        set_to_identity(heads.widen)
    else:
        set_to_identity(heads.box_banks.reduce)
    assert not heads.load_state_dict(plain.state_dict(), strict=False).unexpected_keys

    features = make_features(cfg)
    expected, got = losses_of(plain, features, boxes), losses_of(heads, features, boxes)
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(got[key], value, atol=1e-4, rtol=1e-4)
    ours, theirs = box_gradients(got, features), box_gradients(expected, features)
    assert any(gradient.any() for gradient in theirs)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-3)
    pairs = zip(
        detections_of(heads, features, boxes), detections_of(plain, features, boxes), strict=True
    )
    for found, wanted in pairs:
        assert len(found) == len(wanted) > 0
        torch.testing.assert_close(found.scores, wanted.scores, atol=1e-4, rtol=1e-4)
        if mask:
            torch.testing.assert_close(found.pred_masks, wanted.pred_masks, atol=1e-3, rtol=1e-3)


# ---------------------------------------------------------------------------- training


@pytest.mark.parametrize("reading", ["roi", "image"])
@pytest.mark.parametrize(
    ("name", "extras", "losses"),
    [
        ("FSNROIHeads", {}, {"loss_cls", "loss_box_reg"}),
        (
            "FSNROIHeads",
            {"MODEL__MASK_ON": True, "MODEL__KEYPOINT_ON": True},
            {"loss_cls", "loss_box_reg", "loss_mask", "loss_keypoint"},
        ),
        (
            "FSNROIHeads",
            {"MODEL__ROI_BOX_HEAD__TRAIN_ON_PRED_BOXES": True, "MODEL__MASK_ON": True},
            {"loss_cls", "loss_box_reg", "loss_mask"},
        ),
        (
            "FSNCascadeROIHeads",
            {"MODEL__MASK_ON": True},
            {f"{loss}_stage{i}" for loss in ("loss_cls", "loss_box_reg") for i in range(3)}
            | {"loss_mask"},
        ),
        ("FSNRes5ROIHeads", {}, {"loss_cls", "loss_box_reg"}),
        ("FSNRes5ROIHeads", {"MODEL__MASK_ON": True}, {"loss_cls", "loss_box_reg", "loss_mask"}),
    ],
)
def test_every_loss_is_finite_and_reaches_every_parameter(
    name: str, extras: dict, losses: set, reading: str, boxes: list[Boxes]
) -> None:
    cfg = head_cfg(name, MODEL__FSN__SUB_REGION=reading, **extras)
    heads, features = build(cfg), make_features(cfg)
    found = losses_of(heads, features, boxes)
    assert set(found) == losses
    assert any(gradient.any() for gradient in box_gradients(found, features))
    assert all(torch.isfinite(loss) for loss in found.values())
    sum(found.values()).backward()
    without = [n for n, p in heads.named_parameters() if p.requires_grad and p.grad is None]
    assert not without


@pytest.mark.parametrize("name", ALL_HEADS)
@pytest.mark.parametrize("mask", [False, True])
def test_images_without_objects_and_without_proposals_train(
    name: str, mask: bool, boxes: list[Boxes]
) -> None:
    cfg = head_cfg(name, MODEL__MASK_ON=mask)
    heads = build(cfg)
    nothing = [Boxes(torch.zeros(0, 4))] * 2
    for proposed in (boxes, nothing, [boxes[0], nothing[0]]):
        heads.zero_grad(set_to_none=True)
        total = sum(losses_of(heads, make_features(cfg), proposed, objects=nothing).values())
        assert torch.isfinite(total)
        total.backward()
        assert not [n for n, p in heads.named_parameters() if p.requires_grad and p.grad is None]


# ---------------------------------------------------------------------------- inference


@pytest.mark.parametrize("name", ALL_HEADS)
@pytest.mark.parametrize("reading", ["roi", "image"])
def test_inference_gives_boxes_inside_the_image(
    name: str, reading: str, boxes: list[Boxes]
) -> None:
    cfg = head_cfg(name, MODEL__FSN__SUB_REGION=reading, MODEL__MASK_ON=True)
    for found in detections_of(build(cfg), make_features(cfg), boxes):
        assert 0 < len(found) <= cfg.TEST.DETECTIONS_PER_IMAGE
        x1, y1, x2, y2 = found.pred_boxes.tensor.unbind(1)
        assert (x1 >= 0).all() and (y1 >= 0).all()
        assert (x2 <= SIZE[1]).all() and (y2 <= SIZE[0]).all()
        assert ((found.scores >= 0) & (found.scores <= 1)).all()
        assert found.pred_masks.shape[:2] == (len(found), 1)


@pytest.mark.parametrize("name", ALL_HEADS)
def test_inference_without_proposals_or_detections(name: str, boxes: list[Boxes]) -> None:
    cfg = head_cfg(name, MODEL__MASK_ON=True, MODEL__ROI_HEADS__SCORE_THRESH_TEST=1.0)
    heads, features = build(cfg), make_features(cfg)
    nothing = [Boxes(torch.zeros(0, 4))] * 2
    for proposed in (boxes, nothing):
        assert [len(found) for found in detections_of(heads, features, proposed)] == [0, 0]


@torch.no_grad()
@pytest.mark.parametrize("name", ALL_HEADS)
def test_masks_for_given_boxes_are_those_of_inference(name: str, boxes: list[Boxes]) -> None:
    """Test-time augmentation asks for masks this way, with the backbone's features."""
    cfg = head_cfg(name, MODEL__MASK_ON=True)
    heads, features = build(cfg).eval(), make_features(cfg)
    detected = detections_of(heads, features, boxes)
    given = []
    for found in detected:
        copy = Instances(SIZE, pred_boxes=found.pred_boxes, pred_classes=found.pred_classes)
        given.append(copy)
    again = heads.forward_with_given_boxes(features, given)
    for found, repeated in zip(detected, again, strict=True):
        torch.testing.assert_close(repeated.pred_masks, found.pred_masks)


@torch.no_grad()
def test_the_image_reading_depends_on_the_image_size_without_padding(boxes: list[Boxes]) -> None:
    cfg = head_cfg("FSNROIHeads", MODEL__FSN__SUB_REGION="image")
    heads, features = build(cfg).eval(), make_features(cfg)
    wide = heads(make_images(), features, make_proposals(boxes))[0][0]
    proposals = make_proposals(boxes)
    for p in proposals:
        p._image_size = (4 * SIZE[0], 4 * SIZE[1])  # every box is now in the top left part
    narrow = heads(make_images(), features, proposals)[0][0]
    assert len(wide) != len(narrow) or not torch.equal(wide.scores, narrow.scores)


# ---------------------------------------------------------------------------- config


def test_the_config_reaches_the_parts() -> None:
    fsn = {"GRID": 2, "SHIFT": 3, "RATIOS": [0.25, 1.0], "BANK_KERNEL": 3, "BANK_INPUT": "feature"}
    changes = {f"MODEL__FSN__{key}": value for key, value in fsn.items()}
    cfg = head_cfg("FSNROIHeads", MODEL__FSN__CHANNELS=5, **changes)
    heads = build(cfg)
    banks = heads.box_banks
    width = make_features(cfg)["p2"].shape[1]
    assert banks.sub_region.conv.weight.shape == (4 * 5, width, 3, 3)
    assert banks.sub_region.offsets == [(-3, -3), (-3, 3), (3, -3), (3, 3)]
    assert banks.aspect_ratio.weight.shape == (2 * 5, width, 1, 1)
    assert heads.box_pooler.ratios == [0.25, 1.0]
    assert heads.box_pooler.grid == 2
    assert heads.box_head.fc1.in_features == 5 * 7 * 7


@pytest.mark.parametrize("name", ["FSNROIHeads", "FSNCascadeROIHeads"])
@pytest.mark.parametrize("ratio", [0, 3])
def test_the_sampling_ratio_is_that_of_a_plain_pooler(
    name: str, ratio: int, boxes: list[Boxes]
) -> None:
    changes = {"MODEL__ROI_BOX_HEAD__POOLER_SAMPLING_RATIO": ratio, "MODEL__FSN__RATIOS": []}
    heads = build(head_cfg(name, MODEL__FSN__SUB_REGION="none", MODEL__FSN__MERGE="sum", **changes))
    maps = list(heads.box_banks(make_features(head_cfg(name)), [SIZE, SIZE]).values())
    plain = ROIPooler(7, [1 / s for s in PYRAMID.values()], ratio, "ROIAlignV2")
    torch.testing.assert_close(heads.box_pooler(maps, boxes), plain([m.roi for m in maps], boxes))


@torch.no_grad()
@pytest.mark.parametrize(
    ("merge", "activation", "start"),
    [
        ("concat", "sigmoid", 0.0),
        ("sum", "sigmoid", 0.0),
        ("multiply", "sigmoid", 0.0),
        ("multiply", "relu", 1.0),
        ("multiply", "identity", 1.0),
    ],
)
@pytest.mark.parametrize("name", ALL_HEADS)
def test_the_attention_begins_where_the_merge_changes_nothing(
    name: str, merge: str, activation: str, start: float, boxes: list[Boxes]
) -> None:
    changes = {"MERGE": merge, "ACTIVATION": activation, "BANK_INPUT": "feature", "CHANNELS": 32}
    cfg = head_cfg(name, **{f"MODEL__FSN__{key}": value for key, value in changes.items()})
    heads = build(cfg)
    banks, pooler = (
        (heads.banks, heads.pooler) if "Res5" in name else (heads.box_banks, heads.box_pooler)
    )
    features = make_features(cfg)
    wide = {key: torch.randn(2, x.shape[1], 64, 64) for key, x in features.items()}
    attention = pooler.read(list(banks(wide, [SIZE, SIZE]).values()), boxes).attention
    total = sum(attention)
    assert total.mean().item() == pytest.approx(start, abs=0.02)
    assert 0.01 < total.std().item() < 0.1  # two of 0.06 at most, pooled


@pytest.mark.parametrize("name", ["FSNROIHeads", "FSNRes5ROIHeads"])
@pytest.mark.parametrize(
    ("key", "value", "changes"),
    [
        ("MERGE", "blend", {}),
        ("ACTIVATION", "tanh", {"MODEL__FSN__MERGE": "multiply"}),
        ("ACTIVATION", "tanh", {}),
        ("ACTIVATION", "tanh", {"MODEL__FSN__SUB_REGION": "none", "MODEL__FSN__RATIOS": []}),
        ("CHANNELS", 0, {}),
        ("CHANNELS", -3, {"MODEL__FSN__MERGE": "sum"}),
        ("SHIFT", -1, {}),
        ("SUB_REGION", "centre", {}),
        ("BANK_INPUT", "raw", {}),
        ("RATIOS", [1.0, -0.5], {}),
        ("RATIOS", ["0.5"], {}),
        ("RATIOS", [1.0, float("inf")], {}),
        ("BANK_KERNEL", 2, {}),
        ("GRID", 0, {}),
        ("GRID", -3, {}),
    ],
)
def test_a_wrong_value_is_refused_with_its_key(
    name: str, key: str, value: object, changes: dict
) -> None:
    with pytest.raises(ValueError, match=rf"MODEL\.FSN\.{key}\b"):
        build(head_cfg(name, **{f"MODEL__FSN__{key}": value}, **changes))


@pytest.mark.parametrize("name", ["FSNROIHeads", "FSNRes5ROIHeads"])
def test_a_pooling_of_rotated_boxes_is_refused_with_its_key(name: str) -> None:
    cfg = head_cfg(name, MODEL__ROI_BOX_HEAD__POOLER_TYPE="ROIAlignRotated")
    with pytest.raises(ValueError, match=r"MODEL\.ROI_BOX_HEAD\.POOLER_TYPE.*'ROIAlignRotated'"):
        build(cfg)


def test_levels_of_different_widths_are_refused() -> None:
    shapes = {n: ShapeSpec(channels=8 + s, stride=s) for n, s in PYRAMID.items()}
    with pytest.raises(ValueError, match=r"MODEL\.ROI_HEADS\.IN_FEATURES"):
        build_roi_heads(head_cfg("FSNROIHeads"), shapes)


@pytest.mark.parametrize("name", ["FSNROIHeads", "FSNRes5ROIHeads"])
@pytest.mark.parametrize(
    ("key", "value"), [("POOLER_SAMPLING_RATIO", -1), ("POOLER_RESOLUTION", 0)]
)
def test_too_few_samples_or_bins_are_refused_with_their_key(
    name: str, key: str, value: int
) -> None:
    with pytest.raises(ValueError, match=rf"MODEL\.ROI_BOX_HEAD\.{key} must be .* got {value}"):
        build(head_cfg(name, **{f"MODEL__ROI_BOX_HEAD__{key}": value}))
