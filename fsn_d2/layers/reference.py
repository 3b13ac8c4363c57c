"""The op in plain PyTorch: the oracle of the tests, and the op itself wherever no compiled kernel
exists.

Bilinear pooling is a weighted sum of cells of the map, and cells of a bank are rows of a table
[N * H * W * B, C]; so pooling is `torch.nn.functional.embedding_bag` with one bag per bin. That is
differentiable, needs no compiler and runs on every device.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_SAMPLING_RATIO = 1024
_OP = "selective_roi_align"
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_MAX_GRID = 2**24  # as in csrc/cpu/roi_geometry.h
_MAX_ROWS_AT_ONCE = 2**21  # entries of bags made at once: bounds the memory for huge RoIs
_MAX_VALUES_AT_ONCE = 2**26  # the same for the gradients of these entries, C values each


class Taps(NamedTuple):
    """The cells that the bins of some RoIs read along one axis: a ragged list, bin after bin.

    Attributes:
        cell: Tensor[T] int64, a cell of the axis; two consecutive ones per sample.
        weight: Tensor[T], its weight.
        counts: Tensor[K, P] int64, how many entries each of the P bins of each RoI has.
        first: Tensor[K, P] int64, where they start.
        grid: Tensor[K], samples along one side of a bin (not positive: none).
    """

    cell: Tensor
    weight: Tensor
    counts: Tensor
    first: Tensor
    grid: Tensor


def check_shapes(
    op: str, input_size: list[int], rois: Tensor, bank_index: Tensor, output_size: list[int]
) -> None:
    """Raises RuntimeError naming the argument of `op` whose shape does not fit; reads no values."""
    torch._check(
        len(input_size) == 5,
        lambda: f"{op}: input must have the shape [N, B, C, H, W], got {input_size}",
    )
    torch._check(
        rois.dim() == 2 and rois.shape[1] == 5,
        lambda: f"{op}: rois must have the shape [K, 5], got {list(rois.shape)}",
    )
    torch._check(
        len(output_size) == 2 and min(output_size) >= 1,
        lambda: f"{op}: output_size must be at least 1 x 1, got {output_size}",
    )
    target = [rois.shape[0], *output_size]
    sizes = [1] * (3 - bank_index.dim()) + list(bank_index.shape)
    torch._check(
        # Equality first: a K that depends on data can be compared with itself, not with 1.
        len(sizes) == 3 and all(s == t or s == 1 for s, t in zip(sizes, target, strict=True)),
        lambda: (
            f"{op}: bank_index must broadcast to [K, PH, PW] = {target}, "
            f"got {list(bank_index.shape)}"
        ),
    )


def check_values(
    op: str, input: Tensor, rois: Tensor, bank_index: Tensor, spatial_scale: float
) -> None:
    """Raises RuntimeError naming the argument of `op` whose dtype, device or values do not fit."""
    images, maps = input.shape[:2]
    problem = ""
    if not input.is_floating_point():
        problem = f"input must be of a floating dtype, got {input.dtype}"
    elif not rois.is_floating_point():
        problem = f"rois must be of a floating dtype, got {rois.dtype}"
    elif bank_index.dtype not in INTEGERS:
        problem = f"bank_index must be an integer tensor, got {bank_index.dtype}"
    elif not (rois.device == bank_index.device == input.device):
        problem = "input, rois and bank_index must be on the same device"
    elif not 0 < spatial_scale < float("inf"):
        problem = f"spatial_scale must be positive and finite, got {spatial_scale}"
    elif not bool(torch.isfinite(rois[:, 1:].to(computed_in(input.dtype))).all()):
        problem = f"rois must be finite in {computed_in(input.dtype)}, in which they are read"
    elif not bool(((rois[:, 0] >= 0) & (rois[:, 0] < images)).all()):
        problem = f"rois[:, 0], the batch index, must lie in [0, {images})"
    elif not bool(((bank_index >= 0) & (bank_index < maps)).all()):
        problem = f"bank_index must lie in [0, {maps}), the number of maps in the bank"
    if problem:
        raise RuntimeError(f"{op}: {problem}")


def _check_sampling_ratio(sampling_ratio: int) -> None:
    if not 0 <= sampling_ratio <= MAX_SAMPLING_RATIO:
        raise RuntimeError(
            f"{_OP}: sampling_ratio must lie in 0..{MAX_SAMPLING_RATIO}, got {sampling_ratio}"
        )


def computed_in(dtype: torch.dtype) -> torch.dtype:
    """The dtype that banks of `dtype` are pooled in: float64 for itself, float32 for the others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def ragged_ranges(counts: Tensor) -> tuple[Tensor, Tensor]:
    """For counts Tensor[M]: (owner, position within the owner), both of length counts.sum()."""
    owner = torch.repeat_interleave(counts)
    first = counts.cumsum(0) - counts
    return owner, torch.arange(len(owner), device=counts.device) - first[owner]


