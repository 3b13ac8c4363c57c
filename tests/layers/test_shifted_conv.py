"""`ShiftedConv2d` against torchvision's deformable convolution with constant offsets."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fsn_d2.layers import ShiftedConv2d, grid_offsets


def deformed(layer: ShiftedConv2d, x: Tensor, kernel: int) -> Tensor:
    """The bank by deform_conv2d, one map after the other; channel = map * out_channels + c."""
    deform_conv2d = pytest.importorskip("torchvision.ops").deform_conv2d
    maps = []
    images, _, height, width = x.shape
    for b, (dy, dx) in enumerate(layer.offsets):
        own = slice(b * layer.out_channels, (b + 1) * layer.out_channels)
        offset = torch.tensor([dy, dx] * kernel * kernel, dtype=x.dtype)
        offset = offset[None, :, None, None].expand(images, -1, height, width)
        weight, bias = layer.conv.weight[own], layer.conv.bias
        assert bias is not None
        maps.append(deform_conv2d(x, offset, weight, bias[own], padding=kernel // 2))
    return torch.stack(maps, 1)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("shift", [1, 2])
@pytest.mark.parametrize("grid", [2, 3, 5])
@pytest.mark.parametrize("size", [(9, 7), (2, 3), (1, 1)])
def test_equals_deformable_convolution(
    grid: int, shift: int, kernel: int, size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    offsets = grid_offsets(grid, shift)
    layer = ShiftedConv2d(4, 3, offsets, kernel).double()
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    bank = layer(x)
    assert bank.shape == (2, grid * grid, 3, *size)
    torch.testing.assert_close(bank, deformed(layer, x, kernel), rtol=0, atol=1e-12)


def test_gradients_equal_those_of_deformable_convolution() -> None:
    torch.manual_seed(1)
    layer = ShiftedConv2d(2, 3, [(-1, 2), (0, 0), (3, -1)], 3).double()
    x = torch.randn(1, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    inputs = [x, *layer.parameters()]
    ours = torch.autograd.grad(layer(x).square().sum(), inputs)
    theirs = torch.autograd.grad(deformed(layer, x, 3).square().sum(), inputs)
    assert len(ours) == 3
    torch.testing.assert_close(ours, theirs)


def test_each_map_reads_its_neighbour() -> None:
    """With the identity as kernel, map (dy, dx) at (1, 1) of a 3 x 3 ramp is the cell there."""
    layer = ShiftedConv2d(1, 1, grid_offsets(3, 1))
    torch.nn.init.ones_(layer.conv.weight)
    assert layer.conv.bias is not None
    torch.nn.init.zeros_(layer.conv.bias)
    bank = layer(torch.arange(9.0).view(1, 1, 3, 3))
    assert bank[0, :, 0, 1, 1].tolist() == list(range(9))
    assert bank[0, 8, 0].tolist() == [[4, 5, 0], [7, 8, 0], [0, 0, 0]]


def test_a_cell_that_looks_outside_equals_the_bias() -> None:
    offsets = [offset for offset in grid_offsets(3, 1) if offset != (0, 0)]
    layer = ShiftedConv2d(4, 2, offsets)
    bank = layer(torch.randn(1, 4, 1, 1))
    assert layer.conv.bias is not None
    assert bank.flatten().equal(layer.conv.bias)


@pytest.mark.parametrize(
    "grid, shift, line",
    [
        (1, 1, [0]),
        (2, 1, [-1, 1]),
        (2, 3, [-3, 3]),
        (3, 1, [-1, 0, 1]),
        (3, 2, [-2, 0, 2]),
        (4, 1, [-2, -1, 1, 2]),
        (5, 2, [-4, -2, 0, 2, 4]),
    ],
)
def test_grid_offsets(grid: int, shift: int, line: list[int]) -> None:
    """Row by row: the row changes slowest."""
    offsets = grid_offsets(grid, shift)
    assert len(offsets) == grid * grid
    assert [dy for dy, _ in offsets[::grid]] == line
    assert [dx for _, dx in offsets[:grid]] == line
    assert offsets[grid - 1] == (line[0], line[-1])


@pytest.mark.parametrize("kernel", [0, 2, 4, -1])
def test_an_even_kernel_is_refused(kernel: int) -> None:
    with pytest.raises(ValueError, match=rf"kernel_size must be odd.*{kernel}"):
        ShiftedConv2d(4, 2, [(0, 0)], kernel)


def test_no_offsets_are_refused() -> None:
    with pytest.raises(ValueError, match="offsets"):
        ShiftedConv2d(4, 2, [])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_trace_takes_other_sizes() -> None:
    layer = ShiftedConv2d(3, 2, grid_offsets(3, 2), 3)
    traced = torch.jit.trace(layer, torch.randn(1, 3, 6, 5))
    x = torch.randn(2, 3, 4, 9)
    torch.testing.assert_close(traced(x), layer(x))
