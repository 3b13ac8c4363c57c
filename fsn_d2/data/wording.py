"""How messages about data show long lists and odd values."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Any

__all__ = ["printable", "shorten", "show"]

_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxlist, _REPR.maxdict = 3, 8, 20
_REPR.maxstring = _REPR.maxlong = _REPR.maxother = 100


def printable(text: str) -> str:
    """With escapes for what cannot be printed.

    That is half of a surrogate pair, as a json or the name of a file may hold.
    """
    return text.encode("utf-8", "backslashreplace").decode()


def shorten(names: Sequence[str], limit: int = 20) -> str:
    """Joins at most `limit` names by commas; more are shown as "...", none as "none"."""
    return printable(", ".join(names[:limit]) + (", ..." if len(names) > limit else "") or "none")


def show(value: Any) -> str:
    """A value as Python writes it, abridged where it is long or deep."""
    return _REPR.repr(value)