def _visible_samples(start: Tensor, step: Tensor, grid: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """First and past-the-last sample of each bin that can lie on the map, one of slack each way."""
    limit = grid[:, None].clamp(min=0).double().expand(start.shape)
    edges = torch.stack(
        [(-1.0 - start.double()) / step.double(), (size - start.double()) / step.double()]
    )
    low = torch.minimum(edges.amin(0).floor().nan_to_num() - 2, limit).clamp(min=0)
    high = torch.minimum(edges.amax(0).ceil().nan_to_num() + 2, limit).clamp(min=0)
    still = step == 0  # every sample at one place: visit all
    return low.masked_fill(still, 0).long(), torch.where(still, limit, high).long()


def _axis_taps(start: Tensor, extent: Tensor, bins: int, sampling_ratio: int, size: int) -> Taps:
    """Samples each bin along one axis.

    Args:
        start, extent: Tensor[K], the RoIs along this axis, in cells.
        bins: bins per RoI.
        sampling_ratio: samples per bin; 0: one per cell, rounded up.
        size: cells of the axis.
    """
    bin_size = (extent / bins)[:, None]
    grid = torch.ceil(bin_size[:, 0].clamp(-1, _MAX_GRID))
    if sampling_ratio > 0:
        grid = torch.full_like(grid, sampling_ratio)
    bin_start = start[:, None] + torch.arange(bins, device=start.device) * bin_size
    finite = torch.isfinite(bin_start) & torch.isfinite(bin_size)
    low, high = _visible_samples(bin_start, (bin_size / grid[:, None]), grid, size)
    counts = torch.where(finite & (size > 0), (high - low).clamp(min=0), 0)

    owner, sample = ragged_ranges(counts.flatten())
    roi = owner // bins
    sample = (sample + low.flatten()[owner]).to(start.dtype)
    position = bin_start.flatten()[owner] + (sample + 0.5) * bin_size[roi, 0] / grid[roi]
    on_map = (position >= -1) & (position <= size)
    inside = torch.where(on_map, position, 0).clamp(min=0)
    low_cell = inside.long().clamp(max=size - 1)
    high_cell = (low_cell + 1).clamp(max=size - 1)
    fraction = torch.where(high_cell > low_cell, inside - low_cell, 0)
    weight = torch.stack([1 - fraction, fraction], 1) * on_map[:, None]
    taps = 2 * counts
    first = taps.flatten().cumsum(0).view(taps.shape) - taps
    cell = torch.stack([low_cell, high_cell], 1).flatten()
    return Taps(cell, weight.flatten(), taps, first, grid)


class Bags(NamedTuple):
    """What every bin of some RoIs reads: rows of the table of cells, bin after bin.

    Attributes:
        row: Tensor[T] int64, a row of the table [N * H * W * B, C].
        weight: Tensor[T], its weight.
        bin: Tensor[T] int64, the bin that reads it, counted through all RoIs.
        first: Tensor[bins] int64, where each bin's entries start.
    """

    row: Tensor
    weight: Tensor
    bin: Tensor
    first: Tensor


def _collect_bags(
    input_size: list[int], rois: Tensor, index: Tensor, scale: float, ratio: int
) -> Bags:
    """For rois Tensor[K, 5] and index Tensor[K, PH, PW]."""
    _, maps, _, height, width = input_size
    bin_rows, bin_columns = index.shape[1:]
    x1, y1, x2, y2 = (rois[:, 1:] * scale - 0.5).unbind(1)
    rows = _axis_taps(y1, y2 - y1, bin_rows, ratio, height)
    columns = _axis_taps(x1, x2 - x1, bin_columns, ratio, width)

    per_row, per_column = rows.counts[:, :, None], columns.counts[:, None, :]
    bag_size = (per_row * per_column).flatten()
    bag, position = ragged_ranges(bag_size)

    def of_bag(values: Tensor) -> Tensor:
        return values.expand(index.shape).flatten()[bag]

    taps_per_row = of_bag(per_column)
    row = of_bag(rows.first[:, :, None]) + position // taps_per_row
    column = of_bag(columns.first[:, None, :]) + position % taps_per_row
    image = of_bag(rois[:, 0].long()[:, None, None])
    cell = ((image * height + rows.cell[row]) * width + columns.cell[column]) * maps
    samples = (rows.grid.double() * columns.grid.double()).clamp(min=1)
    share = of_bag((1 / samples).to(rois.dtype)[:, None, None])
    weight = rows.weight[row] * columns.weight[column] * share
    kept = weight != 0  # like the kernels: what has no weight is not read, infinite or not
    kept_before = F.pad(kept.cumsum(0), (1, 0))
    first = kept_before[bag_size.cumsum(0) - bag_size]
    return Bags((cell + of_bag(index))[kept], weight[kept], bag[kept], first)


def _rois_at_once(
    input_size: list[int], rois: Tensor, scale: float, ratio: int, bins: int, max_rows: float
) -> int:
    """How many RoIs to pool at once, so that their bags have at most `max_rows` entries."""
    if ratio > 0:
        rows = 4.0 * ratio * ratio * bins
    else:
        height, width = input_size[3:]
        sides = ((rois[:, 3:] - rois[:, 1:3]).abs() * scale).nan_to_num()
        seen = (sides[:, 0].clamp(max=width) + 4) * (sides[:, 1].clamp(max=height) + 4)
        rows = 4.0 * (float(seen.max()) + bins)
    return max(1, int(max_rows / rows))


def selective_roi_align_reference(
    input: Tensor,
    rois: Tensor,
    bank_index: Tensor,
    output_size: list[int],
    spatial_scale: float,
    sampling_ratio: int,
) -> Tensor:
    """The op in plain PyTorch, differentiable in `input`: the tests' oracle, and the fallback.

    Args:
        input, rois, bank_index, spatial_scale, sampling_ratio: as in `selective_roi_align`.
        output_size: bins [PH, PW].

    Returns:
        Tensor[K, C, PH, PW], as `selective_roi_align`.

    Raises:
        RuntimeError: naming the argument that does not fit.
    """
    size = list(input.shape)
    check_shapes(_OP, size, rois, bank_index, output_size)
    check_values(_OP, input, rois, bank_index, spatial_scale)
    _check_sampling_ratio(sampling_ratio)
    channels = input.shape[2]
    rois = rois.to(computed_in(input.dtype))
    index = bank_index.long().expand(len(rois), *output_size)
    if len(rois) == 0 or channels == 0:
        return input.new_empty(len(rois), channels, *output_size) + 0 * input.sum()
    table = input.permute(0, 3, 4, 1, 2).reshape(-1, channels).to(rois.dtype)
    bins = output_size[0] * output_size[1]
    step = _rois_at_once(size, rois, spatial_scale, sampling_ratio, bins, _MAX_ROWS_AT_ONCE)
    pooled = []
    for r, i in zip(rois.split(step), index.split(step), strict=True):
        bags = _collect_bags(size, r, i, spatial_scale, sampling_ratio)
        sums = F.embedding_bag(
            bags.row, table, bags.first, mode="sum", per_sample_weights=bags.weight
        )
        pooled.append(sums.view(len(r), *output_size, channels).permute(0, 3, 1, 2))
    return torch.cat(pooled).to(input.dtype).contiguous()


def selective_roi_align_backward_reference(
    grad_output: Tensor,
    rois: Tensor,
    bank_index: Tensor,
    input_size: list[int],
    spatial_scale: float,
    sampling_ratio: int,
) -> Tensor:
    """The gradient with respect to `input`, Tensor[N, B, C, H, W], of the op in plain PyTorch.

    Args:
        grad_output: Tensor[K, C, PH, PW].
        input_size: N, B, C, H, W.
        rois, bank_index, spatial_scale, sampling_ratio: as in `selective_roi_align`.
    """
    images, maps, channels, height, width = input_size
    output_size = list(grad_output.shape[2:])
    rois = rois.to(computed_in(grad_output.dtype))
    grad_table = rois.new_zeros(images * height * width * maps, channels)
    index = bank_index.long().expand(len(rois), *output_size)
    if len(rois) and channels:
        bins = output_size[0] * output_size[1]
        rows = min(_MAX_ROWS_AT_ONCE, _MAX_VALUES_AT_ONCE / channels)
        step = _rois_at_once(input_size, rois, spatial_scale, sampling_ratio, bins, rows)
        grad_bins = grad_output.permute(0, 2, 3, 1).to(rois.dtype)
        for r, i, g in zip(rois.split(step), index.split(step), grad_bins.split(step), strict=True):
            bags = _collect_bags(input_size, r, i, spatial_scale, sampling_ratio)
            grads = g.reshape(-1, channels)[bags.bin] * bags.weight[:, None]
            grad_table.index_add_(0, bags.row, grads)
    grad_cells = grad_table.view(images, height, width, maps, channels).to(grad_output.dtype)
    return grad_cells.permute(0, 3, 4, 1, 2)
