"""The pooler of Feature Selective Networks, in the place of Detectron2's ROIPooler."""

from __future__ import annotations

from detectron2.layers import nonzero_tuple
from detectron2.modeling.poolers import (
    ROIPooler,
    assign_boxes_to_levels,
    convert_boxes_to_pooler_format,
)
from detectron2.structures import Boxes
from torch import Tensor, nn

from fsn_d2.layers import selective_roi_align

from .attention_banks import SelectiveMaps
from .merges import Merge
from .selection import nearest_ratio, sub_region_in_image, sub_region_in_roi

SUB_REGION_READINGS = ("none", "roi", "image")


class SelectiveROIPooler(nn.Module):
    """Pools every RoI's feature, reads both attention banks selectively, and merges the three.

    RoIs are assigned to pyramid levels exactly as by Detectron2's ROIPooler, whose arguments the
    first four are. It owns the geometry and the merge; the maps come from `AttentionBanks`.
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
        merge: Merge | None,
    ) -> None:
        """
        Args:
            output_size: bins per RoI, one number or (rows, columns).
            scales: 1 / stride of each level, a pyramid.
            sampling_ratio: samples along each side of a bin; 0 chooses by size.
            pooler_type: how the RoI feature is pooled, any type of Detectron2's ROIPooler. The
                banks are always pooled bilinearly.
            sub_region: "roi", "image", or "none" without that bank.
            grid: the sub-region bank's rows and columns.
            ratios: height / width of the aspect-ratio bank's maps; empty without that bank.
            merge: from `build_merge`; None without banks.

        Raises:
            ValueError: an unknown `sub_region`, an empty grid, or ratios that are not positive.
        """
        super().__init__()
        if sub_region not in SUB_REGION_READINGS:
            raise ValueError(
                f"MODEL.FSN.SUB_REGION must be one of {SUB_REGION_READINGS}, got {sub_region!r}"
            )
        if sub_region != "none" and grid < 1:
            raise ValueError(f"MODEL.FSN.GRID must be at least 1, got {grid}")
        if not all(ratio > 0 for ratio in ratios):
            raise ValueError(f"MODEL.FSN.RATIOS (height / width) must be positive, got {ratios}")
        self.scales = scales
        self.sampling_ratio = sampling_ratio
        self.sub_region = sub_region
        self.grid = grid
        self.ratios = list(ratios)
        self.merge = merge
        # Detectron2's own pooler checks the pyramid and knows the levels' numbers.
        self.roi_pooler = ROIPooler(output_size, scales, sampling_ratio, pooler_type)
        self.output_size = tuple(self.roi_pooler.output_size)
        # The op equals ROIAlignV2 and is faster.
        self.uses_op_for_roi = pooler_type == "ROIAlignV2"
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
        """
        rois = convert_boxes_to_pooler_format(box_lists)
        levels = self._levels_of(box_lists)
        roi = self._roi_feature(maps, box_lists, rois, levels)
        if self.merge is None:
            return roi
        attention = []
        if self.sub_region != "none":
            banks = [m.sub_region for m in maps if m.sub_region is not None]
            attention.append(self._pool(banks, rois, levels, self._sub_region_index(maps, rois)))
        if self.ratios:
            banks = [m.aspect_ratio for m in maps if m.aspect_ratio is not None]
            attention.append(self._pool(banks, rois, levels, nearest_ratio(rois, self.ratios)))
        return self.merge(roi, attention)

    def _levels_of(self, box_lists: list[Boxes]) -> Tensor:
        pooler = self.roi_pooler
        return assign_boxes_to_levels(
            box_lists,
            pooler.min_level,
            pooler.max_level,
            pooler.canonical_box_size,
            pooler.canonical_level,
        )

    def _roi_feature(
        self, maps: list[SelectiveMaps], box_lists: list[Boxes], rois: Tensor, levels: Tensor
    ) -> Tensor:
        if not self.uses_op_for_roi:
            return self.roi_pooler([m.roi for m in maps], box_lists)
        only_map = levels.new_zeros(1, 1, 1)
        return self._pool([m.roi.unsqueeze(1) for m in maps], rois, levels, only_map)

    def _sub_region_index(self, maps: list[SelectiveMaps], rois: Tensor) -> Tensor:
        if self.sub_region == "roi":
            return self.bin_index
        return sub_region_in_image(rois, maps[0].image_sizes, self.grid)

    def _pool(self, banks: list[Tensor], rois: Tensor, levels: Tensor, index: Tensor) -> Tensor:
        """Pools each RoI from the bank of its level; index broadcasts to [K, PH, PW]."""
        index = index.expand(rois.shape[0], -1, -1)
        if len(banks) == 1:
            return self._pool_level(banks[0], rois, index, self.scales[0])
        pooled = banks[0].new_zeros(rois.shape[0], banks[0].shape[2], *self.output_size)
        for level, (bank, scale) in enumerate(zip(banks, self.scales, strict=True)):
            here = nonzero_tuple(levels == level)[0]
            # index_put_ rather than indexed assignment keeps the trace right for other sizes.
            pooled.index_put_((here,), self._pool_level(bank, rois[here], index[here], scale))
        return pooled

    def _pool_level(self, bank: Tensor, rois: Tensor, index: Tensor, scale: float) -> Tensor:
        return selective_roi_align(bank, rois, index, self.output_size, scale, self.sampling_ratio)
