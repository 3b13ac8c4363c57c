"""FSAF's three modes: the anchors alone are RetinaNet, joint is both, and every mode trains."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torchvision
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.meta_arch.retinanet import RetinaNet, RetinaNetHead
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from fsn_d2.modeling.fsaf import levels_by_size
from fsn_d2.modeling.meta_arch import TowerHead
from fsn_d2.modeling.meta_arch.fsaf import MODES

SIZES = [(64, 80), (70, 50)]  # height, width of the images of a batch


@pytest.fixture
def build(small_cfg: Callable[..., CfgNode]) -> Callable[..., nn.Module]:
    """A small FSAF, or RetinaNet, whose scores differ clearly from cell to cell."""

    def model(architecture: str = "FSAF", mode: str = "joint", **changes: object) -> nn.Module:
        changes = {"MODEL__RETINANET__SCORE_THRESH_TEST": 0.0, **changes}
        torch.manual_seed(0)
        made = build_model(
            small_cfg(
                "retinanet_R50.yaml",
                MODEL__META_ARCHITECTURE=architecture,
                MODEL__FSAF__MODE=mode,
                MODEL__RETINANET__NUM_CONVS=1,
                **changes,
            )
        )
        for name, parameter in made.named_parameters():
            if name.endswith("cls_score.weight"):
                nn.init.normal_(parameter, std=0.5)
        return made

    return model


def batch_of(counts: list[int]) -> list[dict]:
    """Random images with so many objects each."""
    rng = torch.Generator().manual_seed(1)
    batch = []
    for (height, width), count in zip(SIZES, counts, strict=True):
        corner = torch.rand(count, 2, generator=rng) * 30
        boxes = torch.cat([corner, corner + 4 + torch.rand(count, 2, generator=rng) * 16], dim=1)
        target = Instances((height, width), gt_boxes=Boxes(boxes))
        target.gt_classes = torch.randint(3, (count,), generator=rng)
        image = torch.rand(3, height, width, generator=rng) * 255
        batch.append({"image": image, "instances": target, "height": height, "width": 2 * width})
    return batch


def losses_of(model: nn.Module, batch: list[dict]) -> dict[str, Tensor]:
    with EventStorage():
        return model.train()(batch)


@torch.no_grad()
def detections_of(model: nn.Module, batch: list[dict]) -> list[Instances]:
    return [found["instances"] for found in model.eval()(batch)]


@torch.no_grad()
def raw_detections_of(model: nn.Module) -> list[Instances]:
    return model.eval().inference(batch_of([0, 0]), do_postprocess=False)


def assert_equal_bit_for_bit(found: list[Instances], wanted: list[Instances]) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert len(one) == len(other) > 0
        assert torch.equal(one.pred_boxes.tensor, other.pred_boxes.tensor)
        assert torch.equal(one.scores, other.scores)
        assert torch.equal(one.pred_classes, other.pred_classes)


# ---------------------------------------------------------------------------- anchors alone


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"MODEL__RETINANET__NORM": "BN"},
        {"MODEL__RETINANET__BBOX_REG_LOSS_TYPE": "giou"},
        {"MODEL__RETINANET__SCORE_THRESH_TEST": 0.3, "MODEL__RETINANET__TOPK_CANDIDATES_TEST": 30},
    ],
)
def test_the_anchors_alone_are_retinanet_bit_for_bit(build: Callable, changes: dict) -> None:
    plain, ours = build("RetinaNet", **changes), build("FSAF", "anchors", **changes)
    assert type(plain) is RetinaNet
    ours.load_state_dict(plain.state_dict(), strict=True)
    for counts in ([3, 5], [0, 2]):  # twice: the normaliser moves on
        expected, found = losses_of(plain, batch_of(counts)), losses_of(ours, batch_of(counts))
        assert list(found) == list(expected)
        for name, loss in expected.items():
            assert torch.equal(found[name], loss)
        for losses in (expected, found):
            sum(losses.values()).backward()
    for wanted, own in zip(plain.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(own.grad, wanted.grad)  # no two runs add in the same order
    batch = batch_of([0, 0])
    assert_equal_bit_for_bit(detections_of(ours, batch), detections_of(plain, batch))


@pytest.mark.parametrize("mode", ["joint", "anchor_free"])
def test_a_retinanet_checkpoint_starts_the_other_modes(build: Callable, mode: str) -> None:
    report = build("FSAF", mode).load_state_dict(build("RetinaNet").state_dict(), strict=False)
    assert all(name.startswith("branch.") for name in report.missing_keys)
    lost = {name.rpartition(".")[0] for name in report.unexpected_keys}
    assert lost == (set() if mode == "joint" else {"head.cls_score", "head.bbox_pred"})


# ---------------------------------------------------------------------------- joint


@pytest.fixture
def three(build: Callable) -> Callable[..., dict[str, nn.Module]]:
    """One model per mode, with the same weights."""

    def models(**changes: object) -> dict[str, nn.Module]:
        made = {mode: build("FSAF", mode, **changes) for mode in MODES}
        for mode in ("anchors", "anchor_free"):
            made[mode].load_state_dict(made["joint"].state_dict(), strict=False)
        return made

    return models


def test_joint_losses_are_the_anchors_and_lambda_times_the_branch(three: Callable) -> None:
    losses = {m: losses_of(v, batch_of([3, 5])) for m, v in three(MODEL__FSAF__LAMBDA=0.25).items()}
    assert set(losses["joint"]) == set(losses["anchors"]) | set(losses["anchor_free"])
    for name, loss in losses["anchors"].items():
        torch.testing.assert_close(losses["joint"][name], loss)
    for name, loss in losses["anchor_free"].items():
        torch.testing.assert_close(losses["joint"][name], loss / 4)


def test_the_detections_of_both_are_merged_before_suppression(three: Callable) -> None:
    models = three(TEST__DETECTIONS_PER_IMAGE=10_000)
    joint = raw_detections_of(models["joint"])
    for model in models.values():
        model.test_nms_thresh = 2.0  # nothing is suppressed
    anchors, free = (raw_detections_of(models[mode]) for mode in ("anchors", "anchor_free"))
    for found, *parts in zip(joint, anchors, free, strict=True):
        both = Instances.cat(parts)
        kept = torchvision.ops.batched_nms(
            both.pred_boxes.tensor, both.scores, both.pred_classes, 0.5
        )
        assert_equal_bit_for_bit([found], [both[kept]])
        of_anchors = int((kept < len(parts[0])).sum())
        assert min(of_anchors, len(kept) - of_anchors) > 20


# ---------------------------------------------------------------------------- two towers


@pytest.mark.parametrize(
    ("loss", "tower", "other"),
    [
        ("loss_fsaf_cls", "cls_subnet", "bbox_subnet"),
        ("loss_fsaf_box", "bbox_subnet", "cls_subnet"),
    ],
)
def test_a_loss_reaches_its_own_tower_alone(
    build: Callable, loss: str, tower: str, other: str
) -> None:
    model = build("FSAF", "anchor_free")
    losses_of(model, batch_of([3, 5]))[loss].backward()
    assert all(p.grad.any() for p in getattr(model.head, tower).parameters())
    assert all(p.grad is None for p in getattr(model.head, other).parameters())


@torch.no_grad()
@pytest.mark.parametrize("mode", ["anchor_free", "anchors"])
def test_scores_come_from_the_class_tower_and_boxes_from_the_box_tower(
    build: Callable, mode: str
) -> None:
    changes = {"TEST__DETECTIONS_PER_IMAGE": 100_000, "MODEL__RETINANET__NMS_THRESH_TEST": 2.0}
    model = build("FSAF", mode, **changes)
    full = raw_detections_of(model)
    for parameter in model.head.bbox_subnet.parameters():
        parameter.zero_()
    for found, before in zip(raw_detections_of(model), full, strict=True):
        assert torch.equal(found.scores, before.scores)
        assert torch.equal(found.pred_classes, before.pred_classes)
        assert not torch.equal(found.pred_boxes.tensor, before.pred_boxes.tensor)
    for parameter in model.head.cls_subnet.parameters():
        parameter.zero_()
    assert not torch.equal(raw_detections_of(model)[0].scores, full[0].scores)


@torch.no_grad()
def test_the_levels_are_chosen_by_each_towers_own_predictions(build: Callable) -> None:
    model, batch = build(mode="joint").eval(), batch_of([4, 5])
    for name, parameter in model.named_parameters():
        if name.startswith(("head.", "branch.")):  # so that no level is the best for all
            nn.init.normal_(parameter, std=0.3)
    features = list(model.backbone(model.preprocess_image(batch).tensor).values())
    of_class = [model.head.cls_subnet(level) for level in features]
    of_box = [model.head.bbox_subnet(level) for level in features]
    instances = [sample["instances"] for sample in batch]
    right, swapped = (
        torch.cat(model.branch.choose_levels(model.branch(*towers), instances)).tolist()
        for towers in ((of_class, of_box), (of_box, of_class))
    )
    assert torch.cat(model.choose_levels(batch)).tolist() == right != swapped


# ---------------------------------------------------------------------------- every mode


@pytest.mark.parametrize("counts", [[3, 5], [0, 4], [0, 0]])
@pytest.mark.parametrize("mode", MODES)
def test_it_trains_and_reaches_every_parameter(
    build: Callable, mode: str, counts: list[int]
) -> None:
    model = build("FSAF", mode)
    losses = losses_of(model, batch_of(counts))
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize("mode", MODES)
def test_detections_lie_in_the_image_and_in_the_size_that_is_asked_for(
    build: Callable, mode: str
) -> None:
    model, batch = build("FSAF", mode), batch_of([0, 0])
    found = detections_of(model, batch)
    assert_equal_bit_for_bit([a["instances"] for a in model.inference(batch)], found)
    raw = model.inference(batch, do_postprocess=False)
    for detections, own, sample in zip(found, raw, batch, strict=True):
        width, height = sample["width"], sample["height"]
        assert 0 < len(detections) <= 20
        assert detections.image_size == (height, width)
        limits = torch.tensor([width, height, width, height])
        assert (detections.pred_boxes.tensor >= 0).all()
        assert (detections.pred_boxes.tensor <= limits).all()
        assert own.image_size == (height, width // 2)


def test_nothing_above_the_threshold(build: Callable) -> None:
    model = build(MODEL__RETINANET__SCORE_THRESH_TEST=1.0)
    assert [len(found) for found in detections_of(model, batch_of([0, 0]))] == [0, 0]


@torch.no_grad()
def test_the_levels_that_objects_choose(build: Callable) -> None:
    model, batch = build(mode="anchor_free").eval(), batch_of([4, 0])
    levels = model.choose_levels(batch)
    assert [len(one) for one in levels] == [4, 0]
    assert ((levels[0] >= 0) & (levels[0] < 5)).all()
    boxes = batch[0]["instances"].gt_boxes.tensor
    assert levels_by_size(boxes, model.branch.strides).tolist() == [0] * 4
    with pytest.raises(ValueError, match=r"MODEL\.FSAF\.MODE"):
        build(mode="anchors").choose_levels(batch)


def test_one_level(small_cfg: Callable) -> None:
    cfg = small_cfg("fsaf_R50_stride4.yaml", MODEL__RETINANET__SCORE_THRESH_TEST=0.0)
    model = build_model(cfg)
    assert model.branch.strides == [4]
    losses = losses_of(model, batch_of([3, 5]))
    sum(losses.values()).backward()
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert all(len(found) for found in detections_of(model, batch_of([0, 0])))


# ---------------------------------------------------------------------------- config and head


def test_the_config_reaches_the_branch(build: Callable) -> None:
    keys = {"IGNORED": 0.5, "OTHER_LEVELS": "paper", "LOSS": "giou", "LAMBDA": 0.3, "PRIOR": 0.5}
    keys |= {"EFFECTIVE": 0.3, "BOX_SCALE": 2.0, "BOX_BIAS": 0.7}
    joint = build("FSAF", "joint", **{f"MODEL__FSAF__{k}": v for k, v in keys.items()}).branch
    assert (joint.effective, joint.ignored, joint.other_levels) == (0.3, 0.5, "paper")
    assert (joint.loss_weight, joint.box_scale) == (0.3, 2.0)
    assert joint.box_loss.__name__ == "generalized_box_iou_loss"
    assert (joint.bbox_pred.bias == 0.7).all() and (joint.cls_score.bias == 0).all()
    assert joint.strides == [8, 16, 32, 64, 128]
    assert build("FSAF", "anchor_free").branch.loss_weight == 1


@pytest.mark.parametrize(("key", "value"), [("MODE", "both"), ("LOSS", "l2"), ("EFFECTIVE", 2.0)])
def test_a_wrong_value_is_refused_with_its_key(build: Callable, key: str, value: object) -> None:
    changes = {"mode": value} if key == "MODE" else {f"MODEL__FSAF__{key}": value}
    with pytest.raises(ValueError, match=rf"MODEL\.FSAF\.{key}\b"):
        build("FSAF", **changes)


def test_group_normalisation_in_the_towers(build: Callable) -> None:
    head = build(MODEL__RETINANET__NORM="GN").head
    norms = [m for m in head.modules() if isinstance(m, nn.GroupNorm)]
    assert [(n.num_groups, n.num_channels) for n in norms] == [(32, 32)] * 2


def test_the_opened_head_is_retinanets() -> None:
    arguments = {
        "input_shape": [ShapeSpec(channels=4)] * 2,
        "num_classes": 3,
        "num_anchors": 2,
        "conv_dims": [4, 4],
    }
    plain, ours = RetinaNetHead(**arguments), TowerHead(anchors=True, **arguments)
    ours.load_state_dict(plain.state_dict(), strict=True)
    features = [torch.randn(2, 4, 5, 6), torch.randn(2, 4, 3, 3)]
    for found, wanted in zip(
        ours.predict_from_anchors(ours(features)), plain(features), strict=True
    ):
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
