"""`selective_roi_pool` in plain PyTorch: the oracle of the tests, and the op itself wherever no
compiled kernel exists.

The cells of a bank are rows of a table [N * H * W * B, C], and a bin is a ragged list of such rows:
their mean is `torch.nn.functional.embedding_bag`, their maximum a segmented reduction that also
names the row it comes from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .merged_reference import Request, check_request, rois_of_levels
from .reference import check_values, computed_in, ragged_ranges

OP = "selective_roi_pool"
MODES = ("max", "avg")
_FAR = 2.0**40  # as in csrc/bin_geometry.h
_LOWEST = torch.finfo(torch.float32).min  # where a maximum starts, in every dtype: as in roi_pool
_MAX_VALUES_AT_ONCE = 2**24  # values gathered at once: bounds the memory for huge RoIs


class PoolRequest(NamedTuple):
    """What forward and backward of the op share, with the op's own names and order."""

    rois: Tensor
    levels: Tensor | None
    bank_index: Tensor
    spatial_scales: Sequence[float]
    mode: str

    def check(self, sizes: Sequence[Sequence[int]], output_size: Sequence[int]) -> Request:
        """Raises RuntimeError naming the argument whose shape does not fit; reads no values.

        Args:
            sizes: (N, B, C, H, W) per level.
            output_size: bins (PH, PW).

        Returns:
            The request in the form of the sibling op, of one source.
        """
        request = Request(
            self.rois, self.levels, [self.bank_index], [], self.spatial_scales, 0, "sum", OP
        )
        request.check(self.mode in MODES, f"mode must be one of {MODES}, got {self.mode!r}")
        check_request(sizes, output_size, request)
        return request


class Windows(NamedTuple):
    """The cells that the bins of some RoIs cover along one axis.

    Attributes:
        first: Tensor[K, P] int64, the first cell.
        counts: Tensor[K, P] int64, how many; 0 for a bin off the map.
    """

    first: Tensor
    counts: Tensor


def _round(x: Tensor) -> Tensor:
    """To whole numbers in int64, halves away from zero."""
    whole = x.trunc()
    rounded = whole + ((x - whole).abs() >= 0.5) * x.sign()
    return rounded.nan_to_num(-_FAR).clamp(-_FAR, _FAR).long()


def _axis_windows(low: Tensor, high: Tensor, bins: int, size: int) -> Windows:
    """Cuts RoIs into bins along one axis.

    Args:
        low, high: Tensor[K], the RoIs' sides in cells, not yet rounded.
        bins: bins per RoI.
        size: cells of the axis.
    """
    start, end = _round(low), _round(high)
    extent = (end - start + 1).clamp(min=1).to(low.dtype)
    # By a tensor: division by a number may be a product with its inverse.
    bin_size = (extent / torch.full_like(extent, bins))[:, None]
    edge = torch.arange(bins + 1, device=low.device, dtype=low.dtype)
    first = (start[:, None] + (edge[:-1] * bin_size).floor().long()).clamp(0, size)
    stop = (start[:, None] + (edge[1:] * bin_size).ceil().long()).clamp(0, size)
    return Windows(first, (stop - first).clamp(min=0))


class BinCells(NamedTuple):
    """The cells of every bin of some RoIs, bin after bin, each row-major.

    Attributes:
        row: Tensor[T] int64, a row of the table [N * H * W * B, C].
        bin: Tensor[T] int64, the bin that covers it, counted through all RoIs.
        counts: Tensor[bins] int64, how many each bin covers.
    """

    row: Tensor
    bin: Tensor
    counts: Tensor


def _cells_of_bins(size: Sequence[int], rois: Tensor, index: Tensor, scale: float) -> BinCells:
    """For rois Tensor[K, 5] in the dtype that is computed with, and index Tensor[K, PH, PW]."""
    _, maps, _, height, width = size
    x1, y1, x2, y2 = (rois[:, 1:] * scale).unbind(1)
    rows = _axis_windows(y1, y2, index.shape[1], height)
    columns = _axis_windows(x1, x2, index.shape[2], width)
    counts = (rows.counts[:, :, None] * columns.counts[:, None, :]).flatten()
    bin, position = ragged_ranges(counts)

    def of_bin(values: Tensor) -> Tensor:
        return values.expand(index.shape).flatten()[bin]

    per_row = of_bin(columns.counts[:, None, :])
    row = of_bin(rows.first[:, :, None]) + position // per_row
    column = of_bin(columns.first[:, None, :]) + position % per_row
    image = of_bin(rois[:, 0].long()[:, None, None])
    return BinCells(((image * height + row) * width + column) * maps + of_bin(index), bin, counts)


def _rois_at_once(size: Sequence[int], rois: Tensor, index: Tensor, scale: float) -> int:
    """How many RoIs to pool at once, so that the values of their bins stay within bounds."""
    sides = ((rois[:, 3:] - rois[:, 1:3]).abs() * scale).nan_to_num()
    seen = 1.0
    for side, cells, bins in zip(
        sides.unbind(1), (size[4], size[3]), (index.shape[2], index.shape[1]), strict=True
    ):
        seen *= float(side.max().clamp(max=cells)) + 2 * min(bins, cells) + 2
    return max(1, int(_MAX_VALUES_AT_ONCE / (seen * max(size[2], 1))))


def _parts(
    size: Sequence[int], rois: Tensor, index: Tensor, scale: float
) -> Iterator[tuple[slice, BinCells]]:
    """RoIs in parts, with the cells of their bins."""
    step = _rois_at_once(size, rois, index, scale)
    for first in range(0, len(rois), step):
        part = slice(first, first + step)
        yield part, _cells_of_bins(size, rois[part], index[part], scale)


