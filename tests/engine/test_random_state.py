"""The random generators' state, and random numbers that follow from keys."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from fsn_d2.engine.random_state import own_random_numbers, random_state, set_random_state


def draw() -> tuple:
    """From every generator that training and augmentation use."""
    normal = np.random.standard_normal()  # numpy keeps the second one of a pair for the next call
    return torch.rand(3).tolist(), normal, np.random.rand(), random.random(), random.gauss(0, 1)


def test_the_numbers_after_a_state_are_the_same_each_time(tmp_path: Path) -> None:
    draw()
    torch.save(random_state(), tmp_path / "state")
    expected = [draw() for _ in range(3)]
    set_random_state(torch.load(tmp_path / "state", weights_only=True))
    assert [draw() for _ in range(3)] == expected


def test_numbers_of_their_own_follow_from_the_keys_alone() -> None:
    def drawn(*keys: int) -> tuple:
        with own_random_numbers(*keys):
            return draw()

    first = drawn(1, 2)
    draw()
    assert drawn(1, 2) == first
    others = [drawn(1, 3), drawn(2, 2), drawn(2, 1), drawn(1), drawn(2**40, 2**50)]
    numbers = [number for one in [first, *others] for number in (one[0][0], one[1], one[3])]
    assert len(set(numbers)) == len(numbers)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_has_numbers_of_its_own_where_asked() -> None:
    torch.cuda.manual_seed(0)
    before = torch.cuda.get_rng_state()
    drawn = []
    for _ in range(2):
        with own_random_numbers(1, gpu=True):
            drawn.append(torch.rand(3, device="cuda").tolist())
    assert drawn[0] == drawn[1]
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_neighbouring_keys_give_independent_numbers() -> None:
    values = []
    for key in range(2000):
        with own_random_numbers(3, key):
            values.append([torch.rand(1).item(), np.random.rand(), random.random()])
    table = np.array(values)
    assert np.abs(table.mean(0) - 0.5).max() < 0.03  # 4.6 standard deviations
    shifted = np.hstack([table[1:], table[:-1]])
    correlation = np.corrcoef(shifted, rowvar=False) - np.eye(6)
    assert np.abs(correlation).max() < 0.1


@pytest.mark.parametrize("fails", [False, True])
def test_the_numbers_outside_are_not_changed(fails: bool) -> None:
    state = random_state()
    expected = draw()
    set_random_state(state)
    try:
        with own_random_numbers(5):
            draw()
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert draw() == expected
