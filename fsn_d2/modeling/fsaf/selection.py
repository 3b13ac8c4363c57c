"""Which pyramid level learns an instance: by the losses (FSAF, section 3.3), or by size alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .regions import Region

# An object of 224 x 224 pixels, the size of ImageNet's crops, lies on P5 by size (the paper, 4.1).
CANONICAL_SIZE, CANONICAL_LEVEL = 224, 5


@torch.no_grad()
def select_levels(effective: Region, losses: Tensor, shape: tuple[int, int]) -> Tensor:
    """The level on which the mean loss over an instance's effective region is smallest.

    FSAF's online feature selection, section 3.3.

    Args:
        effective: the effective regions, at least one cell per instance and level.
        losses: Tensor[P], focal plus box loss of each entry of the regions.
        shape: number of instances M and of levels L.

    Returns:
        int64 Tensor[M], values in [0, L).
    """
    slot = effective.instance * shape[1] + effective.level
    sums = losses.new_zeros(shape[0] * shape[1]).index_add_(0, slot, losses)
    counts = torch.bincount(slot, minlength=len(sums))
    return (sums / counts).view(shape).argmin(dim=1)


def levels_by_size(boxes: Tensor, strides: list[int]) -> Tensor:
    """The level that an instance's size alone would choose: floor(5 + log2(sqrt(w h) / 224)).

    What FSAF compares its selection with, section 4.1.

    Args:
        boxes: Tensor[M, 4] of (x1, y1, x2, y2), pixels.
        strides: of the levels, powers of 2 that double; level l has stride 2 ** l.

    Returns:
        int64 Tensor[M], index into `strides`; sizes beyond the outer levels go to these.
    """
    size = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1e-6).prod(dim=1).sqrt()
    level = (CANONICAL_LEVEL + (size / CANONICAL_SIZE).log2()).floor().long()
    return (level - round(math.log2(strides[0]))).clamp(0, len(strides) - 1)
