"""Problems are collected and reported together."""

from __future__ import annotations

from pathlib import Path

import pytest

from fsn_d2.data.problems import LINES, Problem, collected, raise_problems


def test_nothing_is_raised_for_no_problem(tmp_path: Path) -> None:
    raise_problems([], tmp_path / "all.txt")
    assert not list(tmp_path.iterdir())


def test_one_problem_is_the_message_itself(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^it is broken$"):
        raise_problems([Problem("it is broken", "a")], tmp_path / "all.txt")


@pytest.mark.parametrize("missing, kind", [((1, 1), FileNotFoundError), ((1, 0), ValueError)])
def test_several_are_listed_in_their_order(tmp_path: Path, missing, kind: type) -> None:
    problems = [Problem(f"number {i}", "a", missing=bool(m)) for i, m in enumerate(missing)]
    with pytest.raises(kind) as raised:
        raise_problems(problems, tmp_path / "all.txt")
    assert str(raised.value).splitlines()[1:] == ["- number 0", "- number 1"]
    assert "2 problems" in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_a_long_list_shows_every_kind_and_is_written_in_full(tmp_path: Path) -> None:
    many = [Problem(f"box {i}", "box") for i in range(100)]
    problems = [*many[:50], Problem("half of a pair \ud800", "name"), *many[50:]]
    path = tmp_path / "new" / "all.txt"
    with pytest.raises(ValueError) as raised:
        raise_problems(problems, path)
    lines = str(raised.value).splitlines()
    shown = [line.removeprefix("- ") for line in lines if line.startswith("- ")]
    assert len(shown) == LINES
    assert shown == [*(f"box {i}" for i in range(LINES - 1)), "half of a pair \ud800"]
    assert lines[-1] == f"and {101 - LINES} more; {path} lists all of them."
    assert len(path.read_text().splitlines()) == 101


def test_errors_become_problems_and_others_pass() -> None:
    problems: list[Problem] = []
    for error in (ValueError("bad"), FileNotFoundError("gone")):
        with collected(problems):
            raise error
    assert [(p.text, p.missing) for p in problems] == [("bad", False), ("gone", True)]
    with pytest.raises(KeyError), collected(problems):
        raise KeyError
