"""What Feature Selective Networks pool from, made once per image and level: the reduced feature,
the sub-region bank and the aspect-ratio bank, or the convolutions that make them of what was pooled
(FSN, section 3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from fvcore.nn import weight_init
from torch import Tensor, nn
from torch.nn import functional as F

from fsn_d2.layers import PointwiseConv2d, ShiftedConv2d, grid_offsets, start_convolution

from .checks import require_positive

# Of the attention around the start that a merge names, where the input has unit variance.
_START_DEVIATION = 0.06


class DeferredMaps(NamedTuple):
    """A bank of B maps, each a 1x1 convolution of the reduced feature, that are never computed.

    Pooling is a weighted sum over cells and a 1x1 convolution acts on each cell alone, so pooling
    the feature first and convolving what was pooled gives the same.

    Attributes:
        input: Tensor[N, C, H', W'], the reduced feature with zeros around it for the maps that look
            away; None: the reduced feature as it is.
        weight: Tensor[B, C, C] (output, input channel).
        bias: Tensor[B, C].
    """

    input: Tensor | None
    weight: Tensor
    bias: Tensor

    def of_pooled(
        self, pooled: Tensor, bank_index: Tensor, coverage: Tensor, output_size: tuple[int, int]
    ) -> Tensor:
        """What would have been pooled from the maps.

        Args:
            pooled: Tensor[K, C, PH, PW], from `input`; fastest in channels_last.
            bank_index: int64 Tensor[1, PH, PW] or [K, 1, 1], the map that each bin reads.
            coverage: Tensor[K, 1, PH, PW] in 0..1, what part of a bin's samples lies on the
                feature: the bias counts there alone.
            output_size: (PH, PW).

        Returns:
            Tensor[K, C, PH, PW], channels_last.
        """
        # Unlike an index's, an embedding's gradient is summed in one order, and fast.
        weight = F.embedding(bank_index.flatten(), self.weight.flatten(1))
        weight = weight.unflatten(1, self.weight.shape[1:]).transpose(1, 2)
        bias = F.embedding(bank_index, self.bias)
        rows, columns = output_size  # numbers: without RoIs ONNX cannot tell a side
        channels = self.weight.shape[2]
        bins = pooled.reshape(-1, channels, rows * columns).transpose(1, 2)
        if bank_index.shape[1] == bank_index.shape[2] == 1:  # one map per RoI
            product = bins @ weight
        else:
            product = (bins.transpose(0, 1) @ weight).transpose(0, 1)
        covered = (bias * coverage.permute(0, 2, 3, 1)).to(product.dtype)
        # That first: its layout is the sum's.
        return (covered + product.reshape(-1, rows, columns, channels)).permute(0, 3, 1, 2)


class SelectiveMaps(NamedTuple):
    """One pyramid level to pool from. N images; C channels per map.

    Attributes:
        roi: Tensor[N, C, H, W], the reduced feature that every RoI pools.
        sub_region: Tensor[N, grid * grid, C, H, W], or DeferredMaps in its place, or None without
            that bank. Where `sub_region_origins` says so the maps are larger and not moved yet.
        aspect_ratio: Tensor[N, ratios, C, H, W], or DeferredMaps, or None without that bank.
        image_sizes: per image (height, width) in pixels, without padding.
        sub_region_origins: per map of `sub_region` the (row, column) at which its H x W starts, for
            the pooler to read from there; empty: the maps are moved already.
    """

    roi: Tensor
    sub_region: Tensor | DeferredMaps | None
    aspect_ratio: Tensor | DeferredMaps | None
    image_sizes: list
    sub_region_origins: Sequence[tuple[int, int]] = ()


class AttentionBanks(nn.Module):
    """Reduces a feature to C channels and makes both banks of it (FSN, section 3).

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
        readies_maps: bool = True,
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
            readies_maps: whether maps are moved, and all of them computed, here. False leaves it to
                a pooler that reads them at their origins, which saves a copy, and that applies 1x1
                convolutions of the reduced feature to what it pooled, which saves the maps.

        Raises:
            ValueError: an unknown `input`, an even `kernel_size`, no channel, or a `shift` below 0,
                which would mirror every direction.
        """
        super().__init__()
        require_positive("MODEL.FSN.CHANNELS", channels)
        require_positive("MODEL.FSN.SHIFT", shift, least=0)
        if input not in ("feature", "reduced"):
            raise ValueError(f"MODEL.FSN.BANK_INPUT must be 'feature' or 'reduced', got {input!r}")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"MODEL.FSN.BANK_KERNEL must be odd and positive, got {kernel_size}")
        self.reads_reduced = input == "reduced"
        self.readies_maps = readies_maps
        self.defers = self.reads_reduced and kernel_size == 1 and not readies_maps
        self.num_ratios = num_ratios
        self.reduce = PointwiseConv2d(in_channels, channels)
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
                fan_in = conv.weight[0].numel()
                start_convolution(
                    conv, std=_START_DEVIATION / math.sqrt(fan_in), bias=start / len(convs)
                )

    def forward(self, features: dict[str, Tensor], image_sizes: list) -> dict[str, SelectiveMaps]:
        """
        Args:
            features: level name -> Tensor[N, in_channels, H, W].
            image_sizes: per image (height, width) in pixels, without padding.
        """
        return {name: self._level(x, image_sizes) for name, x in features.items()}

    def _level(self, feature: Tensor, image_sizes: list) -> SelectiveMaps:
        reduced = self.reduce(feature)
        # A bin's channels then lie side by side in every map's memory, as the op reads them.
        source = reduced if self.reads_reduced else feature
        source = source.contiguous(memory_format=torch.channels_last)
        sub_region, origins = self._sub_region_maps(source)
        return SelectiveMaps(
            reduced, sub_region, self._aspect_ratio_maps(source), image_sizes, origins
        )

    def _sub_region_maps(
        self, source: Tensor
    ) -> tuple[Tensor | DeferredMaps | None, Sequence[tuple[int, int]]]:
        if self.sub_region is None:
            return None, []
        if self.readies_maps:
            return self.sub_region(source), []
        if not self.defers:
            return self.sub_region.unshifted(source), self.sub_region.origins
        reach = self.sub_region.reach
        around = F.pad(source, (reach, reach, reach, reach)) if reach else None
        return _deferred(self.sub_region.conv, around), self.sub_region.origins

    def _aspect_ratio_maps(self, source: Tensor) -> Tensor | DeferredMaps | None:
        if self.aspect_ratio is None:
            return None
        if self.defers:
            return _deferred(self.aspect_ratio, None)
        return self.aspect_ratio(source).unflatten(1, (self.num_ratios, -1))


def _deferred(conv: nn.Conv2d, input: Tensor | None) -> DeferredMaps:
    maps = (-1, conv.in_channels)  # every map has as many channels as the input
    weight, bias = conv.weight.flatten(1), cast(Tensor, conv.bias)
    return DeferredMaps(input, weight.unflatten(0, maps), bias.unflatten(0, maps))
