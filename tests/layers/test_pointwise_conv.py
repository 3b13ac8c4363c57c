"""`PointwiseConv2d` against PyTorch's own convolution."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fsn_d2.layers import PointwiseConv2d


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(2, 6, 5, 7), (1, 6, 4, 3), (1, 6, 1, 1), (0, 6, 5, 7)])
def test_equals_a_convolution_and_has_its_gradients(shape: tuple, memory_format) -> None:
    torch.manual_seed(0)
    ours = PointwiseConv2d(6, 4).double()
    theirs = nn.Conv2d(6, 4, 1).double()
    theirs.load_state_dict(ours.state_dict())
    feature = torch.randn(shape, dtype=torch.float64).to(memory_format=memory_format)
    found = []
    for conv in (ours, theirs):
        x = feature.clone().requires_grad_()
        y = conv(x)
        (y * torch.arange(y.numel()).view(y.shape)).sum().backward()
        found.append([y.detach(), x.grad, conv.weight.grad, conv.bias.grad])
    for actual, expected in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("images", [1, 2])
def test_the_channels_of_a_cell_lie_side_by_side_also_when_padded(images: int) -> None:
    y = PointwiseConv2d(6, 4)(torch.randn(images, 6, 5, 7))
    assert y.is_contiguous(memory_format=torch.channels_last)
    padded = nn.functional.pad(y, (1, 1, 1, 1))
    assert padded.is_contiguous(memory_format=torch.channels_last)
