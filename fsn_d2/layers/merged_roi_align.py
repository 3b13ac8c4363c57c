"""`selective_roi_align` over several banks and a whole pyramid in one pass, merged on the way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import _align_op  # noqa: F401  (registers torch.ops.fsn_d2.selective_roi_align)
from ._traced_lists import own_list


class Source(NamedTuple):
    """A bank at every level of a pyramid, and which of its maps the bins read.

    Attributes:
        levels: Tensor[N, B, C, H, W] per level; H and W differ.
        bank_index: integer Tensor broadcastable to [K, PH, PW], values in [0, B).
        origins: per map the (row, column) of its cells at which the sampled extent, the first
            source's H x W, starts: a shift that costs nothing. Empty: (0, 0) for every map.
    """

    levels: Sequence[Tensor]
    bank_index: Tensor
    origins: Sequence[tuple[int, int]] = ()

    def of_rois(self, part: slice, count: int) -> Source:
        """The same for a part of `count` RoIs."""
        is_per_roi = self.bank_index.dim() == 3 and len(self.bank_index) == count
        return self._replace(bank_index=self.bank_index[part]) if is_per_roi else self


def merged_roi_align(
    sources: Sequence[Source],
    rois: Tensor,
    levels: Tensor | None,
    output_size: tuple[int, int],
    spatial_scales: Sequence[float],
    sampling_ratio: int,
    merge: str,
) -> Tensor:
    """Pools every RoI from its level of every source at the same sample points.

    The geometry is computed once, the sources' features meet in the registers, and one result is
    written. Equal to `selective_roi_align` per source and level, followed by the merge.

    Args:
        sources: S banks of equal N and C. The first is the RoI feature in the products.
        rois, output_size, sampling_ratio: as in `selective_roi_align`.
        levels: int64 Tensor[K], the level of each RoI; None where there is one level.
        spatial_scales: 1 / stride of each level.
        merge: "stack": side by side, [K, S * C, PH, PW]; "sum"; "multiply": the first times the sum
            of the others; "multiply_relu": the first times the ReLU of that sum.

    Returns:
        Tensor[K, S * C or C, PH, PW], contiguous, or for "stack" channels_last, as convolutions
        behind it read it; in the dtype of the sources, in which it is differentiable (twice for
        "stack" and "sum").

    Raises:
        RuntimeError: as `selective_roi_align`, and for levels out of range, sources that do not fit
            together, or an unknown merge. The message names the argument. On CUDA levels out of
            range give NaN and no gradient instead, as what is out of range there.
    """
    origins: list[int] = []
    if any(source.origins for source in sources):
        for source in sources:
            pairs = source.origins or [(0, 0)] * source.levels[0].shape[1]
            origins += [cell for pair in pairs for cell in pair]
    return torch.ops.fsn_d2.selective_roi_align(
        own_list([bank for source in sources for bank in source.levels], rois),
        rois,
        levels,
        own_list([source.bank_index for source in sources], rois),
        origins,
        list(output_size),
        list(spatial_scales),
        sampling_ratio,
        merge,
    )
