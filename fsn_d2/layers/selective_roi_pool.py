"""The op's sibling for bins of whole cells: the maximum or the mean over each bin."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import _pool_op  # noqa: F401  (registers torch.ops.fsn_d2.selective_roi_pool)
from ._traced_lists import own_list
from .selective_roi_align import pair


def selective_roi_pool(
    input: Tensor | Sequence[Tensor],
    rois: Tensor,
    bank_index: Tensor,
    output_size: int | tuple[int, int],
    spatial_scale: float | Sequence[float],
    mode: str = "max",
    levels: Tensor | None = None,
) -> Tensor:
    """Pools the cells of each bin of each RoI from the map of the bank that `bank_index` names.

    With one map (B = 1, index 0) and "max" this is RoI max pooling for batches of any size, equal
    to torchvision's `roi_pool`; with k * k maps and bin (i, j) reading map i * k + j it is R-FCN's
    position-sensitive RoI pooling, r_c(i, j) = sum of the bin's cells / their number (Dai et al.
    2016, equation 1), or its maximum.

    Rounding, as in `roi_pool`: an RoI covers the cells round(x1 * scale) to round(x2 * scale), both
    included, at least one; halves round away from zero. Of these w cells bin j of PW covers
    floor(j * w / PW) up to, not including, ceil((j + 1) * w / PW), clipped to the map, so that
    neighbours can share a cell. torchvision's `ps_roi_pool` leaves out the cell that x2 rounds to
    (w = round(x2 * scale) - round(x1 * scale), at least 1) and the last row and column of the map,
    but its gradient reaches them: it is wrong for bins that do. R-FCN's own layer rounds pixels
    before it scales them: from round(x1) * scale to round(x2 + 1) * scale, at least 0.1 cells.

    Args:
        input: Tensor[N, B, C, H, W], the banks of N images, or one such per level of a pyramid,
            where H and W differ. As in `selective_roi_align`.
        rois: Tensor[K, 5] of (batch index, x1, y1, x2, y2), image coordinates in pixels, any finite
            values.
        bank_index: integer Tensor broadcastable to [K, PH, PW], values in [0, B).
        output_size: bins (PH, PW), or one number for both.
        spatial_scale: cells per image pixel, 1 / stride; one number per level if `input` is a list.
        mode: "max" or "avg".
        levels: integer Tensor[K], the level of each RoI; None where there is one level.

    Returns:
        Tensor[K, C, PH, PW], contiguous, in the dtype of `input`; 0 for a bin without cells.
        Differentiable in `input`: the gradient of a maximum goes to its first cell in row-major
        order, that of a mean to all cells alike. "avg" has second derivatives too. float16 and
        bfloat16 are computed in float32 and rounded once.

        As in `roi_pool` a maximum passes over what is not a number; a bin of which no cell exceeds
        the lowest finite number of float32 gives that number and has no gradient.

    Raises:
        RuntimeError: an argument does not fit: a shape, dtype or device, a batch index, level or
            bank index out of range, a RoI that is not finite, an unknown mode. The message names
            it. On CUDA, where looking at values would wait for the device, those out of range or
            not finite give NaN and no gradient instead.
    """
    return torch.ops.fsn_d2.selective_roi_pool(
        own_list([input] if isinstance(input, Tensor) else input, rois),
        rois,
        levels,
        bank_index,
        pair(output_size),
        [spatial_scale] if isinstance(spatial_scale, (int, float)) else list(spatial_scale),
        mode,
    )
