"""Which map of a bank is read, against exact fractions and places worked by hand."""

from __future__ import annotations

import math
from fractions import Fraction
from math import floor

import pytest
import torch

from fsn_d2.modeling.selection import nearest_ratio, sub_region_in_image, sub_region_in_roi

RATIOS = [0.5, 1.0, 2.0]


def test_sub_regions_of_7_by_7_bins_by_hand() -> None:
    """Bin centres at 0.21, 0.64, 1.07, 1.5, 1.93, 2.36 and 2.79 thirds."""
    line = torch.tensor([0, 0, 1, 1, 1, 2, 2])
    index = sub_region_in_roi((7, 7), 3)
    assert index.dtype == torch.int64
    assert index.equal((line[:, None] * 3 + line)[None])


@pytest.mark.parametrize(
    "size, grid",
    [((7, 7), 3), ((14, 14), 3), ((7, 5), 2), ((5, 7), 2), ((3, 3), 3), ((1, 1), 3), ((2, 9), 4)]
    + [((bins, bins + 3), grid) for bins in range(1, 30, 4) for grid in (1, 5, 6, 7, 10)],
)
def test_sub_regions_equal_the_formula(size: tuple[int, int], grid: int) -> None:
    def cell(bin_: int, bins: int) -> int:
        return floor((bin_ + Fraction(1, 2)) * grid / bins)

    rows, columns = size
    expected = [
        [cell(i, rows) * grid + cell(j, columns) for j in range(columns)] for i in range(rows)
    ]
    assert sub_region_in_roi(size, grid).tolist() == [expected]


def around(image: int, x: float, y: float) -> list[float]:
    """An RoI with its centre at (x, y)."""
    return [image, x - 8, y - 4, x + 8, y + 4]


def test_sub_regions_of_images_by_hand() -> None:
    """Image 0: thirds of 30 rows and 20 columns. Image 1: of 10 rows and 100 columns."""
    sizes = [(90, 60), (30, 300)]
    places = [
        (around(0, 10, 10), 0),
        (around(0, 50, 10), 2),
        (around(0, 10, 80), 6),
        (around(0, 30, 45), 4),
        (around(1, 50, 25), 6),
        (around(1, 250, 5), 2),
        (around(1, 150, 15), 4),
        (around(0, 20, 30), 4),  # a border belongs to the part behind it
        (around(0, 19.75, 29.75), 0),
        (around(0, 0, 0), 0),
        (around(0, 60, 90), 8),  # but the image's own far border to its last part
        (around(0, -500, 45), 3),
        (around(0, 500, 45), 5),
        (around(0, 30, -500), 1),
        (around(0, 30, 500), 7),
        (around(1, 1e30, -1e30), 2),
    ]
    rois = torch.tensor([roi for roi, _ in places])
    index = sub_region_in_image(rois, sizes, 3)
    assert index.dtype == torch.int64 and index.shape == (len(places), 1, 1)
    assert index.flatten().tolist() == [part for _, part in places]


@pytest.mark.parametrize("grid", [1, 2, 3, 5])
@pytest.mark.parametrize("as_tensors", [False, True])
def test_sub_regions_of_images_equal_the_formula(grid: int, as_tensors: bool) -> None:
    generator = torch.Generator().manual_seed(grid)
    sizes = [(480, 640), (333, 500), (1, 7)]
    rois = torch.randint(-300, 900, (300, 5), generator=generator)
    rois[:, 0] = torch.arange(300) % 3

    def part(center: Fraction, side: int) -> int:
        return min(max(floor(center * grid / side), 0), grid - 1)

    expected = []
    for image, x1, y1, x2, y2 in rois.tolist():
        height, width = sizes[image]
        row, column = part(Fraction(y1 + y2, 2), height), part(Fraction(x1 + x2, 2), width)
        expected.append(row * grid + column)
    given = [tuple(map(torch.tensor, s)) for s in sizes] if as_tensors else sizes
    assert sub_region_in_image(rois.float(), given, grid).flatten().tolist() == expected


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_sub_regions_of_images_of_one_size_are_traced() -> None:
    """As fvcore does to count operations."""
    rois = torch.tensor([around(0, 50, 10), around(0, 30, 45)])
    traced = torch.jit.trace(lambda boxes: sub_region_in_image(boxes, [(90, 60)], 3), rois)
    moved = torch.tensor([around(0, 10, 80), around(0, 30, 500), around(0, 0, 0)])
    assert traced(moved).flatten().tolist() == [6, 7, 0]


def test_borders_between_parts_are_exact() -> None:
    """A centre on a border that float32 can hold: rounding must not move it to the part before."""
    widths = [w for w in range(3, 1400) if w % 3 == 0]
    rois = torch.tensor([[i, w / 3 - 1, 0, w / 3 + 1, 2] for i, w in enumerate(widths)])
    assert (sub_region_in_image(rois, [(9, w) for w in widths], 3) == 1).all()


def test_no_rois() -> None:
    rois = torch.zeros(0, 5)
    assert sub_region_in_image(rois, [(9, 9)], 3).shape == (0, 1, 1)
    assert nearest_ratio(rois, RATIOS).shape == (0, 1, 1)


def test_no_images() -> None:
    assert sub_region_in_image(torch.zeros(0, 5), [], 3).shape == (0, 1, 1)


def roi_of(height: float, width: float) -> list[float]:
    return [0.0, 30, 20, 30 + width, 20 + height]


@pytest.mark.parametrize(
    "height, width, nearest",
    [
        (500, 1000, 0),
        (1000, 1000, 1),
        (2000, 1000, 2),
        (707, 1000, 0),  # borders at sqrt(1/2) and sqrt(2)
        (708, 1000, 1),
        (1414, 1000, 1),
        (1415, 1000, 2),
        (1, 5000, 0),
        (5000, 1, 2),
        (0, 0, 1),  # no extent: as a square
        (0, 10, 0),
        (10, 0, 2),
        (-5, -5, 1),
        (-5, 10, 0),
        (10, -5, 2),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nearest_ratio_by_hand(
    height: float, width: float, nearest: int, dtype: torch.dtype
) -> None:
    index = nearest_ratio(torch.tensor([roi_of(height, width)], dtype=dtype), RATIOS)
    assert index.tolist() == [[[nearest]]] and index.dtype == torch.int64


def test_nearest_ratio_follows_the_order_of_the_ratios() -> None:
    rois = torch.tensor([roi_of(10, 20), roi_of(20, 20), roi_of(40, 20), roi_of(80, 20)])
    assert nearest_ratio(rois, [2.0, 0.5, 1.0]).flatten().tolist() == [1, 2, 0, 0]
    assert nearest_ratio(rois, [1.0]).flatten().tolist() == [0, 0, 0, 0]


def test_nearest_ratio_equals_a_search() -> None:
    generator = torch.Generator().manual_seed(0)
    sides = torch.randint(1, 400, (300, 2), generator=generator).tolist()
    ratios = [0.2, 0.5, 1.0, 1.7, 4.0]
    rois = torch.tensor([roi_of(h, w) for h, w in sides])
    expected = [min(range(5), key=lambda r: abs(math.log(h / w / ratios[r]))) for h, w in sides]
    assert nearest_ratio(rois, ratios).flatten().tolist() == expected
