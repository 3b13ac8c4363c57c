"""The branch: its start, selection and losses against loops, gradients, workers, another host."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from fvcore.nn import giou_loss
from torch import Tensor, nn

from fsn_d2.modeling.fsaf import AnchorFreeBranch, Objects, Predictions, Pyramid
from fsn_d2.modeling.fsaf.losses import iou_loss

SIZE = (64, 92)
STRIDES = [4, 8, 16, 32]
K = 3
ROOT = Path(__file__).parents[3]


def make_branch(**changes) -> AnchorFreeBranch:
    torch.manual_seed(0)
    return AnchorFreeBranch(in_channels=8, num_classes=K, strides=STRIDES, **changes)


def instances_of(boxes: Tensor, classes: Tensor) -> Instances:
    return Instances(SIZE, gt_boxes=Boxes(boxes), gt_classes=classes)


EMPTY = instances_of(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))


def make_features(pyramid: Pyramid, images: int, seed: int = 0) -> list[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(images, 8, *size, generator=rng) for size in pyramid.sizes]


def make_predictions(branch: AnchorFreeBranch, pyramid: Pyramid, images: int) -> Predictions:
    """Random ones; leaves of their own graph."""
    torch.manual_seed(1)
    made = branch(make_features(pyramid, images), make_features(pyramid, images))
    return made._replace(
        logits=[torch.randn_like(level).requires_grad_() for level in made.logits],
        distances=[torch.rand_like(level).requires_grad_() for level in made.distances],
    )


def losses_of(branch: AnchorFreeBranch, predictions: Predictions, instances: list) -> dict:
    with EventStorage():
        return branch.losses(predictions, instances)


# ---------------------------------------------------------------------------- the start


def test_the_published_start(pyramid: Pyramid) -> None:
    branch = make_branch()
    for layer in (branch.cls_score, branch.bbox_pred):
        assert 0.008 < layer.weight.std() < 0.012
    blank = [torch.zeros(1, 8, *size) for size in pyramid.sizes]
    predictions = branch(blank, blank)
    torch.testing.assert_close(predictions.logits[0].sigmoid(), torch.full((1, 16 * 23, K), 0.01))
    assert (predictions.distances[0] == 0.1).all()


def test_every_cell_predicts_a_box_around_its_centre(pyramid: Pyramid) -> None:
    predictions = make_predictions(make_branch(), pyramid, 1)
    assert predictions.sizes == pyramid.sizes
    assert predictions.cells[1][13].tolist() == [8, 8, 16, 16]  # row 1, column 1 of 12
    given = predictions.distances[1].detach().clone()
    given[0, 13] = torch.tensor([0.25, 0.5, 1, 2])  # left, top, right, lower; units of 4 * 8 pixels
    logits = [torch.full_like(level, -9.0) for level in predictions.logits]
    logits[1][0, 13, 2] = 9
    planted = predictions._replace(logits=logits, distances=[given, given, given, given])
    found = make_branch().candidates(planted, 0, SIZE, score_thresh=0.5, topk=5)
    assert found.pred_boxes.tensor.tolist() == [[12 - 8, 12 - 16, 12 + 32, 12 + 64]]
    assert found.pred_classes.tolist() == [2]


# ---------------------------------------------------------------------------- losses by loops


def iou(a: list[float], b: list[float]) -> float:
    sides = [max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1)]
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    both = sides[0] * sides[1]
    return both / (sum(areas) - both)


def focal(logit: float, wanted: int) -> float:
    p = 1 / (1 + math.exp(-logit))
    p_t, alpha = (p, 0.25) if wanted else (1 - p, 0.75)
    return -alpha * (1 - p_t) ** 2 * math.log(p_t)


class Slow:
    """The losses of one image as the paper writes them, cell by cell."""

    def __init__(self, predictions: Predictions, image: int, slow) -> None:
        self.logits = [level[image].tolist() for level in predictions.logits]
        self.distances = [level[image].tolist() for level in predictions.distances]
        self.slow = slow

    def box_loss(self, index: int, level: int, cell: tuple[int, int]) -> float:
        (_, width), stride = self.slow.pyramid.sizes[level], STRIDES[level]
        left, top, right, low = (
            4 * stride * d for d in self.distances[level][cell[0] * width + cell[1]]
        )
        x, y = (cell[1] + 0.5) * stride, (cell[0] + 0.5) * stride
        overlap = iou([x - left, y - top, x + right, y + low], self.slow.boxes[index])
        return -math.log(max(overlap, 1e-6))

    def score_loss(self, level: int, cell: tuple[int, int], class_: int) -> float:
        row = self.logits[level][cell[0] * self.slow.pyramid.sizes[level][1] + cell[1]]
        return sum(focal(logit, k == class_) for k, logit in enumerate(row))

    def chosen(self, index: int) -> int:
        means = []
        for level in range(len(STRIDES)):
            cells = self.slow.region(index, 0.2, level)
            class_ = self.slow.classes[index]
            losses = [
                self.score_loss(level, c, class_) + self.box_loss(index, level, c) for c in cells
            ]
            means.append(sum(losses) / len(losses))
        return means.index(min(means))


@pytest.mark.parametrize("rule", ["paper", "mmdet"])
def test_selection_and_losses_equal_loops_over_pixels(
    rule: str, draw: Callable, literal: Callable, pyramid: Pyramid
) -> None:
    branch = make_branch(ignored=0.5, other_levels=rule)
    batch = [instances_of(*draw(seed)) for seed in range(6)]
    predictions = make_predictions(branch, pyramid, len(batch))
    found = losses_of(branch, predictions, batch)
    score_loss = box_loss = positives = 0.0
    for image, instances in enumerate(batch):
        slow = literal(Objects.of([instances]), pyramid)
        slow_losses = Slow(predictions, image, slow)
        chosen = [slow_losses.chosen(i) for i in range(len(slow.boxes))]
        owners, labels = slow.labels(chosen, 0.2, 0.5, rule)
        logits = torch.cat(predictions.logits, dim=1)[image].tolist()
        for row, label in zip(logits, labels.tolist(), strict=True):
            pairs = zip(row, label, strict=True)
            score_loss += sum(focal(logit, wanted) for logit, wanted in pairs if wanted >= 0)
        for cell, owner in enumerate(owners.tolist()):
            if owner >= 0:
                level = max(i for i, start in enumerate(pyramid.starts[:-1]) if start <= cell)
                place = divmod(cell - pyramid.starts[level], pyramid.sizes[level][1])
                box_loss += slow_losses.box_loss(owner, level, place)
                positives += 1
    assert positives > 20
    assert float(found["loss_fsaf_cls"].detach()) == pytest.approx(score_loss / positives, rel=1e-4)
    assert float(found["loss_fsaf_box"].detach()) == pytest.approx(box_loss / positives, rel=1e-4)


def test_the_iou_loss_by_hand() -> None:
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 2, 2], [0, 0, 1, 1]])
    wanted = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 2], [5, 5, 6, 6]])
    losses = iou_loss(boxes, wanted)
    torch.testing.assert_close(losses, torch.tensor([0, math.log(2), -math.log(1e-6)]))


def test_giou_by_config(draw: Callable, pyramid: Pyramid) -> None:
    batch = [instances_of(*draw(3, 1))]
    branch = make_branch(box_loss="giou")
    predictions = make_predictions(branch, pyramid, 1)
    loss = losses_of(branch, predictions, batch)["loss_fsaf_box"]
    (level,) = branch.choose_levels(predictions, batch)[0].tolist()
    alone = make_branch(box_loss="giou", loss_weight=0.5)
    assert losses_of(alone, predictions, batch)["loss_fsaf_box"] == loss / 2
    per_cell = []
    x1, y1, x2, y2 = batch[0].gt_boxes.tensor[0].tolist()
    for cell, square in enumerate(predictions.cells[level]):
        x, y = (square[:2] + square[2:]).div(2).tolist()
        inner = abs(x - (x1 + x2) / 2) < (0.1 * (x2 - x1) + STRIDES[level] / 2)
        if inner and abs(y - (y1 + y2) / 2) < (0.1 * (y2 - y1) + STRIDES[level] / 2):
            d = predictions.distances[level][0, cell].detach() * 4 * STRIDES[level]
            box = torch.stack([x - d[0], y - d[1], x + d[2], y + d[3]])
            per_cell.append(giou_loss(box, batch[0].gt_boxes.tensor[0]))
    torch.testing.assert_close(loss, torch.stack(per_cell).mean())


# ---------------------------------------------------------------------------- selection


def plant(predictions: Predictions, objects: Objects, levels: list[int]) -> Predictions:
    """Right scores and boxes on one level of every object; wrong ones on the others."""
    logits = [torch.full_like(level, -4.0) for level in predictions.logits]
    distances = [torch.full_like(level, 9.0) for level in predictions.distances]
    for box, class_, image, level in zip(*objects, levels, strict=True):
        square = predictions.cells[level]
        centers = (square[:, :2] + square[:, 2:]) / 2
        inside = ((centers > box[:2]) & (centers < box[2:])).all(dim=1)
        right = torch.cat([centers - box[:2], box[2:] - centers], dim=1) / (4 * STRIDES[level])
        logits[level][image, inside, class_] = 4.0
        distances[level][image, inside] = right[inside]
    return predictions._replace(logits=logits, distances=distances)


def test_every_instance_selects_the_one_level_on_which_it_is_predicted_well(
    pyramid: Pyramid,
) -> None:
    branch = make_branch()
    boxes = torch.tensor([[2.0, 3, 42, 61], [48, 4, 90, 60]])  # apart, and large enough for all
    every = [(a, b) for a in range(len(STRIDES)) for b in range(len(STRIDES))]
    batch = [instances_of(boxes, torch.tensor([i % K, (i + 1) % K])) for i in range(len(every))]
    blank = make_predictions(branch, pyramid, len(batch))
    levels = [level for pair in every for level in pair]
    planted = plant(blank, Objects.of(batch), levels)
    assert torch.cat(branch.choose_levels(planted, batch)).tolist() == levels
    # Nothing is left to learn from boxes then: they were selected on the levels that are right.
    assert losses_of(branch, planted, batch)["loss_fsaf_box"] < 1e-5


def test_selection_leaves_no_gradient(draw: Callable, pyramid: Pyramid) -> None:
    branch = make_branch()
    batch = [instances_of(*draw(2, 4))]
    predictions = branch(make_features(pyramid, 1), make_features(pyramid, 1))
    assert not branch.choose_levels(predictions, batch)[0].requires_grad


def test_an_instance_without_area_chooses_no_level(pyramid: Pyramid) -> None:
    batch = [instances_of(torch.tensor([[1.0, 1, 1, 5]]), torch.tensor([0]))]
    branch = make_branch()
    with pytest.raises(ValueError, match="no area"):
        branch.choose_levels(make_predictions(branch, pyramid, 1), batch)


# ---------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("rule", ["paper", "mmdet"])
def test_gradients_are_zero_on_ignored_pixels_and_there_alone(
    rule: str, draw: Callable, literal: Callable, pyramid: Pyramid
) -> None:
    branch = make_branch(ignored=0.5, other_levels=rule)
    batch = [instances_of(*draw(seed)) for seed in (4, 8, 9, 14)]
    predictions = make_predictions(branch, pyramid, len(batch))
    sum(losses_of(branch, predictions, batch).values()).backward()
    of_logits = torch.cat([level.grad for level in predictions.logits], dim=1)
    of_boxes = torch.cat([level.grad for level in predictions.distances], dim=1)
    seen = 0
    for image, instances in enumerate(batch):
        slow = literal(Objects.of([instances]), pyramid)
        losses = Slow(predictions, image, slow)
        chosen = [losses.chosen(i) for i in range(len(slow.boxes))]
        owners, labels = slow.labels(chosen, 0.2, 0.5, rule)
        assert torch.equal(of_logits[image] == 0, labels < 0)
        assert torch.equal(of_boxes[image].abs().sum(dim=1) > 0, owners >= 0)
        seen += int((labels < 0).sum())
    assert seen > 100


def test_images_without_objects_train_and_learn_background(pyramid: Pyramid) -> None:
    branch = make_branch()
    features = make_features(pyramid, 2)
    losses = losses_of(branch, branch(features, features), [EMPTY, EMPTY])
    assert losses["loss_fsaf_box"] == 0 < losses["loss_fsaf_cls"]
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in branch.parameters())
    assert branch.cls_score.bias.grad.min() > 0  # every score is pushed down


def test_a_batch_in_which_all_choose_one_level_trains(pyramid: Pyramid) -> None:
    branch = make_branch()
    box = torch.tensor([[11.0, 7, 71, 51]])
    batch = [instances_of(box, torch.tensor([1])) for _ in range(3)]
    features = [f[:1].expand(3, -1, -1, -1) for f in make_features(pyramid, 1)]
    predictions = branch(features, features)
    assert len(set(torch.cat(branch.choose_levels(predictions, batch)).tolist())) == 1
    before = losses_of(branch, predictions, batch)
    sum(before.values()).backward()
    with torch.no_grad():
        for parameter in branch.parameters():
            parameter -= 0.001 * parameter.grad
    after = losses_of(branch, branch(features, features), batch)
    assert sum(after.values()) < sum(before.values())


def test_losses_are_float32_under_mixed_precision(draw: Callable, pyramid: Pyramid) -> None:
    branch = make_branch()
    batch = [instances_of(*draw(seed)) for seed in (4, 8)]
    features = make_features(pyramid, 2)
    with torch.autocast("cpu", torch.bfloat16):
        predictions = branch(features, features)
        assert predictions.logits[0].dtype == torch.bfloat16
        found = losses_of(branch, predictions, batch)
        inside = branch.candidates(predictions, 0, SIZE, score_thresh=0.0, topk=9)
    assert inside.pred_boxes.tensor.dtype == torch.float32
    exact = losses_of(branch, branch(features, features), batch)
    for name, loss in exact.items():
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], loss, rtol=0.05, atol=0.0)


# ---------------------------------------------------------------------------- several workers

WORKER = """
import datetime, json, sys, torch
from detectron2.utils.events import EventStorage
from fsn_d2.modeling.fsaf import AnchorFreeBranch

