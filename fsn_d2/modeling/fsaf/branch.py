"""FSAF's anchor-free branch: one box per cell of every pyramid level, for any dense detector."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransformLinear
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage
from fvcore.nn import sigmoid_focal_loss_jit
from torch import Tensor, nn

from .losses import BOX_LOSSES, mean_over_workers
from .regions import Pyramid, Region, region_cells
from .selection import select_levels
from .targets import Objects, Targets, assign_targets

OTHER_LEVELS = ("paper", "mmdet")


class Predictions(NamedTuple):
    """What the branch says about every cell, level by level.

    Attributes:
        logits: Tensor[N, H * W, K] each.
        distances: Tensor[N, H * W, 4] each: from the cell's centre to the left, top, right and
            lower side of the box, at least 0, in units of `box_scale` cells.
        cells: Tensor[H * W, 4] each: the squares (x1, y1, x2, y2) of the cells, pixels.
        sizes: (height, width) of each level, cells.
    """

    logits: list[Tensor]
    distances: list[Tensor]
    cells: list[Tensor]
    sizes: list[tuple[int, int]]


class _Maps(NamedTuple):
    """Predictions in float32, the levels in one: [N, R, K], [N, R, 4] and [R, 4]."""

    logits: Tensor
    distances: Tensor
    cells: Tensor


def _join(predictions: Predictions) -> _Maps:
    logits, distances = (torch.cat(p, dim=1).float() for p in predictions[:2])
    return _Maps(logits, distances, torch.cat(predictions.cells))


def best_candidates(scores: Tensor, least: float, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best scores of one level of one image, in falling order.

    Slices alone limit their number, so that a traced model does so for any image.

    Args:
        scores: Tensor[H * W, K].
        least: only scores above it count.
        most: so many are kept.

    Returns:
        scores Tensor[D], cells int64 Tensor[D], classes int64 Tensor[D].
    """
    kept = scores > least
    values, order = scores[kept].sort(descending=True)
    places = kept.nonzero()[order[:most]]
    return values[:most], places[:, 0], places[:, 1]


def _check(
    effective: float, ignored: float, other_levels: str, box_loss: str, prior_prob: float
) -> None:
    if not 0 < effective <= ignored <= 1:
        raise ValueError(
            "MODEL.FSAF.EFFECTIVE and MODEL.FSAF.IGNORED must satisfy 0 < EFFECTIVE <= IGNORED "
            f"<= 1, got {effective} and {ignored}. The paper has 0.2 and 0.5."
        )
    if other_levels not in OTHER_LEVELS:
        raise ValueError(
            f"MODEL.FSAF.OTHER_LEVELS must be one of {OTHER_LEVELS}, got {other_levels!r}."
        )
    if box_loss not in BOX_LOSSES:
        raise ValueError(f"MODEL.FSAF.LOSS must be one of {tuple(BOX_LOSSES)}, got {box_loss!r}.")
    if not 0 < prior_prob < 1:
        raise ValueError(f"MODEL.FSAF.PRIOR must lie between 0 and 1, got {prior_prob}.")


def _check_positive(**values: float) -> None:
    for key, value in values.items():
        if not value > 0:
            raise ValueError(
                f"MODEL.FSAF.{key} must be above 0, where distances can learn, got {value}."
            )


def _convolution(in_channels: int, out_channels: int, bias: float) -> nn.Conv2d:
    """3 x 3, with the paper's start: normal weights and one bias (section 3.4)."""
    layer = nn.Conv2d(in_channels, out_channels, 3, padding=1)
    nn.init.normal_(layer.weight, std=0.01)
    layer.bias = nn.Parameter(torch.full((out_channels,), bias))
    return layer


