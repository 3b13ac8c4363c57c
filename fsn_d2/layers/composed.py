"""The ops of this project composed of torchvision's `roi_align` and `roi_pool`, for export to a
format that has these two and no other, such as ONNX.

To them a bank of B maps is a batch of B images: map b of image n is image n * B + b. An RoI all of
whose bins read one map stays what it is; one whose bins read different maps is cut, and every bin
is pooled as an RoI of its own. So each bank and pyramid level is one call, whatever its number of
maps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torchvision.ops import roi_align, roi_pool

# Up to here coordinates, in cells, are precise enough for `_clear_of_steps`.
_FAR = 2.0**11


class StockOps(TorchFunctionMode):
    """A context in which `torch.ops.fsn_d2` runs as, and is traced as, stock ops.

    The results are the ops' own up to rounding. Inference alone: slower, and without checks of the
    arguments.
    """

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.fsn_d2.selective_roi_align:
            func = composed_roi_align
        elif func is torch.ops.fsn_d2.selective_roi_pool:
            func = composed_roi_pool
        elif func is Tensor.unflatten:  # behind which PyTorch's ONNX exporter keeps all sizes fixed
            func = _unflatten
        return func(*args, **(kwargs or {}))


def _unflatten(x: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
    return x.reshape(*x.shape[:dim], *sizes, *x.shape[dim:][1:])


def composed_roi_align(
    inputs: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    bank_indices: Sequence[Tensor],
    origins: Sequence[int],
    output_size: Sequence[int],
    spatial_scales: Sequence[float],
    sampling_ratio: int,
    merge: str,
) -> Tensor:
    """`torch.ops.fsn_d2.selective_roi_align`; arguments and result as there."""
    num_levels = len(spatial_scales)
    indices = [_per_roi(index, rois) for index in bank_indices]

    def pool_level(level: int, here: Tensor | slice) -> Tensor:
        banks, scale = inputs[level::num_levels], spatial_scales[level]
        moved = _moved(banks, origins)
        pooled = [
            _align(bank, rois[here], index[here], output_size, scale, sampling_ratio)
            for bank, index in zip(moved, indices, strict=True)
        ]
        return _merged(pooled, merge)

    return _level_by_level(pool_level, levels, num_levels)


def composed_roi_pool(
    inputs: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    bank_index: Tensor,
    output_size: Sequence[int],
    spatial_scales: Sequence[float],
    mode: str,
) -> Tensor:
    """`torch.ops.fsn_d2.selective_roi_pool`; arguments and result as there."""
    pool = {"max": _maxima, "avg": _means}[mode]
    index = _per_roi(bank_index, rois)

    def pool_level(level: int, here: Tensor | slice) -> Tensor:
        return pool(inputs[level], rois[here], index[here], output_size, spatial_scales[level])

    return _level_by_level(pool_level, levels, len(spatial_scales))


def _level_by_level(
    pool_level: Callable[[int, Tensor | slice], Tensor], levels: Tensor | None, num_levels: int
) -> Tensor:
    """Pools the RoIs of each level from it, and puts the results into the RoIs' order."""
    if levels is None:
        return pool_level(0, slice(None))
    members = [(levels == level).nonzero().squeeze(1) for level in range(num_levels)]
    pooled = torch.cat([pool_level(level, here) for level, here in enumerate(members)])
    return pooled[torch.cat(members).argsort()]


def _per_roi(index: Tensor, rois: Tensor) -> Tensor:
    """A bank index as Tensor[K, PH, PW], or [K, 1, 1] where all bins of an RoI read one map."""
    whole = index[(None,) * (3 - index.dim())]
    return whole.expand(rois.shape[0], *whole.shape[1:])


def _moved(banks: Sequence[Tensor], origins: Sequence[int]) -> Sequence[Tensor]:
    """Every bank in the extent of the first, whose maps start at their origins."""
    if not origins:
        return banks
    height, width = banks[0].shape[3:]
    starts = iter(zip(origins[::2], origins[1::2], strict=True))
    return [
        torch.stack(
            [
                one_map[..., row : row + height, column : column + width]
                for one_map, (row, column) in zip(bank.unbind(1), starts, strict=False)
            ],
            dim=1,
        )
        for bank in banks
    ]


def _merged(pooled: list[Tensor], merge: str) -> Tensor:
    if merge == "stack":
        return torch.cat(pooled, dim=1)
    if merge == "sum":
        return sum(pooled[1:], pooled[0])
    attention = sum(pooled[2:], pooled[1])
    return pooled[0] * (attention.relu() if merge == "multiply_relu" else attention)


# ------------------------------------------------------------------------------ RoIs and bins


def _reads_one_map(index: Tensor) -> bool:
    """Whether all bins of an RoI read the same map."""
    return all(size == 1 for size in index.shape[1:])


def _images(bank: Tensor) -> Tensor:
    """Tensor[N * B, C, H, W]: every map an image."""
    return bank.flatten(0, 1)


def _whole_rois(bank: Tensor, rois: Tensor, index: Tensor) -> Tensor:
    """Tensor[K, 5], for an index that has one map per RoI."""
    image = rois[:, 0] * bank.shape[1] + index.flatten().to(rois.dtype)
    return torch.cat([image[:, None], rois[:, 1:]], dim=1)


