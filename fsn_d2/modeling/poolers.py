"""The pooler of Feature Selective Networks, in the place of Detectron2's ROIPooler."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import NamedTuple

import torch
from detectron2.modeling.poolers import ROIPooler, convert_boxes_to_pooler_format
from detectron2.structures import Boxes
from torch import Tensor, nn

from fsn_d2.layers import Source, merged_roi_align

from .attention_banks import DeferredMaps, SelectiveMaps
from .bank_pooler import levels_of
from .checks import require_positive
from .merges import Merge
from .selection import nearest_ratio, sub_region_in_image, sub_region_in_roi


class Reading(NamedTuple):
    """What a pooler read for K RoIs, part by part.

    Attributes:
        roi: Tensor[K, C, PH, PW], plain pooling.
        attention: of each bank in use, sub-regions first, Tensor[K, C, PH, PW].
        bank_index: of each bank in use, the map that every bin read, int64 Tensor[K, PH, PW].
        refined: Tensor[K, C, PH, PW], their merge.
    """

    roi: Tensor
    attention: list[Tensor]
    bank_index: list[Tensor]
    refined: Tensor


class _Bank(NamedTuple):
    """A bank as it is read.

    Attributes:
        source: its maps, or what they are to be convolved from; without levels, that is the RoI
            feature, which is pooled anyway.
        deferred: the convolution that is left, the same at all levels; None: none is.
    """

    source: Source
    deferred: DeferredMaps | None = None

    def of_rois(self, part: slice, count: int) -> _Bank:
        return self._replace(source=self.source.of_rois(part, count))


# RoIs pooled at a time in inference on a CPU. What they pool side by side then takes less than the
# 32 MiB which the C library asks of the system anew each time, and that costs more than to pool.
PORTION = 512


def _may_be_portioned(rois: Tensor) -> bool:
    if torch.is_grad_enabled() or torch.jit.is_tracing() or torch.compiler.is_compiling():
        return False
    return rois.device.type == "cpu" and len(rois) > PORTION


SUB_REGION_READINGS = ("none", "roi", "image")
POOLINGS = ("fused", "composed")
POOLER_TYPES = ("ROIAlignV2", "ROIAlign", "ROIPool")


def pools_in_one_pass(pooling: str, pooler_type: str) -> bool:
    """Whether MODEL.FSN.POOLING asks for "fused" and the RoI feature is pooled as the op does.

    Raises:
        ValueError: an unknown `pooling`.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"MODEL.FSN.POOLING must be one of {POOLINGS}, got {pooling!r}")
    return pooling == "fused" and pooler_type == "ROIAlignV2"


