"""What every cell of a pyramid has to learn, once each instance has its level (FSAF, 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from detectron2.structures import Instances
from torch import Tensor

from .regions import Region


class Objects(NamedTuple):
    """The objects of a batch, those of all images in one row.

    Attributes:
        boxes: float32 Tensor[M, 4] of (x1, y1, x2, y2), pixels; every box has an area.
        classes: int64 Tensor[M].
        image: int64 Tensor[M], number of the image in the batch.
    """

    boxes: Tensor
    classes: Tensor
    image: Tensor

    @classmethod
    def of(cls, instances: list[Instances]) -> Objects:
        """Gathers `gt_boxes` and `gt_classes`; a box without area shows nothing and is left out."""
        boxes = torch.cat([i.gt_boxes.tensor for i in instances]).float()
        classes = torch.cat([i.gt_classes for i in instances])
        counts = torch.tensor([len(i) for i in instances], device=boxes.device)
        image = torch.arange(len(counts), device=boxes.device).repeat_interleave(counts)
        seen = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
        return cls(boxes[seen], classes[seen], image[seen])

    @property
    def areas(self) -> Tensor:
        return (self.boxes[:, 2:] - self.boxes[:, :2]).prod(dim=1)


class Targets(NamedTuple):
    """The ground truth of all cells of a batch. R: cells of an image; cell r of image n is nR + r.

    Attributes:
        cells: int64 Tensor[Q], the positive cells.
        instances: int64 Tensor[Q], the object that each positive cell has to find.
        scores: float32 Tensor[N * R, K], 1 on a positive cell's class, else 0.
        ignored: bool Tensor[N * R, K], scores that take no part in the loss.
    """

    cells: Tensor
    instances: Tensor
    scores: Tensor
    ignored: Tensor


def _smallest(cells: Tensor, instances: Tensor, areas: Tensor, num_cells: int) -> Tensor:
    """Per cell the smallest of its instances, -1 where there is none; the first of equal ones."""
    order = areas.argsort(stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    best = order.new_full((num_cells,), len(order))
    best.scatter_reduce_(0, cells, rank[instances], "amin")
    return torch.cat([order, order.new_full((1,), -1)])[best]


def assign_targets(
    objects: Objects,
    effective: Region,
    ignored: Region,
    chosen: Tensor,
    shape: Sequence[int],
    other_levels: str,
) -> Targets:
    """Paints the objects on the class maps of the levels that they chose (FSAF, section 3.2).

    A cell in the effective regions of several objects of one level learns the smallest. On the map
    of an object's own class, the cells of its ignored region count neither as object nor as
    background, unless they are positive: on the chosen level and, by `other_levels`, on
    "paper": the two adjacent levels; "mmdet": all others. Maps of other classes are not affected.

    Args:
        objects: M of them.
        effective: the objects' effective regions on all levels.
        ignored: their ignored regions, which hold the effective ones.
        chosen: int64 Tensor[M], each object's level.
        shape: number of images N, of cells per image R and of classes K.
        other_levels: "paper" or "mmdet".
    """
    num_images, num_cells, num_classes = shape
    own = effective.where(effective.level == chosen[effective.instance])
    owner = _smallest(
        objects.image[own.instance] * num_cells + own.cell,
        own.instance,
        objects.areas,
        num_images * num_cells,
    )
    cells = (owner >= 0).nonzero().squeeze(1)
    instances = owner[cells]
    scores = objects.boxes.new_zeros(num_images * num_cells, num_classes)
    scores[cells, objects.classes[instances]] = 1

    if other_levels == "paper":
        ignored = ignored.where((ignored.level - chosen[ignored.instance]).abs() <= 1)
    left_out = torch.zeros_like(scores, dtype=torch.bool)
    unsure = objects.image[ignored.instance] * num_cells + ignored.cell
    left_out[unsure, objects.classes[ignored.instance]] = True
    left_out &= scores == 0
    return Targets(cells, instances, scores, left_out)
