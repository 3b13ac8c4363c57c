"""The pooler of Feature Selective Networks, in the place of Detectron2's ROIPooler."""

from __future__ import annotations

import math
from collections.abc import Iterator
from numbers import Real
from typing import NamedTuple

import torch
from detectron2.modeling.poolers import ROIPooler, convert_boxes_to_pooler_format
from detectron2.structures import Boxes
from torch import Tensor, nn

from fsn_d2.layers import Source, merged_roi_align

from .attention_banks import SelectiveMaps
from .bank_pooler import levels_of
from .checks import require_positive
from .merges import Merge
from .pooled_stack import Bank, PooledStack, any_deferred, bank_of
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


# RoIs merged at a time on a CPU. With up to about 100 channels, what they have side by side then
# takes less than the 32 MiB which the C library asks of the system anew each time, and that costs
# more than to pool.
PORTION = 512


def _may_be_portioned(rois: Tensor) -> bool:
    if torch.jit.is_tracing() or torch.compiler.is_compiling():
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
        if any_deferred(banks):
            raise ValueError(
                "maps must be computed for composed pooling, got DeferredMaps: make AttentionBanks "
                "with readies_maps=True"
            )
        roi = self.roi_pooler([m.roi for m in maps], box_lists)
        return self.merge(roi, [self._pool([bank.source], rois, levels, "sum") for bank in banks])

    def _pool_and_merge(
        self, feature: Source, banks: list[Bank], rois: Tensor, levels: Tensor | None
    ) -> Tensor:
        how = self.merge.pooled_as
        if how != "stack" and not any_deferred(banks):
            sources = [feature, *(bank.source for bank in banks)]
            return self.merge.finish(self._pool(sources, rois, levels, how))
        stacks = self._stacks(feature, banks, rois, levels)
        refined = [self._refine(stack) for stack in stacks]
        return refined[0] if len(refined) == 1 else torch.cat(refined)

    def _stacks(
        self, feature: Source, banks: list[Bank], rois: Tensor, levels: Tensor | None
    ) -> Iterator[PooledStack]:
        """What is pooled, in portions where that helps."""
        if not _may_be_portioned(rois):
            yield self._stack(feature, banks, rois, levels)
            return
        if torch.is_grad_enabled():  # in one pass: each makes gradients of whole maps
            yield from self._stack(feature, banks, rois, levels).split(PORTION)
            return
        count = len(rois)
        for first in range(0, count, PORTION):
            part = slice(first, first + PORTION)
            own = [bank.of_rois(part, count) for bank in banks]
            yield self._stack(feature, own, rois[part], None if levels is None else levels[part])

    def _stack(
        self, feature: Source, banks: list[Bank], rois: Tensor, levels: Tensor | None
    ) -> PooledStack:
        sources = [feature, *(bank.source for bank in banks if bank.source.levels)]
        pooled = self._pool(sources, rois, levels, "stack")
        coverage = self._coverage(feature, rois, levels) if any_deferred(banks) else None
        return PooledStack(pooled, coverage, banks, self.output_size)

    @torch.no_grad()
    def _coverage(self, feature: Source, rois: Tensor, levels: Tensor | None) -> Tensor:
        ones = [torch.ones_like(x[:, :, :1, :1, :1]).expand_as(x[:, :, :1]) for x in feature.levels]
        return self._pool([feature._replace(levels=ones)], rois, levels, "stack")

    def _refine(self, stack: PooledStack) -> Tensor:
        if any_deferred(stack.banks):
            return self.merge(*stack.parts())
        return self.merge.finish(stack.pooled)

    def read(self, maps: list[SelectiveMaps], box_lists: list[Boxes]) -> Reading:
        """What `forward` merges, part by part.

        Args:
            maps, box_lists: as there.
        """
        rois = convert_boxes_to_pooler_format(box_lists)
        banks = self._banks(maps, rois)
        levels = levels_of(self.roi_pooler, box_lists)
        roi, attention = self._stack(self._roi_feature(maps, rois), banks, rois, levels).parts()
        if not self.is_fused:
            roi = self.roi_pooler([m.roi for m in maps], box_lists)
        shape = (len(rois), *self.output_size)
        bank_index = [bank.source.bank_index.expand(shape) for bank in banks]
        return Reading(roi, attention, bank_index, self.merge(roi, attention))

    def _banks(self, maps: list[SelectiveMaps], rois: Tensor) -> list[Bank]:
        """The banks in use, and which of their maps the RoIs read."""
        banks = []
        if self.sub_region != "none":
            index = self._sub_region_index(maps, rois)
            banks.append(bank_of([m.sub_region for m in maps], index, maps[0].sub_region_origins))
        if self.ratios:
            banks.append(bank_of([m.aspect_ratio for m in maps], nearest_ratio(rois, self.ratios)))
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
