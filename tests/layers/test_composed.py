"""The ops composed of torchvision's give what the ops give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fsn_d2.layers import selective_roi_align, selective_roi_pool
from fsn_d2.layers.composed import StockOps

MERGES = ("stack", "sum", "multiply", "multiply_relu")
FLIPPED, HUGE = 2, 5  # kinds of RoIs, of 12, that torchvision does not survive


def without_wild_rois(pooling: Any) -> Any:
    kind = torch.arange(len(pooling.rois)) % 12
    wild = (kind == FLIPPED) | (kind == HUGE)
    return pooling._replace(rois=pooling.rois.where(~wild[:, None], pooling.rois[kind == 6][0]))


def op_and_composed(pooling: Any, run: Any) -> tuple[Tensor, Tensor]:
    expected = run(*pooling)
    with StockOps():
        composed = run(*pooling)
    assert expected.abs().max() > 0.5
    return composed, expected


@pytest.mark.parametrize("num_levels", [1, 3])
@pytest.mark.parametrize("shifted", [True, False])
@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("merge", MERGES)
def test_bilinear_pooling(
    merge: str, ratio: int, shifted: bool, num_levels: int, comparison: Any
) -> None:
    options = {"shifted": shifted, "num_levels": num_levels, "sampling_ratio": ratio, "count": 240}
    pooling = without_wild_rois(comparison.draw(merge, dtype=torch.float64, **options))
    composed, expected = op_and_composed(pooling, torch.ops.fsn_d2.selective_roi_align)
    torch.testing.assert_close(composed, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("per_roi", [True, False])
@pytest.mark.parametrize("num_levels", [1, 3])
@pytest.mark.parametrize("mode", ["max", "avg"])
def test_bins_of_whole_cells(
    mode: str, num_levels: int, per_roi: bool, dtype: torch.dtype, comparison: Any
) -> None:
    drawn = comparison.draw_bins(mode, dtype=dtype, num_levels=num_levels, count=240)
    pooling = without_wild_rois(drawn)
    if per_roi:
        pooling = pooling._replace(bank_index=torch.arange(240)[:, None, None] % 9)
    composed, expected = op_and_composed(pooling, torch.ops.fsn_d2.selective_roi_pool)
    torch.testing.assert_close(composed, expected, rtol=0, atol=1e-5)
    assert (expected == 0).any(), "bins off the map are part of it"


def test_an_adaptive_ratio_is_the_whole_rois_where_a_bin_is_a_whole_number_of_cells() -> None:
    rng = torch.Generator().manual_seed(0)
    corner = torch.rand(400, 2, generator=rng) * 200
    sides = 7 * 8.0 * torch.randint(1, 4, (400, 2), generator=rng)
    rois = torch.cat([torch.zeros(400, 1), corner, corner + sides], dim=1)
    bank = torch.randn(1, 49, 3, 50, 50, generator=rng)
    arguments = (bank, rois, torch.arange(49).view(7, 7), 7, 1 / 8, 0)
    expected = selective_roi_align(*arguments)
    with StockOps():
        composed = selective_roi_align(*arguments)
    # Another ratio would move samples by a sixth of a cell and more.
    torch.testing.assert_close(composed, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("num_levels", [1, 3])
def test_no_rois(num_levels: int, comparison: Any) -> None:
    align = comparison.draw("stack", num_levels=num_levels, count=0)
    pool = comparison.draw_bins("max", num_levels=num_levels, count=0)
    with StockOps():
        assert torch.ops.fsn_d2.selective_roi_align(*align).shape == (0, 24, 3, 4)
        assert torch.ops.fsn_d2.selective_roi_pool(*pool).shape == (0, 8, 3, 4)


@pytest.mark.parametrize("traced_rois", [0, 1, 5])
def test_the_number_of_rois_is_free_in_a_trace(traced_rois: int, comparison: Any) -> None:
    align, pool = comparison.draw("stack", count=60), comparison.draw_bins("max", count=60)
    align, pool = without_wild_rois(align), without_wild_rois(pool)
    by_ratio = align.bank_indices[2]

    def run(rois: Tensor, levels: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        indices = [*align.bank_indices[:2], index]
        aligned = torch.ops.fsn_d2.selective_roi_align(
            align.inputs, rois, levels, indices, *align[4:]
        )
        return aligned, torch.ops.fsn_d2.selective_roi_pool(pool[0], rois, levels, *pool[3:])

    every = (align.rois, align.levels, by_ratio)
    few = tuple(argument[:traced_rois] for argument in every)
    with StockOps():
        traced = torch.jit.trace(run, few, check_trace=False)
    for actual, expected in zip(traced(*every), run(*every), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("mode", ["align", "max", "avg"])
def test_the_size_of_the_maps_is_free_in_a_trace(mode: str, comparison: Any) -> None:
    rois, index = comparison.draw("sum", count=60).rois[30:], torch.arange(12).view(3, 4) % 9
    rois[:, 1:] = rois[:, 1:].clamp(0, 200).sort().values[:, [0, 1, 3, 2]]

    def run(bank: Tensor) -> Tensor:
        if mode == "align":
            return selective_roi_align(bank, rois, index, (3, 4), 0.25, 0)
        return selective_roi_pool(bank, rois, index, (3, 4), 0.25, mode)

    small, large = torch.randn(2, 9, 4, 12, 14), torch.randn(2, 9, 4, 30, 33)
    with StockOps():
        traced = torch.jit.trace(run, small, check_trace=False)
    assert not run(large[..., :14]).equal(run(large))
    torch.testing.assert_close(traced(large), run(large), rtol=0, atol=1e-3)


def test_nothing_of_this_project_remains_in_a_trace(comparison: Any) -> None:
    align, pool = comparison.draw("stack"), comparison.draw_bins("avg")

    def run(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        aligned = torch.ops.fsn_d2.selective_roi_align([first, *align[0][1:]], *align[1:])
        return aligned, torch.ops.fsn_d2.selective_roi_pool([second, *pool[0][1:]], *pool[1:])

    def traced() -> str:
        example = (align.inputs[0], pool.inputs[0])
        return str(torch.jit.trace(run, example, check_trace=False).graph)

    assert "fsn_d2::" in traced()
    with StockOps():
        stock = traced()
    assert "fsn_d2::" not in stock and "torchvision::roi_align" in stock


def test_a_bin_off_the_map_is_empty_beside_infinite_cells() -> None:
    bank = torch.randn(1, 4, 1, 5, 6)
    bank[..., 0, :] = bank[..., 0] = torch.inf
    index = torch.arange(4).reshape(1, 2, 2)
    arguments = (torch.tensor([[0.0, -9, -9, 3, 3]]), index, (2, 2), 1.0, "max")
    with StockOps():
        composed = selective_roi_pool(bank, *arguments)
    expected = selective_roi_pool(bank, *arguments)
    assert expected.flatten().tolist() == [0, 0, 0, torch.inf]
    assert composed.equal(expected)
