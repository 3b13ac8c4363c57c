"""Hard examples against losses worked out RoI by RoI with Detectron2's own loss."""

from __future__ import annotations

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor

from fsn_d2.modeling.hard_examples import hardest, loss_per_roi

CLASSES = 3
SIZE = (100, 120)


def predictor(*, agnostic: bool = True, beta: float = 0.5, weight: float = 2.0):
    return FastRCNNOutputLayers(
        ShapeSpec(channels=1),
        box2box_transform=Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0)),
        num_classes=CLASSES,
        cls_agnostic_bbox_reg=agnostic,
        smooth_l1_beta=beta,
        loss_weight={"loss_box_reg": weight},
    )


def labelled(boxes: Boxes, seed: int) -> Instances:
    """About half of the boxes are background (class CLASSES)."""
    rng = torch.Generator().manual_seed(seed)
    made = Instances(SIZE, proposal_boxes=boxes)
    made.gt_classes = torch.randint(0, 2 * CLASSES, (len(boxes),), generator=rng).clamp(max=CLASSES)
    made.gt_boxes = Boxes(boxes.tensor + 5 * torch.rand(len(boxes), 4, generator=rng))
    return made


def predictions_for(count: int, agnostic: bool = True) -> tuple[Tensor, Tensor]:
    torch.manual_seed(3)
    return 3 * torch.randn(count, CLASSES + 1), torch.randn(count, 4 * (1 if agnostic else CLASSES))


@pytest.mark.parametrize("agnostic", [True, False])
@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_the_loss_of_each_roi_is_detectron2s_for_it_alone(
    agnostic: bool, beta: float, random_boxes
) -> None:
    layers = predictor(agnostic=agnostic, beta=beta)
    proposals = labelled(random_boxes(20, *SIZE), seed=1)
    scores, deltas = predictions_for(20, agnostic)
    found = loss_per_roi(layers, scores, deltas, proposals)
    with EventStorage():
        for i in range(20):
            one = layers.losses((scores[i : i + 1], deltas[i : i + 1]), [proposals[[i]]])
            torch.testing.assert_close(found[i], sum(one.values()))


def test_it_keeps_each_images_hardest(random_boxes) -> None:
    layers = predictor()
    proposals = [labelled(random_boxes(n, *SIZE, seed=n), seed=n) for n in (20, 4, 12)]
    scores, deltas = predictions_for(36)
    (kept_scores, kept_deltas), kept = hardest(layers, (scores, deltas), proposals, 5)
    assert [len(p) for p in kept] == [5, 4, 5]
    start, row = 0, 0
    for all_of_image, kept_of_image in zip(proposals, kept, strict=True):
        part = slice(start, start + len(all_of_image))
        losses = loss_per_roi(layers, scores[part], deltas[part], all_of_image).tolist()
        order = sorted(range(len(losses)), key=lambda i: -losses[i])[: len(kept_of_image)]
        for place, i in enumerate(order):
            assert torch.equal(kept_scores[row + place], scores[start + i])
            assert torch.equal(kept_deltas[row + place], deltas[start + i])
            expected = all_of_image.proposal_boxes.tensor[i]
            assert torch.equal(kept_of_image.proposal_boxes.tensor[place], expected)
        start += len(all_of_image)
        row += len(kept_of_image)


def test_an_image_without_objects_or_without_rois(random_boxes) -> None:
    background = Instances(SIZE, proposal_boxes=random_boxes(6, *SIZE))
    background.gt_classes = torch.full((6,), CLASSES)  # and no gt_boxes, as Detectron2 has it
    nothing = Instances(SIZE, proposal_boxes=Boxes(torch.zeros(0, 4)))
    nothing.gt_classes = torch.zeros(0, dtype=torch.int64)
    (scores, deltas), kept = hardest(
        predictor(), predictions_for(6), [background, nothing], per_image=3
    )
    assert [len(p) for p in kept] == [3, 0]
    assert scores.shape == (3, CLASSES + 1)
    assert deltas.shape == (3, 4)


def test_the_kept_losses_reach_the_kept_rois_alone(random_boxes) -> None:
    layers = predictor()
    proposals = [labelled(random_boxes(20, *SIZE), seed=1)]
    scores, deltas = (x.requires_grad_() for x in predictions_for(20))
    predictions, kept = hardest(layers, (scores, deltas), proposals, 5)
    with EventStorage():
        sum(layers.losses(predictions, kept).values()).backward()
    losses = loss_per_roi(layers, scores, deltas, proposals[0])
    expected = set(losses.topk(5).indices.tolist())
    assert set(scores.grad.abs().sum(1).nonzero().flatten().tolist()) == expected
