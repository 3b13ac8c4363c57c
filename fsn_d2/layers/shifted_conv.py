"""Shifted convolution: a bank of convolutions, each of which looks in a direction of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def grid_offsets(grid: int, shift: int) -> list[tuple[int, int]]:
    """Directions of a grid x grid bank, row by row, as (rows, columns) in cells.

    An odd grid looks `shift` cells further per step from its centre; an even one has no centre and
    starts at one shift to either side: grid 3 gives -1, 0, 1 times `shift`, grid 2 gives -1, 1 and
    grid 4 gives -2, -1, 1, 2.

    Args:
        grid: rows and columns of the bank.
        shift: cells per step.
    """
    steps = range(-(grid // 2), grid // 2 + 1)
    line = [shift * step for step in steps if step != 0 or grid % 2]
    return [(dy, dx) for dy in line for dx in line]


def start_convolution(conv: nn.Conv2d, *, std: float, bias: float) -> None:
    """Starts a convolution with normal weights and one value for its bias.

    Args:
        conv: is changed in place.
        std: deviation of the weights, whose mean is 0.
        bias: of every channel, where the convolution has one.
    """
    nn.init.normal_(conv.weight, std=std)
    if conv.bias is not None:
        nn.init.constant_(conv.bias, bias)


class ShiftedConv2d(nn.Module):
    """One convolution per offset, each over the input moved by that offset (FSN, section 3).

    Equal to `torchvision.ops.deform_conv2d` with the offset as the constant displacement of every
    kernel cell: map b at p is bias_b + sum_k weight_b[k] * input[p + k + offset_b], zero outside.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        offsets: list[tuple[int, int]],
        kernel_size: int = 1,
    ) -> None:
        """
        Args:
            in_channels: channels of the input.
            out_channels: channels of each of the B = len(offsets) maps.
            offsets: (rows, columns) that each map looks away, in cells.
            kernel_size: odd side of the kernels.

        Raises:
            ValueError: an even kernel, or no offsets.
        """
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd and positive, got {kernel_size}")
        if not offsets:
            raise ValueError("offsets must hold at least one (rows, columns) pair, got none")
        self.offsets = offsets
        self.out_channels = out_channels
        self.reach = max(max(abs(dy), abs(dx)) for dy, dx in offsets)
        # Where each map's part of `unshifted` starts.
        self.origins = [(self.reach + dy, self.reach + dx) for dy, dx in offsets]
        # All kernels are applied at every place in one convolution, on a map padded far enough for
        # the largest offset; moving the input is then choosing which part of the result to keep.
        self.conv = nn.Conv2d(
            in_channels,
            len(offsets) * out_channels,
            kernel_size,
            padding=kernel_size // 2 + self.reach,
        )

    def unshifted(self, x: Tensor) -> Tensor:
        """All maps before they are moved, for a reader that moves itself: map b's cell (y, x) lies
        at (y, x) + origins[b].

        Returns:
            Tensor[N, B, out_channels, H + 2 * reach, W + 2 * reach], reach the largest offset.
        """
        return self.conv(x).unflatten(1, (len(self.offsets), self.out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Tensor[N, in_channels, H, W] -> Tensor[N, B, out_channels, H, W]."""
        height, width = x.shape[-2:]
        maps = self.unshifted(x)
        moved = [
            maps[:, b, :, row : row + height, column : column + width]
            for b, (row, column) in enumerate(self.origins)
        ]
        return torch.stack(moved, dim=1)