class AnchorFreeBranch(nn.Module):
    """A class convolution and a box convolution on shared features of every pyramid level.

    FSAF, section 3.1; its losses, section 3.2.
    `branch(cls_features, box_features)` predicts; `losses` and `candidates` do the rest. Any
    detector that has pyramid features can hold one.
    """

    @configurable
    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        strides: list[int],
        effective: float = 0.2,
        ignored: float = 0.2,
        other_levels: str = "mmdet",
        box_loss: str = "iou",
        loss_weight: float = 1.0,
        box_scale: float = 4.0,
        prior_prob: float = 0.01,
        box_bias: float = 0.1,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
    ) -> None:
        """
        Args:
            in_channels: of the features, the same on all levels.
            num_classes: K.
            strides: of the levels, pixels, from fine to coarse.
            effective: fraction of width and height of a box that is positive, 0..1.
            ignored: fraction up to which a box is not background either, effective..1.
            other_levels: what an instance is on the levels that it did not choose, "paper" or
                "mmdet"; see `assign_targets`.
            box_loss: "iou" (-log IoU) or "giou".
            loss_weight: factor of both losses.
            box_scale: S, cells per unit of the predicted distances.
            prior_prob: score of every class at the start.
            box_bias: distance to every side at the start, units of S cells.
            focal_alpha, focal_gamma: of the focal loss.

        Raises:
            ValueError: naming the key that does not fit.
        """
        super().__init__()
        _check(effective, ignored, other_levels, box_loss, prior_prob)
        _check_positive(BOX_SCALE=box_scale, BOX_BIAS=box_bias)
        self.num_classes = num_classes
        self.strides = strides
        self.effective = effective
        self.ignored = ignored
        self.other_levels = other_levels
        self.box_loss = BOX_LOSSES[box_loss]
        self.loss_weight = loss_weight
        self.box_scale = box_scale
        self.focal = {"alpha": focal_alpha, "gamma": focal_gamma}
        self.cell_generator = DefaultAnchorGenerator(
            sizes=[[stride] for stride in strides], aspect_ratios=[1.0], strides=strides, offset=0.5
        )
        self.box_transform = Box2BoxTransformLinear(normalize_by_size=True)
        self.cls_score = _convolution(
            in_channels, num_classes, math.log(prior_prob / (1 - prior_prob))
        )
        self.bbox_pred = _convolution(in_channels, 4, box_bias)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict[str, Any]:
        """Reads MODEL.FSAF and, for what RetinaNet has as well, MODEL.RETINANET."""
        fsaf, retinanet = cfg.MODEL.FSAF, cfg.MODEL.RETINANET
        return {
            "in_channels": input_shape[0].channels,
            "num_classes": retinanet.NUM_CLASSES,
            "strides": [shape.stride for shape in input_shape],
            "effective": fsaf.EFFECTIVE,
            "ignored": fsaf.IGNORED,
            "other_levels": fsaf.OTHER_LEVELS,
            "box_loss": fsaf.LOSS,
            "loss_weight": fsaf.LAMBDA if fsaf.MODE == "joint" else 1.0,
            "box_scale": fsaf.BOX_SCALE,
            "prior_prob": fsaf.PRIOR,
            "box_bias": fsaf.BOX_BIAS,
            "focal_alpha": retinanet.FOCAL_LOSS_ALPHA,
            "focal_gamma": retinanet.FOCAL_LOSS_GAMMA,
        }

    def forward(self, cls_features: list[Tensor], box_features: list[Tensor]) -> Predictions:
        """Predicts from what the class tower and the box tower give, Tensor[N, C, H, W] a level.

        Both may be the same features.
        """
        return Predictions(
            [permute_to_N_HWA_K(self.cls_score(f), self.num_classes) for f in cls_features],
            [permute_to_N_HWA_K(self.bbox_pred(f).relu(), 4) for f in box_features],
            [cells.tensor for cells in self.cell_generator(cls_features)],
            [(f.shape[-2], f.shape[-1]) for f in cls_features],
        )

    # ------------------------------------------------------------------------ training

    def losses(self, predictions: Predictions, instances: list[Instances]) -> dict[str, Tensor]:
        """The focal and the box loss, each divided by the mean number of positive cells a worker.

        Args:
            predictions: for N images.
            instances: N, with `gt_boxes` and `gt_classes`.

        Returns:
            "loss_fsaf_cls" and "loss_fsaf_box", scalars.
        """
        objects, maps = Objects.of(instances), _join(predictions)
        targets = self._targets(objects, maps, self._pyramid(predictions))
        focal = sigmoid_focal_loss_jit(maps.logits.flatten(0, 1), targets.scores, **self.focal)
        box_losses = self._box_losses(maps, targets.cells, objects.boxes[targets.instances])
        positives = len(targets.cells)
        get_event_storage().put_scalar("num_pos_cells", positives / len(instances))
        scale = self.loss_weight / mean_over_workers(positives, maps.logits.device)
        return {
            "loss_fsaf_cls": focal.masked_fill(targets.ignored, 0).sum() * scale,
            "loss_fsaf_box": box_losses.sum() * scale,
        }

    def choose_levels(self, predictions: Predictions, instances: list[Instances]) -> list[Tensor]:
        """The level that each instance would choose in training; int64 Tensor[M] per image.

        Raises:
            ValueError: an instance has no area.
        """
        objects, counts = Objects.of(instances), [len(i) for i in instances]
        if sum(counts) != len(objects.boxes):
            raise ValueError("instances: one has no area and so chooses no level; leave it out.")
        effective = region_cells(objects.boxes, self.effective, self._pyramid(predictions))
        return list(self._select(objects, _join(predictions), effective).split(counts))

    def _pyramid(self, predictions: Predictions) -> Pyramid:
        return Pyramid(predictions.sizes, self.strides)

    @torch.no_grad()
    def _targets(self, objects: Objects, maps: _Maps, pyramid: Pyramid) -> Targets:
        effective = region_cells(objects.boxes, self.effective, pyramid)
        ignored = region_cells(objects.boxes, self.ignored, pyramid)
        chosen = self._select(objects, maps, effective)
        return assign_targets(
            objects, effective, ignored, chosen, maps.logits.shape, self.other_levels
        )

    @torch.no_grad()
    def _select(self, objects: Objects, maps: _Maps, effective: Region) -> Tensor:
        """Online feature selection: each instance's losses over its whole effective regions."""
        cells = objects.image[effective.instance] * maps.logits.shape[1] + effective.cell
        logits = maps.logits.flatten(0, 1)[cells]
        scores = torch.zeros_like(logits)
        scores.scatter_(1, objects.classes[effective.instance][:, None], 1)
        losses = sigmoid_focal_loss_jit(logits, scores, **self.focal).sum(dim=1)
        losses += self._box_losses(maps, cells, objects.boxes[effective.instance])
        return select_levels(effective, losses, (len(objects.boxes), len(self.strides)))

    def _box_losses(self, maps: _Maps, cells: Tensor, wanted: Tensor) -> Tensor:
        """Of the boxes that cells predict; cell r of image n is n * R + r."""
        distances = maps.distances.flatten(0, 1)[cells]
        return self.box_loss(self._decode(distances, maps.cells[cells % len(maps.cells)]), wanted)

    def _decode(self, distances: Tensor, squares: Tensor) -> Tensor:
        return self.box_transform.apply_deltas(distances.float() * self.box_scale, squares)

    # ------------------------------------------------------------------------ inference

    def candidates(
        self,
        predictions: Predictions,
        image: int,
        image_size: tuple[int, int],
        *,
        score_thresh: float,
        topk: int,
    ) -> Instances:
        """The boxes of one image that non-maximum suppression chooses from.

        Args:
            predictions: of the batch.
            image: number of the image in the batch.
            image_size: its (height, width), pixels.
            score_thresh: scores above it count.
            topk: boxes per level at most.

        Returns:
            `pred_boxes`, `scores`, `pred_classes`.
        """
        found = []
        for logits, distances, cells, _ in zip(*predictions, strict=True):
            scores, places, classes = best_candidates(logits[image].sigmoid(), score_thresh, topk)
            boxes = Boxes(self._decode(distances[image][places], cells[places]))
            found.append(
                Instances(image_size, pred_boxes=boxes, scores=scores, pred_classes=classes)
            )
        return Instances.cat(found)