def _bins(bank: Tensor, rois: Tensor, index: Tensor, rows: Sides, columns: Sides) -> Tensor:
    """Tensor[K * PH * PW, 5]: every bin an RoI.

    Args:
        rows, columns: (low, high) of the bins along each axis, Tensor[K, P], cells.
    """
    image = (rois[:, 0] * bank.shape[1])[:, None, None] + index.to(rois.dtype)
    y1, y2 = (side[:, :, None] for side in rows)
    x1, x2 = (side[:, None, :] for side in columns)
    return torch.stack(torch.broadcast_tensors(image, x1, y1, x2, y2), dim=3).flatten(0, 2)


Sides = tuple[Tensor, Tensor]


def _from_bins(pooled: Tensor, output_size: Sequence[int]) -> Tensor:
    """Tensor[K, C, PH, PW] from Tensor[K * PH * PW, C, 1, 1]."""
    return pooled.reshape(-1, *output_size, pooled.shape[1]).permute(0, 3, 1, 2)


# ------------------------------------------------------------------------------ bilinear samples


def _align(
    bank: Tensor,
    rois: Tensor,
    index: Tensor,
    output_size: Sequence[int],
    scale: float,
    sampling_ratio: int,
) -> Tensor:
    if _reads_one_map(index):
        whole = _whole_rois(bank, rois, index)
        return roi_align(_images(bank), whole, output_size, scale, sampling_ratio, aligned=True)
    x1, y1, x2, y2 = (rois[:, 1:] * scale - 0.5).unbind(1)
    adaptive = sampling_ratio == 0
    rows = _bilinear_sides(y1, y2, output_size[0], adaptive)
    columns = _bilinear_sides(x1, x2, output_size[1], adaptive)
    bins = _bins(bank, rois, index, rows, columns)
    pooled = roi_align(_images(bank), bins, (1, 1), 1.0, sampling_ratio, aligned=True)
    return _from_bins(pooled, output_size)


def _bilinear_sides(low: Tensor, high: Tensor, bins: int, adaptive: bool) -> Sides:
    """Cuts RoIs, given in cells whose centres are whole numbers, into bins."""
    size = ((high - low) / bins)[:, None]
    place = torch.arange(bins, dtype=low.dtype, device=low.device) + 0.5
    centre = low[:, None] + 0.5 + place * size
    half = (_clear_of_steps(size) if adaptive else size) / 2
    return centre - half, centre + half


def _clear_of_steps(size: Tensor) -> Tensor:
    """Keeps sizes of bins off whole numbers of cells, without passing one.

    An adaptive sampling ratio is the size rounded up. A bin on its own has the RoI's size / bins up
    to rounding, which at a whole number would decide between two ratios.
    """
    ratio = size.ceil()
    margin = _FAR * torch.finfo(size.dtype).eps
    return torch.minimum(torch.maximum(size, ratio - 1 + margin), ratio - margin)


# ------------------------------------------------------------------------------ bins of whole cells


def _maxima(
    bank: Tensor, rois: Tensor, index: Tensor, output_size: Sequence[int], scale: float
) -> Tensor:
    if _reads_one_map(index):
        return roi_pool(_images(bank), _whole_rois(bank, rois, index), output_size, scale)
    rows, columns = _whole_cell_sides(bank, rois, output_size, scale)
    last = [(first, stop - 1) for first, stop in (rows, columns)]
    pooled = roi_pool(_images(bank), _bins(bank, rois, index, *last), (1, 1), 1.0)
    has_cells = (rows[1] > rows[0])[:, None, :, None] & (columns[1] > columns[0])[:, None, None, :]
    # The cell that an empty bin was given to read may be infinite.
    return _from_bins(pooled, output_size).masked_fill(~has_cells, 0)


def _means(
    bank: Tensor, rois: Tensor, index: Tensor, output_size: Sequence[int], scale: float
) -> Tensor:
    # Samples of a bin of whole cells, one per cell, fall on the cells.
    rows, columns = _whole_cell_sides(bank, rois, output_size, scale)
    bins = _bins(bank, rois, index, rows, columns)
    pooled = roi_align(_images(bank), bins, (1, 1), 1.0, sampling_ratio=0, aligned=True)
    return _from_bins(pooled, output_size)


def _whole_cell_sides(
    bank: Tensor, rois: Tensor, output_size: Sequence[int], scale: float
) -> tuple[Sides, Sides]:
    """(first cell, cell behind the last) of the bins along y and along x."""
    x1, y1, x2, y2 = (rois[:, 1:] * scale).unbind(1)
    height, width = bank.shape[3:]
    rows = _cells(y1, y2, output_size[0], height)
    return rows, _cells(x1, x2, output_size[1], width)


def _cells(low: Tensor, high: Tensor, bins: int, size: int) -> Sides:
    """Bins of whole cells along an axis of `size` cells, as the op rounds them."""
    start = _round(low)
    extent = (_round(high) - start + 1).clamp(min=1)
    # By a tensor: division by a number may be a product with its inverse.
    bin_size = (extent / torch.full_like(extent, bins))[:, None]
    edge = torch.arange(bins + 1, dtype=low.dtype, device=low.device)
    first = start[:, None] + (edge[:-1] * bin_size).floor()
    stop = start[:, None] + (edge[1:] * bin_size).ceil()
    return first.clamp(min=0, max=size), stop.clamp(min=0, max=size)


def _round(x: Tensor) -> Tensor:
    """To whole numbers, halves away from zero."""
    whole = x.abs().floor()
    return (whole + (x.abs() - whole >= 0.5)) * x.sign()
