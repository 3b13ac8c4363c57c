"""Lists in messages."""

from __future__ import annotations

import pytest

from fsn_d2.data.wording import shorten


@pytest.mark.parametrize(
    "names, shown",
    [([], "none"), (["a", "b"], "a, b"), (["a", "b", "c"], "a, b, ...")],
)
def test_at_most_two_names(names: list[str], shown: str) -> None:
    assert shorten(names, limit=2) == shown
