"""The level with the smallest mean loss, and the one that size alone would choose."""

from __future__ import annotations

import torch

from fsn_d2.modeling.fsaf import Region, levels_by_size, select_levels


def test_the_mean_decides_and_not_the_sum() -> None:
    # Instance 0: means 2 and 3; instance 1: means 5 and 1.
    instance = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    level = torch.tensor([0, 0, 0, 1, 0, 1, 1, 1])
    losses = torch.tensor([1.0, 2, 3, 3, 5, 0, 1, 2])
    region = Region(instance, level, torch.arange(8))
    assert select_levels(region, losses, (2, 2)).tolist() == [0, 1]
    shuffled = torch.tensor([3, 7, 0, 4, 2, 6, 1, 5])
    mixed = Region(*(values[shuffled] for values in region))
    assert select_levels(mixed, losses[shuffled], (2, 2)).tolist() == [0, 1]


def test_nothing_to_select() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert select_levels(Region(none, none, none), torch.zeros(0), (0, 5)).tolist() == []


def test_levels_by_size() -> None:
    # 224 pixels belong on P5, each half of that a level finer; P3 and P7 take the rest.
    sizes = [1.0, 55.9, 112, 113, 223.9, 224, 447.9, 448, 1000, 5000]
    boxes = torch.tensor([[10.0, 20, 10 + 2 * s, 20 + s / 2] for s in sizes])
    expected = [3, 3, 4, 4, 4, 5, 5, 6, 7, 7]
    levels = levels_by_size(boxes, [8, 16, 32, 64, 128])
    assert (levels + 3).tolist() == expected
    assert levels_by_size(boxes, [4]).tolist() == [0] * len(sizes)
