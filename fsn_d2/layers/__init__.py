"""Layers: the ops and the convolutions that feed it. Needs torch alone, not Detectron2."""

from ._library import cuda_library_path, op_library_path
from .merged_roi_align import Source, merged_roi_align
from .pointwise_conv import PointwiseConv2d
from .reference import selective_roi_align_reference
from .selective_roi_align import selective_roi_align
from .selective_roi_pool import selective_roi_pool
from .shifted_conv import ShiftedConv2d, grid_offsets, start_convolution

__all__ = [
    "PointwiseConv2d",
    "ShiftedConv2d",
    "Source",
    "cuda_library_path",
    "grid_offsets",
    "merged_roi_align",
    "op_library_path",
    "selective_roi_align",
    "selective_roi_align_reference",
    "selective_roi_pool",
    "start_convolution",
]
