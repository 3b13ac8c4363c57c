"""The maps that Feature Selective Networks pool from, computed once per image and level: the
reduced feature, the sub-region bank and the aspect-ratio bank (FSN, section 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from fvcore.nn import weight_init
from torch import Tensor, nn

from fsn_d2.layers import ShiftedConv2d, grid_offsets, start_convolution


class SelectiveMaps(NamedTuple):
    """One pyramid level, ready to pool from. N images; C channels per map.

    Attributes:
        roi: Tensor[N, C, H, W], the reduced feature that every RoI pools.
        sub_region: Tensor[N, grid * grid, C, H, W], or None without that bank. Where
            `sub_region_origins` says so the maps are larger and not moved yet.
        aspect_ratio: Tensor[N, ratios, C, H, W], or None without that bank.
        image_sizes: per image (height, width) in pixels, without padding.
        sub_region_origins: per map of `sub_region` the (row, column) at which its H x W starts, for
            the pooler to read from there; empty: the maps are moved already.
    """

    roi: Tensor
    sub_region: Tensor | None
    aspect_ratio: Tensor | None
    image_sizes: list
    sub_region_origins: Sequence[tuple[int, int]] = ()


class AttentionBanks(nn.Module):
    """Reduces a feature to C channels and computes both banks (FSN, section 3).

    The levels share the weights.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        grid: int,
        shift: int,
        num_ratios: int,
        kernel_size: int,
        input: str,
        start: float | None,
        moves_maps: bool = True,
    ) -> None:
        """
        Args:
            in_channels: channels of the pyramid feature.
            channels: C, channels of the reduced feature and of every map of a bank.
            grid: the sub-region bank has grid * grid maps; 0: no sub-region bank.
            shift: cells that the outer sub-regions' convolutions look away per step.
            num_ratios: maps of the aspect-ratio bank; 0: none.
            kernel_size: odd side of the sub-region bank's kernels.
            input: what the banks are computed from, "feature" or "reduced".
            start: the sum that both banks' attention starts near to; None: start like any
                convolution, the merge sees to a mild start.
            moves_maps: whether the sub-region maps are moved here; False leaves it to a pooler that
                reads them at their origins, which saves a copy.

        Raises:
            ValueError: an unknown `input` or an even `kernel_size`.
        """
        super().__init__()
        if input not in ("feature", "reduced"):
            raise ValueError(f"MODEL.FSN.BANK_INPUT must be 'feature' or 'reduced', got {input!r}")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"MODEL.FSN.BANK_KERNEL must be odd and positive, got {kernel_size}")
        self.reads_reduced = input == "reduced"
        self.moves_maps = moves_maps
        self.num_ratios = num_ratios
        self.reduce = nn.Conv2d(in_channels, channels, 1)
        weight_init.c2_xavier_fill(self.reduce)
        bank_in = channels if self.reads_reduced else in_channels
        self.sub_region = (
            ShiftedConv2d(bank_in, channels, grid_offsets(grid, shift), kernel_size)
            if grid
            else None
        )
        self.aspect_ratio = nn.Conv2d(bank_in, num_ratios * channels, 1) if num_ratios else None
        self._start_near(start)

    def _start_near(self, start: float | None) -> None:
        convs = [self.sub_region.conv] if self.sub_region is not None else []
        convs += [self.aspect_ratio] if self.aspect_ratio is not None else []
        for conv in convs:
            if start is None:
                weight_init.c2_xavier_fill(conv)
            else:
                start_convolution(conv, std=0.01, bias=start / len(convs))

    def forward(self, features: dict[str, Tensor], image_sizes: list) -> dict[str, SelectiveMaps]:
        """
        Args:
            features: level name -> Tensor[N, in_channels, H, W].
            image_sizes: per image (height, width) in pixels, without padding.
        """
        return {name: self._level(x, image_sizes) for name, x in features.items()}

    def _level(self, feature: Tensor, image_sizes: list) -> SelectiveMaps:
        # A bin's channels then lie side by side in memory, which is how the op reads them.
        feature = feature.contiguous(memory_format=torch.channels_last)
        reduced = self.reduce(feature)
        source = reduced if self.reads_reduced else feature
        sub_region, origins = None, []
        if self.sub_region is not None and self.moves_maps:
            sub_region = self.sub_region(source)
        elif self.sub_region is not None:
            sub_region, origins = self.sub_region.unshifted(source), self.sub_region.origins
        aspect_ratio = (
            self.aspect_ratio(source).unflatten(1, (self.num_ratios, -1))
            if self.aspect_ratio is not None
            else None
        )
        return SelectiveMaps(reduced, sub_region, aspect_ratio, image_sizes, origins)
