"""Checks of a config's values, with errors that name their keys."""

from __future__ import annotations


def require_positive(key: str, number: int, least: int = 1) -> None:
    """Raises ValueError unless `number`, the value of `key`, is at least `least`."""
    if number < least:
        raise ValueError(f"{key} must be at least {least}, got {number}")
