"""Counts the documentation's commands over all pages, for the last lines of pytest's output."""

from __future__ import annotations

from dataclasses import dataclass

import pytest


@dataclass
class Count:
    """Of commands: run, marked on their page as not run, without what they need on this machine."""

    ran: int = 0
    marked: int = 0
    skipped: int = 0


COUNT = pytest.StashKey[Count]()


@pytest.fixture
def count(pytestconfig: pytest.Config) -> Count:
    return pytestconfig.stash.setdefault(COUNT, Count())


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if (count := config.stash.get(COUNT, None)) is not None:
        terminalreporter.write_line(
            f"documentation: {count.ran} commands run, {count.marked} marked why not, "
            f"{count.skipped} skipped without what they need"
        )