rank, store, data = int(sys.argv[1]), *sys.argv[2:]
torch.distributed.init_process_group(
    "gloo", f"file://{store}", datetime.timedelta(seconds=200), rank=rank, world_size=2
)
branch, features, batches = torch.load(data, weights_only=False)
with EventStorage():
    losses = branch.losses(branch(features[rank], features[rank]), batches[rank])
print(json.dumps({name: loss.item() for name, loss in losses.items()}))
"""


def test_two_workers_average_to_the_losses_of_the_whole_batch(
    draw: Callable, pyramid: Pyramid, tmp_path: Path
) -> None:
    branch = make_branch()
    batches = [[instances_of(*draw(6, 1)), EMPTY], [instances_of(*draw(s)) for s in (4, 9)]]
    features = [make_features(pyramid, 2, seed) for seed in (0, 1)]
    joined = [torch.cat(pair) for pair in zip(*features, strict=True)]
    whole = losses_of(branch, branch(joined, joined), [*batches[0], *batches[1]])

    torch.save((branch, features, batches), tmp_path / "data.pt")
    arguments = [str(tmp_path / "store"), str(tmp_path / "data.pt")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), *arguments],
            stdout=subprocess.PIPE,
            env=environment,
        )
        for rank in range(2)
    ]
    parts = [json.loads(worker.communicate()[0]) for worker in workers]
    for name, loss in whole.items():
        assert sum(part[name] for part in parts) / 2 == pytest.approx(loss.item(), rel=1e-5)


# ---------------------------------------------------------------------------- another detector


class Maps(Backbone):
    """One convolution per level."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3, 8, s, stride=s) for s in STRIDES)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {f"p{i}": layer(image) for i, layer in enumerate(self.layers)}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {f"p{i}": ShapeSpec(channels=8, stride=s) for i, s in enumerate(STRIDES)}

    @property
    def size_divisibility(self) -> int:
        return STRIDES[-1]