def _winners(table: Tensor, cells: BinCells) -> Tensor:
    """Tensor[bins, C]: the row of the table that holds the first maximum of each bin and channel;
    -1 where nothing exceeds `_LOWEST`.
    """
    values = table[cells.row]
    values = torch.where(values > _LOWEST, values, _LOWEST)  # not a number: skipped
    bins, entries = len(cells.counts), len(cells.row)
    bin = cells.bin[:, None].expand_as(values)
    best = values.new_full((bins, values.shape[1]), _LOWEST).scatter_reduce(0, bin, values, "amax")
    wins = (values == best[cells.bin]) & (values > _LOWEST)
    place = torch.arange(entries, device=table.device)[:, None]
    place = torch.where(wins, place, entries)
    first = place.new_full(best.shape, entries).scatter_reduce(0, bin, place, "amin")
    return F.pad(cells.row, (0, 1), value=-1)[first]


def _pool_cells(table: Tensor, cells: BinCells, mode: str) -> Tensor:
    """Tensor[bins, C], differentiable in `table`."""
    if mode == "avg":
        first = cells.counts.cumsum(0) - cells.counts
        return F.embedding_bag(cells.row, table, first, mode="mean")
    row = _winners(table.detach(), cells)
    nothing = table.new_zeros(len(row)).masked_fill(cells.counts > 0, _LOWEST)
    return torch.where(row >= 0, table.gather(0, row.clamp(min=0)), nothing[:, None])


def _pool_level(bank: Tensor, rois: Tensor, index: Tensor, scale: float, mode: str) -> Tensor:
    """Tensor[K, C, PH, PW] of one level, differentiable in `bank`."""
    check_values(OP, bank, rois, index, scale)
    channels, size = bank.shape[2], tuple(bank.shape)
    if min(len(rois), bank.numel()) == 0:
        return bank.new_zeros(len(rois), channels, *index.shape[1:]) + 0 * bank.sum()
    table = bank.permute(0, 3, 4, 1, 2).reshape(-1, channels).to(computed_in(bank.dtype))
    rois, index = rois.to(table.dtype), index.long()
    pooled = [_pool_cells(table, cells, mode) for _, cells in _parts(size, rois, index, scale)]
    bins = torch.cat(pooled).view(len(rois), *index.shape[1:], channels)
    return bins.permute(0, 3, 1, 2).to(bank.dtype)


def selective_roi_pool_reference(
    inputs: Sequence[Tensor], output_size: Sequence[int], request: PoolRequest
) -> Tensor:
    """The op in plain PyTorch, differentiable in `inputs`.

    Args:
        inputs: Tensor[N, B, C, H, W] per level; H and W differ.
        output_size: bins (PH, PW).
        request: the other arguments of the op.

    Returns:
        Tensor[K, C, PH, PW].

    Raises:
        RuntimeError: naming the argument that does not fit.
    """
    checked = request.check([x.shape for x in inputs], output_size)
    checked.check(
        all(x.dtype == inputs[0].dtype for x in inputs), "input must have one dtype in every level"
    )
    here = rois_of_levels(checked)
    index = request.bank_index.expand(len(request.rois), *output_size)
    pooled = [
        _pool_level(bank, request.rois[k], index[k], scale, request.mode)
        for bank, k, scale in zip(inputs, here, request.spatial_scales, strict=True)
    ]
    return torch.cat(pooled)[torch.cat(here).argsort()].contiguous()


def _level_gradient(
    grad_output: Tensor,
    bank: Tensor | None,
    size: Sequence[int],
    rois: Tensor,
    index: Tensor,
    scale: float,
) -> Tensor:
    """The gradient of one level's bank, Tensor[N, B, C, H, W]: of maxima where `bank` is given."""
    images, maps, channels, height, width = size
    compute = computed_in(grad_output.dtype)
    rois, index = rois.to(compute), index.long()
    grad_bins = grad_output.permute(0, 2, 3, 1).to(compute)
    grad_table = grad_bins.new_zeros(images * height * width * maps, channels)
    if min(len(rois), grad_table.numel()) > 0:
        table = None
        if bank is not None:
            table = bank.permute(0, 3, 4, 1, 2).reshape(-1, channels).to(compute)
        for part, cells in _parts(size, rois, index, scale):
            grads = grad_bins[part].reshape(-1, channels)
            if table is None:
                share = (grads / cells.counts.clamp(min=1)[:, None])[cells.bin]
                grad_table.index_add_(0, cells.row, share)
            else:
                row = _winners(table, cells)
                wins = row >= 0
                grad_table.scatter_add_(0, row.clamp(min=0), grads * wins)
    cells_first = grad_table.view(images, height, width, maps, channels).to(grad_output.dtype)
    return cells_first.permute(0, 3, 4, 1, 2)


def selective_roi_pool_backward_reference(
    grad_output: Tensor,
    inputs: Sequence[Tensor],
    sizes: Sequence[Sequence[int]],
    request: PoolRequest,
) -> list[Tensor]:
    """The gradients with respect to the inputs, Tensor[N, B, C, H, W] each.

    Args:
        grad_output: Tensor[K, C, PH, PW].
        inputs: the op's, needed for the gradient of a maximum; else they may be empty.
        sizes: their sizes.
        request: as in the forward.
    """
    output_size = grad_output.shape[2:]
    here = rois_of_levels(request.check(sizes, output_size))
    index = request.bank_index.expand(len(request.rois), *output_size)
    banks = inputs if request.mode == "max" else [None] * len(sizes)
    return [
        _level_gradient(grad_output[k], bank, size, request.rois[k], index[k], scale)
        for bank, size, k, scale in zip(banks, sizes, here, request.spatial_scales, strict=True)
    ]
