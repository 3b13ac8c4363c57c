"""The same pooling from stock ops alone: what a user without this project would write.

Three ways to read a bank are exact. `Naive` pools every map and gathers. `Blocks` pools what is
needed: the RoIs of one aspect ratio from that ratio's map, and the bins of one sub-region, which
together are a RoI of their own, from that sub-region's map. `Bags` writes bilinear pooling as a
weighted sum of rows of a table, PyTorch's embedding_bag.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import ps_roi_align, ps_roi_pool, roi_align, roi_pool

from .scene import Setting, region_of_bin


def plain(x: Tensor, rois: Tensor, setting: Setting) -> Tensor:
    """Tensor[K, C, PH, PW] from Tensor[1, C, H, W]."""
    return _align(x, rois, setting.output_size, setting)


def _align(x: Tensor, rois: Tensor, bins: tuple[int, int], setting: Setting) -> Tensor:
    return roi_align(x, rois, bins, setting.scale, setting.sampling_ratio, aligned=True)


def position_sensitive(x: Tensor, rois: Tensor, setting: Setting) -> Tensor:
    """As `plain`, from Tensor[1, C * PH * PW, H, W] with the channels of one class together."""
    return ps_roi_align(x, rois, setting.bins, setting.scale, setting.sampling_ratio)


def max_pooling(x: Tensor, rois: Tensor, setting: Setting) -> Tensor:
    """Tensor[K, C, PH, PW] from Tensor[1, C, H, W]."""
    return roi_pool(x, rois, setting.output_size, setting.scale)


def position_sensitive_average(x: Tensor, rois: Tensor, setting: Setting) -> Tensor:
    """As `position_sensitive`; the corners of a RoI are rounded otherwise than in R-FCN."""
    return ps_roi_pool(x, rois, setting.bins, setting.scale)


def class_major(x: Tensor, maps: int) -> Tensor:
    """The channels of a bank-major map in the order of `position_sensitive`."""
    return x.unflatten(1, (maps, -1)).transpose(1, 2).flatten(1, 2)


def bank_major(x: Tensor, maps: int) -> Tensor:
    """The inverse of `class_major`."""
    return x.unflatten(1, (-1, maps)).transpose(1, 2).flatten(1, 2)


def naive(x: Tensor, rois: Tensor, index: Tensor, maps: int, setting: Setting) -> Tensor:
    """Pools every map from Tensor[1, maps * C, H, W], and gathers what the index names."""
    pooled = plain(x, rois, setting).unflatten(1, (maps, -1))
    wanted = index[:, None, None].expand(len(rois), 1, pooled.shape[2], *setting.output_size)
    return pooled.gather(1, wanted).squeeze(1)


def _runs(bins: int, grid: int) -> Iterator[tuple[int, int, int]]:
    """(region, first bin, number of bins) along one side, for every region that has a bin."""
    regions = [region_of_bin(i, bins, grid) for i in range(bins)]
    for region in sorted(set(regions)):
        yield region, regions.index(region), regions.count(region)


def _part(rois: Tensor, rows: tuple[int, int], columns: tuple[int, int], bins: int) -> Tensor:
    """The RoIs that consist of some bins of the given ones, named by (first, number)."""
    sides = (rois[:, 3:] - rois[:, 1:3]) / bins
    first = rois[:, 1:3] + sides * sides.new_tensor([columns[0], rows[0]])
    last = first + sides * sides.new_tensor([columns[1], rows[1]])
    return torch.cat([rois[:, :1], first, last], dim=1)


def by_block(map_of: Callable[[int], Tensor], rois: Tensor, grid: int, setting: Setting) -> Tensor:
    """One RoIAlign per sub-region, from `map_of(sub-region)`, Tensor[1, C, H, W]."""
    bins = setting.bins
    rows = []
    for i, top, height in _runs(bins, grid):
        row = []
        for j, left, width in _runs(bins, grid):
            block = _part(rois, (top, height), (left, width), bins)
            row.append(_align(map_of(i * grid + j), block, (height, width), setting))
        rows.append(torch.cat(row, dim=3))
    return torch.cat(rows, dim=2)


def by_group(
    pool: Callable[[int, Tensor], Tensor], rois: Tensor, index: Tensor, maps: int
) -> Tensor:
    """`pool(map, its RoIs)` for every map that an index Tensor[K, 1, 1] names."""
    index = index.flatten()
    here = [(index == number).nonzero().squeeze(1) for number in range(maps)]
    pooled = torch.cat([pool(number, rois[members]) for number, members in enumerate(here)])
    return pooled[torch.cat(here).argsort()]


def blocks_sub_region(x: Tensor, rois: Tensor, grid: int, setting: Setting) -> Tensor:
    maps = x.unflatten(1, (grid * grid, -1))
    return by_block(lambda region: maps[:, region], rois, grid, setting)


def groups_ratio(x: Tensor, rois: Tensor, index: Tensor, maps: int, setting: Setting) -> Tensor:
    bank = x.unflatten(1, (maps, -1))
    return by_group(lambda number, group: plain(bank[:, number], group, setting), rois, index, maps)


def summed_maps(
    sub_region: Tensor, ratio: Tensor, rois: Tensor, ratios: Tensor, grid: int, setting: Setting
) -> Tensor:
    """The sum of what both banks give. Pooling is linear: the maps are added before, not after.

    Args:
        sub_region: Tensor[1, grid * grid * C, H, W].
        ratio: Tensor[1, R * C, H, W].
        ratios: int64 Tensor[K, 1, 1], values in [0, R).
    """
    first = sub_region.unflatten(1, (grid * grid, -1))
    second = ratio.unflatten(1, (-1, first.shape[2]))

    def pool(number: int, group: Tensor) -> Tensor:
        return by_block(lambda b: first[:, b] + second[:, number], group, grid, setting)

    return by_group(pool, rois, ratios, second.shape[1])


class Bags:
    """Bilinear pooling as `embedding_bag`: per bin, the cells around its samples and their weights.

    The geometry is computed once for all banks that the same RoIs pool from.
    """

    def __init__(self, rois: Tensor, setting: Setting) -> None:
        """Raises ValueError for an adaptive sampling ratio: bins would need bags of many sizes."""
        if setting.sampling_ratio < 1:
            raise ValueError(f"sampling_ratio must be positive, got {setting.sampling_ratio}")
        self.setting = setting
        cells, samples = rois[:, 1:] * setting.scale - 0.5, setting.sampling_ratio
        rows, row_weights = self._axis(cells[:, 1], cells[:, 3], setting.height)
        columns, column_weights = self._axis(cells[:, 0], cells[:, 2], setting.width)
        self.cells = rows[:, :, None, :, None] * setting.width + columns[:, None, :, None, :]
        weights = row_weights[:, :, None, :, None] * column_weights[:, None, :, None, :]
        self.weights = (weights / samples**2).flatten(3).flatten(0, 2)

    def _axis(self, start: Tensor, end: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Cells and weights along one side: Tensor[K, bins, 2 * samples] each."""
        bins, samples = self.setting.bins, self.setting.sampling_ratio
        side = ((end - start) / bins)[:, None, None]
        bin_start = start[:, None, None] + torch.arange(bins, device=start.device)[:, None] * side
        sample = torch.arange(samples, device=start.device) + 0.5
        position = bin_start + sample * side / samples
        seen = ((position >= -1) & (position <= size)).to(start.dtype)
        position = position.clamp(0, size - 1)
        low = position.floor().clamp(max=max(size - 2, 0))
        far = (position - low) * seen
        cells = torch.stack([low, (low + 1).clamp(max=size - 1)], dim=-1)
        return cells.int().flatten(2), torch.stack([seen - far, far], dim=-1).flatten(2)

    def pool(self, x: Tensor, index: Tensor, maps: int) -> Tensor:
        """Tensor[K, C, PH, PW] from Tensor[1, maps * C, H, W]; index broadcasts to [K, PH, PW]."""
        table = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1] // maps)
        rows = self.cells * maps + index.int()[..., None, None]
        bags = rows.flatten(3).flatten(0, 2)
        pooled = F.embedding_bag(bags, table, mode="sum", per_sample_weights=self.weights)
        return pooled.view(-1, *self.setting.output_size, table.shape[1]).permute(0, 3, 1, 2)
