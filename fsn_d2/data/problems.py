"""What keeps data from being used: collected from all data sets, then reported together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .writing import write_text

__all__ = ["Problem", "collected", "raise_problems"]

LINES = 20  # of a report; the rest is counted, and written to a file


@dataclass(frozen=True)
class Problem:
    """Something that has to be corrected before the data can be used.

    Attributes:
        text: names file and entry, what came, what was expected, and what to do.
        kind: equal for problems of one sort, of which a long report shows a few each.
        missing: a file or folder is not there.
    """

    text: str
    kind: str
    missing: bool = False


@contextmanager
def collected(problems: list[Problem]) -> Iterator[None]:
    """Takes down a ValueError, or file that cannot be opened, as a problem, and goes on."""
    try:
        yield
    except FileNotFoundError as error:
        problems.append(Problem(str(error), "missing", missing=True))
    except (PermissionError, ValueError) as error:
        problems.append(Problem(str(error), "value"))


def raise_problems(problems: Sequence[Problem], full_report: Path) -> None:
    """Raises one error for all problems, if there are any.

    Args:
        problems: in the order in which they shall be read.
        full_report: file to write all of them to, one a line, where they are too many to show.

    Raises:
        FileNotFoundError: there are problems, and all are missing files.
        ValueError: there are others.
    """
    if not problems:
        return
    kind = FileNotFoundError if all(p.missing for p in problems) else ValueError
    if len(problems) == 1:
        raise kind(problems[0].text)
    shown = _choose(problems)
    lines = [f"The data has {len(problems)} problems; correct them and start again."]
    lines += [f"- {problem.text}" for problem in shown]
    if len(shown) < len(problems):
        write_text("".join(f"{problem.text}\n" for problem in problems), full_report)
        lines.append(f"and {len(problems) - len(shown)} more; {full_report} lists all of them.")
    raise kind("\n".join(lines))


def _choose(problems: Sequence[Problem]) -> list[Problem]:
    """At most LINES problems, in their order, of every kind as many as there is room for."""
    seen: Counter[str] = Counter()
    places = []
    for index, problem in enumerate(problems):
        places.append((seen[problem.kind], index))
        seen[problem.kind] += 1
    return [problems[index] for _, index in sorted(sorted(places)[:LINES], key=lambda p: p[1])]
