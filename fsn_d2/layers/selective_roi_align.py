"""The op of this project: RoIAlign that reads, bin by bin, one map out of a bank of maps."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _align_op  # noqa: F401  (registers torch.ops.fsn_d2.selective_roi_align)
from ._traced_lists import own_list


def pair(output_size: int | tuple[int, int]) -> list[int]:
    return [output_size, output_size] if isinstance(output_size, int) else list(output_size)


def selective_roi_align(
    input: Tensor,
    rois: Tensor,
    bank_index: Tensor,
    output_size: int | tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
) -> Tensor:
    """Pools each bin of each RoI bilinearly from the map of the bank that `bank_index` names.

    A bank is B feature maps of C channels each. With one map (B = 1, index 0) this is ROIAlignV2
    (`aligned=True`); with k * k maps and bin (i, j) reading map i * k + j it is position-sensitive
    RoIAlign; Feature Selective Networks read their sub-region bank by the bin's place in the RoI
    and their aspect-ratio bank by the RoI's shape.

    Args:
        input: Tensor[N, B, C, H, W], the banks of N images. A convolution with B * C output
            channels becomes one with `unflatten(1, (B, C))`: the order is bank-major, channel
            b * C + c. Strides are free; a channels_last convolution's output is read in place.
        rois: Tensor[K, 5] of (batch index, x1, y1, x2, y2) in continuous image coordinates,
            pixels: the centre of the first pixel is (0.5, 0.5). Any values that are finite
            in float32; samples more than one cell outside the map add nothing. An RoI of zero
            extent gives the value at its point, or 0 with `sampling_ratio` 0, which then takes no
            sample.
        bank_index: integer Tensor broadcastable to [K, PH, PW], values in [0, B).
        output_size: bins (PH, PW), or one number for both.
        spatial_scale: cells per image pixel, 1 / stride.
        sampling_ratio: samples along each side of a bin, 1 to 1024; 0: one per cell, rounded up.

    Returns:
        Tensor[K, C, PH, PW], contiguous, in the dtype of `input`. Differentiable in `input`.
        float16 and bfloat16 are computed in float32 and rounded once; RoIs in float32 keep their
        precision beside them.

    Raises:
        RuntimeError: an argument does not fit: a shape, dtype or device, a batch or bank index out
            of range, a RoI that is not finite. The message names it. On CUDA, where looking at
            values would wait for the device, the last three give NaN and no gradient instead.
    """
    return torch.ops.fsn_d2.selective_roi_align(
        own_list([input], rois),
        rois,
        None,
        own_list([bank_index], rois),
        [],
        pair(output_size),
        [spatial_scale],
        sampling_ratio,
        "sum",
    )
