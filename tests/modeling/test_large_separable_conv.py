"""The large separable convolution against one k x k convolution with the product of its kernels."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fsn_d2.modeling import LargeSeparableConv2d


@torch.no_grad()
@pytest.mark.parametrize("k", [1, 3, 15])
def test_without_biases_it_is_a_full_convolution_of_low_rank(k: int) -> None:
    torch.manual_seed(0)
    module = LargeSeparableConv2d(4, 6, 5, k)
    full = torch.zeros(5, 4, k, k)
    for branch in (module.column_row, module.row_column):
        first, second = branch
        for conv in branch:
            conv.weight.normal_()
        kernels = first.weight.flatten(2), second.weight.flatten(2)  # [6, 4, k], [5, 6, k]
        outer = "mcy,omx->ocyx" if branch is module.column_row else "mcx,omy->ocyx"
        full += torch.einsum(outer, *kernels)
    x = torch.randn(2, 4, 9, 11)
    expected = F.conv2d(x, full, padding=k // 2)
    torch.testing.assert_close(module(x), expected, atol=1e-3, rtol=1e-3)


def test_the_papers_sizes() -> None:
    module = LargeSeparableConv2d(2048, 256, 490, 15)
    shapes = [tuple(conv.weight.shape) for branch in module.children() for conv in branch]
    assert shapes == [
        (256, 2048, 15, 1),
        (490, 256, 1, 15),
        (256, 2048, 1, 15),
        (490, 256, 15, 1),
    ]
    assert all(conv.bias is not None for branch in module.children() for conv in branch)


@pytest.mark.parametrize("k", [0, 2, -3])
def test_an_even_kernel_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match="kernel_size"):
        LargeSeparableConv2d(4, 6, 5, k)
