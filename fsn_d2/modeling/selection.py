"""Which map of an attention bank a bin reads (FSN, section 3): by where the bin or its RoI lies,
and by the RoI's shape. Every index broadcasts to [K, PH, PW].
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def _cells_of(centers: Tensor, grid: int) -> Tensor:
    """Rows, columns of a grid x grid raster for centres in [0, 1]; outside ones are clamped."""
    row, column = (centers * grid).floor().clamp(0, grid - 1).long().unbind(-1)
    return row * grid + column


def sub_region_in_roi(output_size: tuple[int, int], grid: int) -> Tensor:
    """The sub-region of the RoI in which the centre of each bin lies (the paper's reading).

    Returns:
        int64 Tensor[1, PH, PW], values in [0, grid * grid), row by row.
    """
    centers = [(torch.arange(bins) + 0.5) / bins for bins in output_size]
    return _cells_of(torch.cartesian_prod(*centers), grid).view(1, *output_size)


def sub_region_in_image(rois: Tensor, image_sizes: list, grid: int) -> Tensor:
    """The part of the image in which the centre of each RoI lies (another reading of the idea).

    Args:
        rois: Tensor[K, 5] of (batch index, x1, y1, x2, y2), pixels.
        image_sizes: per image (height, width) without padding; numbers, which a trace keeps, or
            tensors.
        grid: rows and columns of the raster.

    Returns:
        int64 Tensor[K, 1, 1], values in [0, grid * grid), row by row.
    """
    if not image_sizes:
        return torch.zeros(0, 1, 1, dtype=torch.int64, device=rois.device)
    sides = torch.stack([torch.as_tensor(side) for size in image_sizes for side in size])
    sizes = sides.view(-1, 2).to(rois, non_blocking=True)
    centers_xy = (rois[:, 1:3] + rois[:, 3:5]) / 2
    centers = centers_xy.flip(1) / sizes[rois[:, 0].long()]
    return _cells_of(centers, grid)[:, None, None]


def nearest_ratio(rois: Tensor, ratios: list[float]) -> Tensor:
    """The aspect ratio nearest to each RoI's own on a logarithmic scale.

    Args:
        rois: Tensor[K, 5] of (batch index, x1, y1, x2, y2), pixels.
        ratios: height / width, positive.

    Returns:
        int64 Tensor[K, 1, 1], values in [0, len(ratios)).
    """
    sides = (rois[:, 3:5] - rois[:, 1:3]).clamp(min=torch.finfo(rois.dtype).tiny)
    log_ratio = sides[:, 1].log() - sides[:, 0].log()
    # By numbers: to make a tensor of them on a GPU is to wait for it.
    distances = [(log_ratio - math.log(ratio)).abs() for ratio in ratios]
    return torch.stack(distances, dim=1).argmin(dim=1)[:, None, None]
