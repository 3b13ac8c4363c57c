"""How messages about data show long lists."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["shorten"]


def shorten(names: Sequence[str], limit: int = 20) -> str:
    """Joins at most `limit` names by commas; more are shown as "...", none as "none"."""
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "") or "none"
