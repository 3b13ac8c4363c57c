"""The banks against torchvision's deformable convolution and plain linear algebra."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.ops import deform_conv2d

from fsn_d2.modeling import AttentionBanks

SIZES = [(50, 60), (64, 80)]


def make_banks(**changes) -> AttentionBanks:
    torch.manual_seed(0)
    settings = {
        "grid": 3,
        "shift": 1,
        "num_ratios": 3,
        "kernel_size": 1,
        "input": "feature",
        "start": None,
    }
    banks = AttentionBanks(6, 4, **{**settings, **changes})
    for parameter in banks.parameters():  # biases too, which begin at zero
        torch.nn.init.normal_(parameter)
    return banks


def linear_map(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.einsum("nihw,oi->nohw", x, weight[:, :, 0, 0]) + bias[:, None, None]


@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize("source", ["feature", "reduced"])
@pytest.mark.parametrize(("grid", "shift"), [(3, 1), (3, 2), (2, 1), (1, 1)])
def test_each_sub_region_map_is_a_convolution_displaced_by_its_direction(
    kernel_size: int, source: str, grid: int, shift: int
) -> None:
    banks = make_banks(kernel_size=kernel_size, input=source, grid=grid, shift=shift)
    feature = torch.randn(2, 6, 7, 9)
    maps = banks({"p2": feature}, SIZES)["p2"]
    x = maps.roi if source == "reduced" else feature
    weights = banks.sub_region.conv.weight.unflatten(0, (grid * grid, 4))
    biases = banks.sub_region.conv.bias.unflatten(0, (grid * grid, 4))
    steps = {1: [0], 2: [-shift, shift], 3: [-shift, 0, shift]}[grid]
    directions = [(dy, dx) for dy in steps for dx in steps]
    for b, direction in enumerate(directions):
        offset = torch.tensor(direction, dtype=torch.float32)[None, :, None, None]
        offset = offset.repeat(2, kernel_size**2, 7, 9)
        expected = deform_conv2d(x, offset, weights[b], biases[b], padding=kernel_size // 2)
        torch.testing.assert_close(maps.sub_region[:, b], expected, atol=1e-4, rtol=1e-4)


def test_a_map_that_looks_outside_the_feature_equals_its_bias() -> None:
    banks = make_banks()
    maps = banks({"p2": torch.randn(1, 6, 5, 5)}, SIZES[:1])["p2"]
    top_left_bias = banks.sub_region.conv.bias[:4]
    torch.testing.assert_close(maps.sub_region[0, 0, :, 0, :], top_left_bias[:, None].expand(4, 5))


@pytest.mark.parametrize("source", ["feature", "reduced"])
def test_reduced_feature_and_ratio_bank_are_linear_maps_in_bank_major_order(source: str) -> None:
    banks = make_banks(input=source)
    feature = torch.randn(2, 6, 7, 9)
    maps = banks({"p2": feature}, SIZES)["p2"]
    reduced = linear_map(feature, banks.reduce.weight, banks.reduce.bias)
    torch.testing.assert_close(maps.roi, reduced, atol=1e-4, rtol=1e-4)
    x = reduced if source == "reduced" else feature
    for r in range(3):
        rows = slice(4 * r, 4 * r + 4)
        conv = banks.aspect_ratio
        expected = linear_map(x, conv.weight[rows], conv.bias[rows])
        torch.testing.assert_close(maps.aspect_ratio[:, r], expected, atol=1e-4, rtol=1e-4)


def test_levels_share_the_weights_and_keep_their_names_and_sizes() -> None:
    banks = make_banks()
    big, small = torch.randn(2, 6, 8, 10), torch.randn(2, 6, 4, 5)
    maps = banks({"p2": big, "p3": small}, SIZES)
    assert list(maps) == ["p2", "p3"]
    assert maps["p2"].sub_region.shape == (2, 9, 4, 8, 10)
    assert maps["p3"].aspect_ratio.shape == (2, 3, 4, 4, 5)
    assert maps["p3"].image_sizes == SIZES
    alone = banks({"x": small}, SIZES)["x"]
    torch.testing.assert_close(maps["p3"].sub_region, alone.sub_region)


@pytest.mark.parametrize(("grid", "num_ratios"), [(0, 3), (3, 0), (0, 0)])
def test_a_bank_left_out_has_neither_maps_nor_parameters(grid: int, num_ratios: int) -> None:
    banks = make_banks(grid=grid, num_ratios=num_ratios)
    maps = banks({"p2": torch.randn(1, 6, 4, 4)}, SIZES[:1])["p2"]
    assert (maps.sub_region is not None) == bool(grid)
    assert (maps.aspect_ratio is not None) == bool(num_ratios)
    expected = 6 * 4 + 4 + (grid * grid + num_ratios) * (6 * 4 + 4)
    assert sum(p.numel() for p in banks.parameters()) == expected


@torch.no_grad()
@pytest.mark.parametrize("start", [0.0, 1.0])
@pytest.mark.parametrize(("grid", "num_ratios"), [(3, 3), (0, 3), (3, 0)])
@pytest.mark.parametrize(("width", "kernel_size"), [(64, 1), (256, 3), (2048, 1)])
def test_the_attentions_of_both_banks_begin_near_the_wanted_sum(
    width: int, kernel_size: int, start: float, grid: int, num_ratios: int
) -> None:
    torch.manual_seed(0)
    banks = AttentionBanks(
        width,
        8,
        grid=grid,
        shift=1,
        num_ratios=num_ratios,
        kernel_size=kernel_size,
        input="feature",
        start=start,
    )
    maps = banks({"p2": torch.randn(1, width, 16, 16)}, SIZES[:1])["p2"]
    total = sum(m[:, 0] for m in (maps.sub_region, maps.aspect_ratio) if m is not None)
    # At most two banks of deviation 0.06.
    assert abs(float(total.mean()) - start) < 0.05
    assert 0.04 < float(total.std()) < 0.1


def test_an_unknown_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"MODEL\.FSN\.BANK_INPUT.*'nonsense'"):
        make_banks(input="nonsense")
