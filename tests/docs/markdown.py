"""What the documentation's pages hold: fenced blocks, their commands and marks, links, headings.

A block in `sh` or `python` is run unless a comment right above it, which no browser shows, says why
it cannot be:

    <!-- not run: needs 8 GPUs -->
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

MARK = re.compile(r"<!-- not run: (.*) -->")
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
CODE_SPAN = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        place: its page and line.
        language: what follows the opening fence.
        text: what is between the fences.
        reason: why it is not run; None where there is no mark.
    """

    place: str
    language: str
    text: str
    reason: str | None

    @property
    def commands(self) -> list[str]:
        """One per logical line of the shell; a block of Python is one command."""
        if self.language == "python":
            return [self.text]
        if self.language != "sh":
            return []
        joined = re.sub(r"\\\n *", "", self.text).splitlines()
        return [line for line in joined if line.strip() and not line.startswith("#")]


@dataclass(frozen=True)
class Page:
    """A page: its path from the repository's root, and its Markdown."""

    name: str
    text: str

    @cached_property
    def blocks(self) -> list[Block]:
        return list(self._blocks())

    def _blocks(self) -> Iterator[Block]:
        lines = self.text.splitlines()
        fences = [number for number, line in enumerate(lines) if line.startswith("```")]
        for first, last in zip(fences[::2], fences[1::2], strict=True):
            mark = MARK.fullmatch(lines[first - 1]) if first else None
            yield Block(
                place=f"{self.name}:{first + 1}",
                language=lines[first][3:],
                text="\n".join(lines[first + 1 : last]),
                reason=mark[1] if mark else None,
            )

    @property
    def prose(self) -> str:
        """The page without its blocks."""
        return FENCED.sub("", self.text)

    @property
    def code_spans(self) -> list[str]:
        """Of the prose, each on one line."""
        return [" ".join(span.split()) for span in CODE_SPAN.findall(self.prose)]

    @property
    def links(self) -> list[str]:
        """Targets of links and images."""
        return LINK.findall(CODE_SPAN.sub("", self.prose))

    @property
    def anchors(self) -> set[str]:
        """As GitHub names the headings."""
        titles = (re.sub(r"[^\w\- ]", "", title.lower()) for title in HEADING.findall(self.prose))
        return {title.replace(" ", "-") for title in titles}


def find_pages() -> list[Page]:
    """README.md and CONTRIBUTING.md, the pages of docs and of the projects."""
    paths = [path for each in ("*.md", "docs/*.md", "projects/*/*.md") for path in ROOT.glob(each)]
    return [Page(path.relative_to(ROOT).as_posix(), path.read_text()) for path in sorted(paths)]