class FCOSWithBranch(FCOS):
    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self.branch = make_branch()

    def forward_training(self, images, features, predictions, gt_instances) -> dict[str, Tensor]:
        losses = super().forward_training(images, features, predictions, gt_instances)
        towers = [
            [tower(f) for f in features] for tower in (self.head.cls_subnet, self.head.bbox_subnet)
        ]
        return losses | self.branch.losses(self.branch(*towers), gt_instances)


def test_attached_to_fcos_it_trains(draw: Callable) -> None:
    torch.manual_seed(0)
    backbone = Maps()
    shapes = list(backbone.output_shape().values())
    model = FCOSWithBranch(
        backbone=backbone,
        head=FCOSHead(input_shape=shapes, conv_dims=[8], num_classes=K),
        num_classes=K,
        pixel_mean=[127.0] * 3,
        pixel_std=[127.0] * 3,
    )
    batch = [
        {"image": torch.rand(3, *SIZE) * 255, "instances": instances_of(*draw(seed, 4))}
        for seed in range(2)
    ]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.002)
    before = [p.detach().clone() for p in model.branch.parameters()]
    history = []
    for _ in range(4):
        with EventStorage():
            losses = model(batch)
        assert set(losses) > {"loss_fsaf_cls", "loss_fsaf_box", "loss_fcos_cls"}
        total = losses["loss_fsaf_cls"] + losses["loss_fsaf_box"]
        optimizer.zero_grad()
        sum(losses.values()).backward()
        assert not [n for n, p in model.named_parameters() if p.grad is None]
        optimizer.step()
        history.append(total.item())
    pairs = zip(before, model.branch.parameters(), strict=True)
    assert not [1 for old, new in pairs if torch.equal(old, new)]
    assert history[-1] < history[0]


# ---------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"effective": 0.0}, "EFFECTIVE"),
        ({"effective": 0.5, "ignored": 0.2}, "IGNORED"),
        ({"ignored": 1.5}, "IGNORED"),
        ({"other_levels": "all"}, "OTHER_LEVELS"),
        ({"box_loss": "l1"}, "LOSS"),
        ({"prior_prob": 0.0}, "PRIOR"),
        ({"box_scale": 0.0}, "BOX_SCALE"),
        ({"box_bias": -0.1}, "BOX_BIAS"),
    ],
)
def test_a_wrong_value_is_refused_with_its_key(changes: dict, key: str) -> None:
    with pytest.raises(ValueError, match=rf"MODEL\.FSAF\.{key}\b"):
        make_branch(**changes)
