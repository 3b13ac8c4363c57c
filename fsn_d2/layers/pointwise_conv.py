"""A 1x1 convolution as the matrix product that it is."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class PointwiseConv2d(nn.Conv2d):
    """A 1x1 convolution that reads its input in whatever layout it has, and writes channels_last.

    Equal to `nn.Conv2d`, with the same parameters. A pyramid comes in planes, and on a CPU putting
    it into another layout takes longer than convolving it to a few channels.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        """
        Args:
            in_channels: channels of the input.
            out_channels: channels of the result.
        """
        super().__init__(in_channels, out_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Tensor[N, in_channels, H, W] -> Tensor[N, out_channels, H, W], channels_last."""
        cells = x.flatten(2).transpose(1, 2)
        product = F.linear(cells, self.weight.flatten(1), self.bias)
        return product.unflatten(1, x.shape[-2:]).permute(0, 3, 1, 2)
