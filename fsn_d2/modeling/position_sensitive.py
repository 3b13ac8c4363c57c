"""Position-sensitive RoI pooling (R-FCN, section 2): bin (i, j) reads its own map, and the order of
channels that says which one that is.

Here it is **bank-major**: of k * k maps with C channels each, channel = bin * C + c, where
bin = i * k + j runs row by row. Caffe's and torchvision's `ps_roi_align`, and so R-FCN's published
weights, are **class-major**: channel = c * k * k + bin. `bank_major` converts.
"""

from __future__ import annotations

import torch
from detectron2.structures import Boxes
from torch import Tensor, nn

from .bank_pooler import BankROIPooler


def bank_major(tensor: Tensor, num_bins: int, dim: int = 0) -> Tensor:
    """Reorders channels from class-major (c * num_bins + bin) to this project's bank-major.

    Args:
        tensor: a convolution's weight or bias (`dim` 0), or maps (`dim` 1).
        num_bins: k * k.
        dim: where the C * num_bins channels lie.
    """
    return _swapped(tensor.unflatten(dim, (-1, num_bins)), dim)


def class_major(tensor: Tensor, num_bins: int, dim: int = 0) -> Tensor:
    """The inverse of `bank_major`.

    Args:
        tensor, num_bins, dim: as in `bank_major`.
    """
    return _swapped(tensor.unflatten(dim, (num_bins, -1)), dim)


def _swapped(tensor: Tensor, dim: int) -> Tensor:
    return tensor.transpose(dim, dim + 1).flatten(dim, dim + 1)


class PositionSensitiveROIPooler(BankROIPooler):
    """Pools bin (i, j) of every RoI from map i * k + j alone. It has no parameters."""

    def __init__(
        self, *, bins: int, scales: tuple[float, ...], sampling_ratio: int, pooling: str
    ) -> None:
        """
        Args:
            bins: k; an RoI has k * k bins, and a level k * k maps.
            scales, sampling_ratio, pooling: as for `BankROIPooler`.
        """
        super().__init__(
            output_size=bins,
            scales=scales,
            sampling_ratio=sampling_ratio,
            pooling=pooling,
            bank_index=torch.arange(bins * bins).view(1, bins, bins),
        )


class VotingROIPooler(nn.Module):
    """Pools sibling banks, and lets the bins of each RoI vote: the mean over its k * k bins.

    R-FCN, section 2; its equation 1 is the pooling with "avg".
    """

    def __init__(
        self, *, bins: int, scales: tuple[float, ...], sampling_ratio: int, pooling: str
    ) -> None:
        """
        Args:
            bins, scales, sampling_ratio, pooling: as for `PositionSensitiveROIPooler`.
        """
        super().__init__()
        self.pooler = PositionSensitiveROIPooler(
            bins=bins, scales=scales, sampling_ratio=sampling_ratio, pooling=pooling
        )

    def forward(
        self, levels: list[tuple[Tensor, ...]], box_lists: list[Boxes]
    ) -> tuple[Tensor, ...]:
        """
        Args:
            levels: per level the siblings, each Tensor[N, k * k * C, H, W] with a C of its own.
            box_lists: one Boxes per image, image coordinates in pixels; K boxes in all.

        Returns:
            per sibling Tensor[K, C].
        """
        banks = zip(*levels, strict=True)
        return tuple(self.pooler(list(bank), box_lists).mean(dim=(2, 3)) for bank in banks)
