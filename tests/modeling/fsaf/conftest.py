"""What the tests of FSAF's parts share: small pyramids, random objects, and the rules of the paper
as slow loops over pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from fsn_d2.modeling.fsaf import Objects, Pyramid

HEIGHT, WIDTH = 64, 92  # pixels
STRIDES = [4, 8, 16, 32]
NUM_CLASSES = 3


@pytest.fixture
def pyramid() -> Pyramid:
    return Pyramid([(-(-HEIGHT // s), -(-WIDTH // s)) for s in STRIDES], STRIDES)


def _draw_boxes(count: int, rng: torch.Generator) -> torch.Tensor:
    """Of log-uniform sizes, a pixel to the whole image; every third is a neighbour of another."""
    sides = torch.tensor([WIDTH, HEIGHT])
    size = sides ** torch.rand(count, 2, generator=rng)
    corner = torch.rand(count, 2, generator=rng) * (sides - size)
    boxes = torch.cat([corner, corner + size], dim=1)
    if count:
        near = torch.randint(count, (len(boxes[::3]),), generator=rng)
        boxes[::3] = boxes[near] + torch.rand(len(near), 4, generator=rng)
    return boxes


SPECIAL = torch.tensor(
    [
        [0, 0, WIDTH, HEIGHT],  # touches every border
        [0, 20.3, 11.7, 31.9],
        [WIDTH - 9.1, HEIGHT - 7.3, WIDTH, HEIGHT],
        [WIDTH - 0.4, 10.2, WIDTH, 10.9],  # tiny, at the border
        [33.31, 17.77, 33.52, 17.93],  # tiny
        [33.3, 17.7, 34.6, 18.9],
        [40.3, 12.1, 40.3, 30.7],  # no width
        [50.7, 25.2, 61.1, 25.2],  # no height
        [21.9, 44.2, 20.1, 50.5],  # inside out
        [5.2, 6.3, 90.1, 7.1],  # thin
    ]
)


@pytest.fixture
def draw() -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """Boxes and classes of one image; by the seed with borders, tiny and degenerate boxes."""

    def objects(seed: int, count: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        rng = torch.Generator().manual_seed(seed)
        number = int(torch.randint(7, (1,), generator=rng)) if count is None else count
        boxes = _draw_boxes(number, rng)
        if count is None:
            chosen = torch.randperm(len(SPECIAL), generator=rng)[: seed % 5]
            boxes = torch.cat([boxes, SPECIAL[chosen]])
            boxes = boxes[torch.randperm(len(boxes), generator=rng)]
        return boxes, torch.randint(NUM_CLASSES, (len(boxes),), generator=rng)

    return objects


def _touched(low: float, high: float, stride: int, count: int) -> list[int]:
    """The cells of one axis of which an interval covers some of the inside, else the nearest."""
    cells = [i for i in range(count) if low < (i + 1) * stride and high > i * stride]
    return cells or [min(max(math.floor(low / stride), 0), count - 1)]


def _region(box: list[float], fraction: float, stride: int, size: tuple[int, int]) -> set:
    spans = []
    for axis in (0, 1):
        center, side = (box[axis] + box[axis + 2]) / 2, box[axis + 2] - box[axis]
        interval = center - fraction * side / 2, center + fraction * side / 2
        spans.append(_touched(*interval, stride, size[1 - axis]))
    return {(row, column) for row in spans[1] for column in spans[0]}


@dataclass
class Literal:
    """The rules, pixel by pixel, for the objects of one image that have an area."""

    boxes: list[list[float]]
    classes: list[int]
    pyramid: Pyramid

    def region(self, index: int, fraction: float, level: int) -> set[tuple[int, int]]:
        sizes, strides = self.pyramid
        return _region(self.boxes[index], fraction, strides[level], sizes[level])

    def labels(
        self, chosen: list[int], effective: float, ignored: float, rule: str
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Per cell the object to find or -1, and per cell and class 1, 0 or -1 (ignored)."""
        owners, labels = [], []
        for level, (height, width) in enumerate(self.pyramid.sizes):
            positive = [self.region(i, effective, level) for i in range(len(self.boxes))]
            unsure = [self.region(i, ignored, level) for i in range(len(self.boxes))]
            for row in range(height):
                for column in range(width):
                    cell, owner, label = (row, column), -1, [0] * NUM_CLASSES
                    for i, class_ in enumerate(self.classes):
                        away = abs(level - chosen[i])
                        if cell in unsure[i] and (rule == "mmdet" or away <= 1):
                            label[class_] = -1
                        smaller = owner < 0 or self.area(i) < self.area(owner)
                        if cell in positive[i] and away == 0 and smaller:
                            owner = i
                    if owner >= 0:
                        label[self.classes[owner]] = 1
                    owners.append(owner)
                    labels.append(label)
        return torch.tensor(owners), torch.tensor(labels)

    def area(self, index: int) -> float:
        x1, y1, x2, y2 = self.boxes[index]
        return (x2 - x1) * (y2 - y1)


@pytest.fixture
def literal() -> Callable[[Objects, Pyramid], Literal]:
    def build(objects: Objects, pyramid: Pyramid) -> Literal:
        return Literal(objects.boxes.tolist(), objects.classes.tolist(), pyramid)

    return build
