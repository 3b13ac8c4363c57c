"""Which cells of a feature pyramid the shrunk box of an object covers (FSAF, section 3.2)."""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor


class Pyramid(NamedTuple):
    """The levels of a pyramid; its cells are numbered level by level, row by row.

    Cell (row, column) of a level covers the pixels from stride * (column, row) on, stride a side.

    Attributes:
        sizes: (height, width) of each level, cells.
        strides: of each level, pixels.
    """

    sizes: list[tuple[int, int]]
    strides: list[int]

    @property
    def starts(self) -> list[int]:
        """Number of the first cell of each level, and last the number of all cells."""
        return [0, *accumulate(height * width for height, width in self.sizes)]

    @property
    def num_cells(self) -> int:
        return self.starts[-1]


class Region(NamedTuple):
    """The cells that belong to a set of instances: one entry per instance, level and cell.

    Attributes:
        instance: int64 Tensor[P].
        level: int64 Tensor[P].
        cell: int64 Tensor[P], number within the pyramid of one image.
    """

    instance: Tensor
    level: Tensor
    cell: Tensor

    def where(self, mask: Tensor) -> Region:
        """The entries that a bool Tensor[P] marks."""
        return Region(*(values[mask] for values in self))


def _spans(boxes: Tensor, fraction: float, pyramid: Pyramid) -> tuple[Tensor, Tensor]:
    """First cell and end, each int64 Tensor[M, L, 2] of (column, row); at least one cell a side."""
    strides = boxes.new_tensor(pyramid.strides)[:, None]
    heights, widths = zip(*pyramid.sizes, strict=True)
    limits = torch.tensor([widths, heights], device=boxes.device).T
    center = (boxes[:, None, :2] + boxes[:, None, 2:]) / 2
    half = (boxes[:, None, 2:] - boxes[:, None, :2]) * (fraction / 2)
    first = ((center - half) / strides).floor().long().clamp(min=0).minimum(limits - 1)
    end = ((center + half) / strides).ceil().long().minimum(limits).maximum(first + 1)
    return first, end


def region_cells(boxes: Tensor, fraction: float, pyramid: Pyramid) -> Region:
    """The cells that each box, shrunk about its centre, touches on every level (FSAF, section 3.2).

    A shrunk box that lies on a border between cells without touching the inside of any has the
    cell behind that border, so every box has at least one cell on every level. Cells outside the
    map do not exist; a box out there has the nearest cell of the map. The work and the result grow
    with the number of covered cells.

    Args:
        boxes: Tensor[M, 4] of (x1, y1, x2, y2), pixels.
        fraction: of width and height that remains, 0..1.
        pyramid: the levels.

    Returns:
        entries ordered by instance, level and cell.
    """
    first, end = (span.flatten(0, 1) for span in _spans(boxes, fraction, pyramid))
    columns, rows = (end - first).unbind(1)
    counts = columns * rows
    number = torch.arange(len(counts), device=boxes.device).repeat_interleave(counts)
    place = torch.arange(len(number), device=boxes.device) - (counts.cumsum(0) - counts)[number]
    column = first[number, 0] + place % columns[number]
    row = first[number, 1] + place.div(columns[number], rounding_mode="floor")
    level = number % len(pyramid.strides)
    starts = torch.tensor(pyramid.starts, device=boxes.device)
    widths = torch.tensor([width for _, width in pyramid.sizes], device=boxes.device)
    cell = starts[level] + row * widths[level] + column
    return Region(number.div(len(pyramid.strides), rounding_mode="floor"), level, cell)
