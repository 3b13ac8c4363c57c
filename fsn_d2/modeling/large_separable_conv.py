"""The large separable convolution of Light-Head R-CNN (section 3)."""

from __future__ import annotations

from fvcore.nn import weight_init
from torch import Tensor, nn


class LargeSeparableConv2d(nn.Module):
    """A k x k field of view from two branches, k x 1 then 1 x k and the other way round, summed.

    From Light-Head R-CNN, section 3.

    As in the authors' code no normalisation or activation stands between or behind the
    convolutions, and all have a bias.
    """

    def __init__(self, in_channels: int, middle: int, out_channels: int, kernel_size: int) -> None:
        """
        Args:
            in_channels: channels of the input.
            middle: channels between the two convolutions of a branch.
            out_channels: channels of the output.
            kernel_size: k, odd.

        Raises:
            ValueError: an even kernel.
        """
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd and positive, got {kernel_size}")
        column, row = (kernel_size, 1), (1, kernel_size)
        self.column_row = _branch(in_channels, middle, out_channels, (column, row))
        self.row_column = _branch(in_channels, middle, out_channels, (row, column))

    def forward(self, x: Tensor) -> Tensor:
        """Tensor[N, in_channels, H, W] -> Tensor[N, out_channels, H, W]."""
        return self.column_row(x) + self.row_column(x)


def _branch(
    in_channels: int, middle: int, out_channels: int, kernels: tuple[tuple[int, int], ...]
) -> nn.Sequential:
    first, second = kernels
    convs = (
        nn.Conv2d(in_channels, middle, first, padding="same"),
        nn.Conv2d(middle, out_channels, second, padding="same"),
    )
    # The authors start with deviation 0.01, which suits 2048 channels and leaves a thin feature at
    # a tenth of its size; this keeps the size for every width.
    for conv in convs:
        weight_init.c2_xavier_fill(conv)
    return nn.Sequential(*convs)
