"""A pooler whose bins read a bank of maps: Detectron2's ROIPooler with the op of this project."""

from __future__ import annotations

from detectron2.modeling.poolers import (
    ROIPooler,
    assign_boxes_to_levels,
    convert_boxes_to_pooler_format,
)
from detectron2.structures import Boxes
from torch import Tensor

from fsn_d2.layers import Source, merged_roi_align, selective_roi_pool

BANK_POOLINGS = ("avg", "max", "align")


def levels_of(pooler: ROIPooler, box_lists: list[Boxes]) -> Tensor | None:
    """The level of every box by Detectron2's rule, int64 Tensor[K]; None where there is one level.

    Args:
        pooler: knows the pyramid.
        box_lists: one Boxes per image, image coordinates in pixels; K boxes in all.
    """
    if pooler.min_level == pooler.max_level:
        return None
    return assign_boxes_to_levels(
        box_lists,
        pooler.min_level,
        pooler.max_level,
        pooler.canonical_box_size,
        pooler.canonical_level,
    )


class BankROIPooler(ROIPooler):
    """Pools every bin of every RoI from the map of a bank that the bin's index names.

    RoIs are assigned to pyramid levels as by Detectron2's ROIPooler; all levels are pooled in one
    call. With one map this is Detectron2's own pooling: "max" its ROIPool, "align" its ROIAlignV2.
    """

    bank_index: Tensor

    def __init__(
        self,
        *,
        output_size: int | tuple[int, int],
        scales: tuple[float, ...],
        sampling_ratio: int,
        pooling: str,
        bank_index: Tensor,
    ) -> None:
        """
        Args:
            output_size: bins per RoI, one number or (rows, columns).
            scales: 1 / stride of each level, a pyramid.
            sampling_ratio: for "align", samples along each side of a bin; 0 chooses by size.
            pooling: "avg" or "max" over the cells of a bin, whose borders are whole cells, or
                "align", bilinear samples.
            bank_index: integer Tensor broadcastable to [K, PH, PW]: the map that each bin reads.

        Raises:
            ValueError: an unknown `pooling`.
        """
        if pooling not in BANK_POOLINGS:
            raise ValueError(f"pooling must be one of {BANK_POOLINGS}, got {pooling!r}")
        # ROIPooler checks the pyramid; its poolers, one per level, are not needed.
        super().__init__(output_size, scales, sampling_ratio, "ROIPool")
        del self.level_poolers
        self.scales = tuple(scales)
        self.sampling_ratio = sampling_ratio
        self.pooling = pooling
        self.num_maps = int(bank_index.max()) + 1
        self.register_buffer("bank_index", bank_index, persistent=False)

    def forward(self, x: list[Tensor], box_lists: list[Boxes]) -> Tensor:
        """
        Args:
            x: per level Tensor[N, maps * C, H, W], bank-major: channel = map * C + c.
            box_lists: one Boxes per image, image coordinates in pixels; K boxes in all.

        Returns:
            Tensor[K, C, PH, PW].
        """
        banks = [level.unflatten(1, (self.num_maps, -1)) for level in x]
        rois = convert_boxes_to_pooler_format(box_lists)
        levels = levels_of(self, box_lists)
        size = tuple(self.output_size)
        if self.pooling == "align":
            source = Source(banks, self.bank_index)
            return merged_roi_align(
                [source], rois, levels, size, self.scales, self.sampling_ratio, "sum"
            )
        return selective_roi_pool(
            banks, rois, self.bank_index, size, self.scales, mode=self.pooling, levels=levels
        )

    def extra_repr(self) -> str:
        return f"{self.output_size}, {self.pooling!r}, maps={self.num_maps}, scales={self.scales}"
