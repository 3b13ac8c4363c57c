"""Boxes of the two images of small_heads.py."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from detectron2.structures import Boxes

from .small_heads import SIZE


@pytest.fixture
def boxes(random_boxes: Callable[..., Boxes]) -> list[Boxes]:
    return [random_boxes(20, *SIZE, least=8, seed=i) for i in range(2)]
