"""The cells of shrunk boxes: worked by hand, and equal to asking every pixel."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fsn_d2.modeling.fsaf import Pyramid, region_cells

ONE = Pyramid([(4, 6)], [8])  # 32 x 48 pixels


def cells(box: list[float], fraction: float, pyramid: Pyramid = ONE) -> list[int]:
    region = region_cells(torch.tensor([box]), fraction, pyramid)
    assert (region.instance == 0).all()
    return region.cell.tolist()


def test_a_box_worked_by_hand() -> None:
    # Shrunk to half: x 13 to 27, y 6 to 18, hence columns 1..3 and rows 0..2 of 6 columns.
    assert cells([6, 0, 34, 24], 0.5) == [1, 2, 3, 7, 8, 9, 13, 14, 15]
    # To a fifth: x 17.2 to 22.8, y 9.6 to 14.4, one cell.
    assert cells([6, 0, 34, 24], 0.2) == [8]


def test_touching_a_border_between_cells_is_not_covering_the_cell_behind() -> None:
    assert cells([0, 0, 32, 16], 0.5) == [1, 2, 7, 8]  # x 8 to 24, y 4 to 12


@pytest.mark.parametrize(
    ("box", "cell"),
    [
        ([9.1, 9.2, 9.3, 9.4], 7),  # far smaller than a cell
        ([47.9, 31.8, 48, 32], 23),  # in the last corner
        ([0, 0, 0.1, 0.1], 0),
        ([7.9, 0.1, 8.0, 0.2], 0),
    ],
)
def test_a_box_smaller_than_a_cell_has_the_cell_it_lies_in(box: list[float], cell: int) -> None:
    assert cells(box, 0.2) == [cell]


def test_a_point_on_a_border_has_the_cell_behind_it() -> None:
    assert cells([8, 16, 8, 16], 0.2) == [13]
    assert cells([48, 32, 48, 32], 0.2) == [23]  # behind the last one is none


def test_a_box_outside_the_map_has_the_nearest_cell() -> None:
    assert cells([-20, -30, -12, -10], 1.0) == [0]
    assert cells([60, 50, 90, 80], 1.0) == [23]
    assert cells([-20, 9, -12, 15], 1.0) == [6]


def test_a_box_between_two_cells_has_both() -> None:
    assert cells([7, 1, 9, 3], 0.2) == [0, 1]


def test_the_cells_of_the_levels_are_numbered_one_after_the_other() -> None:
    pyramid = Pyramid([(4, 6), (2, 3), (1, 2)], [8, 16, 32])
    assert (pyramid.starts, pyramid.num_cells) == ([0, 24, 30, 32], 32)
    region = region_cells(torch.tensor([[35.0, 19, 37, 21], [1, 1, 2, 2]]), 0.2, pyramid)
    assert region.instance.tolist() == [0, 0, 0, 1, 1, 1]
    assert region.level.tolist() == [0, 1, 2, 0, 1, 2]
    assert region.cell.tolist() == [2 * 6 + 4, 24 + 3 + 2, 30 + 1, 0, 24, 30]


def test_the_ignored_region_holds_the_effective_one(draw: Callable, pyramid: Pyramid) -> None:
    boxes, _ = draw(0, 300)
    regions = [region_cells(boxes, fraction, pyramid) for fraction in (0.2, 0.5)]
    inner, outer = (set(zip(r.instance.tolist(), r.cell.tolist(), strict=True)) for r in regions)
    assert inner < outer


def test_no_boxes() -> None:
    region = region_cells(torch.zeros(0, 4), 0.2, ONE)
    assert [values.tolist() for values in region] == [[], [], []]


def test_work_grows_with_the_covered_cells_alone() -> None:
    huge = Pyramid([(100_000, 100_000)], [8])
    boxes = torch.tensor([[800.0, 800, 840, 840]]).repeat(1000, 1)
    assert len(region_cells(boxes, 0.4, huge).cell) == 1000 * 9  # x and y from 812 to 828