class SelectiveROIPooler(nn.Module):
    """Pools every RoI's feature, reads both attention banks selectively, and merges the three.

    FSN's selective RoI pooling (section 3; figure 1 for the sub-regions). RoIs are assigned to
    pyramid levels exactly as by Detectron2's ROIPooler, whose arguments the first four are. It owns
    the geometry and the merge; the maps come from `AttentionBanks`.
    """

    bin_index: Tensor

    def __init__(
        self,
        *,
        output_size: int | tuple[int, int],
        scales: tuple[float, ...],
        sampling_ratio: int,
        pooler_type: str,
        sub_region: str,
        grid: int,
        ratios: list[float],
        merge: Merge,
        pooling: str = "fused",
    ) -> None:
        """
        Args:
            output_size: bins per RoI, one number or (rows, columns).
            scales: 1 / stride of each level, a pyramid.
            sampling_ratio: samples along each side of a bin; 0 chooses by size.
            pooler_type: how the RoI feature is pooled, a type of Detectron2's ROIPooler, but that
                of rotated boxes. The banks are always pooled bilinearly.
            sub_region: "roi", "image", or "none" without that bank.
            grid: the sub-region bank's rows and columns; with "roi" and fewer bins than these some
                of its maps are not read.
            ratios: height / width of the aspect-ratio bank's maps; empty without that bank.
            merge: from `build_merge`.
            pooling: "fused": what is read is pooled in one pass of the op over the whole pyramid,
                for which `pooler_type` must be ROIAlignV2; computed maps are merged on the way if
                the merge can be, `DeferredMaps` applied to what was pooled. "composed", and every
                other type: Detectron2's pooler for the feature, the op for each bank, then the
                merge; the maps must be computed.

        Raises:
            ValueError: an unknown `pooler_type`, `sub_region` or `pooling`, an empty grid, or
                ratios that are no positive numbers.
        """
        super().__init__()
        if pooler_type not in POOLER_TYPES:
            raise ValueError(
                f"MODEL.ROI_BOX_HEAD.POOLER_TYPE must be one of {POOLER_TYPES}, got {pooler_type!r}"
            )
        if sub_region not in SUB_REGION_READINGS:
            raise ValueError(
                f"MODEL.FSN.SUB_REGION must be one of {SUB_REGION_READINGS}, got {sub_region!r}"
            )
        if sub_region != "none":
            require_positive("MODEL.FSN.GRID", grid)
        if not all(isinstance(ratio, Real) and 0 < ratio < math.inf for ratio in ratios):
            raise ValueError(
                f"MODEL.FSN.RATIOS (height / width) must be positive numbers, got {ratios}"
            )
        self.scales = scales
        self.sampling_ratio = sampling_ratio
        self.sub_region = sub_region
        self.grid = grid
        self.ratios = list(ratios)
        self.merge = merge
        # Detectron2's own pooler checks the pyramid and knows the levels' numbers.
        self.roi_pooler = ROIPooler(output_size, scales, sampling_ratio, pooler_type)
        self.output_size = tuple(self.roi_pooler.output_size)
        self.is_fused = pools_in_one_pass(pooling, pooler_type)
        self.register_buffer(
            "bin_index",
            sub_region_in_roi(self.output_size, grid) if sub_region == "roi" else None,
            persistent=False,
        )

    def forward(self, maps: list[SelectiveMaps], box_lists: list[Boxes]) -> Tensor:
        """
        Args:
            maps: one per level.
            box_lists: one Boxes per image, image coordinates in pixels; K boxes in all.

        Returns:
            Tensor[K, C, PH, PW], the refined RoI features.

        Raises:
            ValueError: `DeferredMaps` where pooling is composed.
        """
        rois = convert_boxes_to_pooler_format(box_lists)
        banks = self._banks(maps, rois)
        levels = levels_of(self.roi_pooler, box_lists)
        if self.is_fused:
            return self._pool_and_merge(self._roi_feature(maps, rois), banks, rois, levels)
        if any(bank.deferred for bank in banks):
            raise ValueError(
                "maps must be computed for composed pooling, got DeferredMaps: make AttentionBanks "
                "with readies_maps=True"
            )
        roi = self.roi_pooler([m.roi for m in maps], box_lists)
        return self.merge(roi, [self._pool([bank.source], rois, levels, "sum") for bank in banks])

    def _pool_and_merge(
        self, feature: Source, banks: list[_Bank], rois: Tensor, levels: Tensor | None
    ) -> Tensor:
        defers = any(bank.deferred for bank in banks)

        def refine(banks: list[_Bank], rois: Tensor, levels: Tensor | None) -> Tensor:
            if defers:
                return self.merge(*self._parts(feature, banks, rois, levels))
            sources = [feature, *(bank.source for bank in banks)]
            return self.merge.finish(self._pool(sources, rois, levels, self.merge.pooled_as))

        stacks = defers or self.merge.pooled_as == "stack"
        if not stacks or not _may_be_portioned(rois):
            return refine(banks, rois, levels)
        count = len(rois)
        portions = [slice(first, first + PORTION) for first in range(0, count, PORTION)]
        return torch.cat(
            [
                refine(
                    [bank.of_rois(part, count) for bank in banks],
                    rois[part],
                    None if levels is None else levels[part],
                )
                for part in portions
            ]
        )

    def _parts(
        self, feature: Source, banks: list[_Bank], rois: Tensor, levels: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        """The RoI feature and each bank's attention, pooled."""
        sources = [feature, *(bank.source for bank in banks if bank.source.levels)]
        defers = any(bank.deferred for bank in banks)
        if defers:
            ones = [torch.ones_like(x[..., :1, :1]).expand_as(x) for x in feature.levels]
            sources.append(feature._replace(levels=ones))
        pooled = self._pool(sources, rois, levels, "stack").chunk(len(sources), dim=1)
        roi, others, coverage = pooled[0], iter(pooled[1:]), pooled[-1][:, :1]
        attention = [next(others) if bank.source.levels else roi for bank in banks]
        if defers:
            attention = [
                bank.deferred.of_pooled(values, bank.source.bank_index, coverage, self.output_size)
                if bank.deferred
                else values
                for bank, values in zip(banks, attention, strict=True)
            ]
        return roi, attention

    def read(self, maps: list[SelectiveMaps], box_lists: list[Boxes]) -> Reading:
        """What `forward` merges, part by part.

        Args:
            maps, box_lists: as there.
        """
        rois = convert_boxes_to_pooler_format(box_lists)
        banks = self._banks(maps, rois)
        levels = levels_of(self.roi_pooler, box_lists)
        roi, attention = self._parts(self._roi_feature(maps, rois), banks, rois, levels)
        if not self.is_fused:
            roi = self.roi_pooler([m.roi for m in maps], box_lists)
        shape = (len(rois), *self.output_size)
        bank_index = [bank.source.bank_index.expand(shape) for bank in banks]
        return Reading(roi, attention, bank_index, self.merge(roi, attention))

    def _banks(self, maps: list[SelectiveMaps], rois: Tensor) -> list[_Bank]:
        """The banks in use, and which of their maps the RoIs read."""
        banks = []
        if self.sub_region != "none":
            index = self._sub_region_index(maps, rois)
            banks.append(_bank([m.sub_region for m in maps], index, maps[0].sub_region_origins))
        if self.ratios:
            banks.append(_bank([m.aspect_ratio for m in maps], nearest_ratio(rois, self.ratios)))
        return banks

    def _roi_feature(self, maps: list[SelectiveMaps], rois: Tensor) -> Source:
        only_map = torch.zeros(1, 1, 1, dtype=torch.int64, device=rois.device)
        return Source([m.roi.unsqueeze(1) for m in maps], only_map)

    def _sub_region_index(self, maps: list[SelectiveMaps], rois: Tensor) -> Tensor:
        if self.sub_region == "roi":
            return self.bin_index
        return sub_region_in_image(rois, maps[0].image_sizes, self.grid)

    def _pool(
        self, sources: list[Source], rois: Tensor, levels: Tensor | None, merge: str
    ) -> Tensor:
        return merged_roi_align(
            sources, rois, levels, self.output_size, self.scales, self.sampling_ratio, merge
        )


def _bank(
    levels: list[Tensor | DeferredMaps | None],
    bank_index: Tensor,
    origins: Sequence[tuple[int, int]] = (),
) -> _Bank:
    """A bank of a pyramid. A deferred one is read as if its input were there once per map."""
    deferred = [level for level in levels if isinstance(level, DeferredMaps)]
    if not deferred:
        ready = [level for level in levels if isinstance(level, Tensor)]
        return _Bank(Source(ready, bank_index, origins))
    inputs = [
        level.input.unsqueeze(1).expand(-1, len(level.weight), -1, -1, -1)
        for level in deferred
        if level.input is not None
    ]
    return _Bank(Source(inputs, bank_index, origins), deferred[0])
