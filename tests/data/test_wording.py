"""Lists in messages."""

from __future__ import annotations

import pytest

from fsn_d2.data.wording import shorten, show


@pytest.mark.parametrize(
    "names, shown",
    [([], "none"), (["a", "b"], "a, b"), (["a", "b", "c"], "a, b, ...")],
)
def test_at_most_two_names(names: list[str], shown: str) -> None:
    assert shorten(names, limit=2) == shown


def test_what_cannot_be_printed_is_escaped() -> None:
    text = shorten(["図", "half \ud83d"])
    assert text == "図, half \\ud83d"
    text.encode("utf-8")


@pytest.mark.parametrize(
    "value, shown",
    [(7, "7"), ("a", "'a'"), ([1, 2, 3, "4"], "[1, 2, 3, '4']"), ({2: "cat"}, "{2: 'cat'}")],
)
def test_small_values_are_shown_as_python_writes_them(value: object, shown: str) -> None:
    assert show(value) == shown == repr(value)


@pytest.mark.parametrize("value", [list(range(10**6)), "x" * 10**6, 10**4000, [[[[[[[[]]]]]]]]])
def test_large_and_deep_values_are_abridged(value: object) -> None:
    assert len(show(value)) < 200 and "..." in show(value)
