"""How messages about data show long lists and odd values."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Any

__all__ = ["shorten", "show"]

_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxlist, _REPR.maxdict = 3, 8, 20
_REPR.maxstring = _REPR.maxlong = _REPR.maxother = 100


def shorten(names: Sequence[str], limit: int = 20) -> str:
    """Joins at most `limit` names by commas; more are shown as "...", none as "none".

    What cannot be printed (half of a surrogate pair, which a json may hold) is shown as an escape.
    """
    text = ", ".join(names[:limit]) + (", ..." if len(names) > limit else "") or "none"
    return text.encode("utf-8", "backslashreplace").decode()


def show(value: Any) -> str:
    """A value as Python writes it, abridged where it is long or deep."""
    return _REPR.repr(value)
