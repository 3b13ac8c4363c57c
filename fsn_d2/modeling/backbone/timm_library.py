"""Access to the optional timm library: its import and the check of a model's name."""

from __future__ import annotations

import difflib
from types import ModuleType


def import_timm() -> ModuleType:
    """Return the timm module.

    Raises:
        ImportError: timm is not installed.
    """
    try:
        import timm
    except ImportError as error:
        raise ImportError(
            "A timm backbone needs the timm library. Install it with: pip install 'fsn_d2[timm]'"
        ) from error
    return timm


def require_timm_model(name: str) -> ModuleType:
    """Return the timm module after checking that it knows the model ``name``.

    Raises:
        ImportError: timm is not installed.
        ValueError: timm has no such model, or no such tag of it.
    """
    timm = import_timm()
    if not timm.is_model(name):
        raise ValueError(_unknown(name, "model", timm.list_models()))
    _, dot, tag = name.partition(".")
    known = timm.list_pretrained(f"{name.partition('.')[0]}.*") if dot else []
    if tag and name not in known:
        raise ValueError(_unknown(name, "weights tag", known))
    return timm


def _unknown(name: str, what: str, known: list[str]) -> str:
    closest = ", ".join(difflib.get_close_matches(name, known, n=5, cutoff=0.5)) or "none"
    return f"MODEL.TIMM.NAME: timm has no {what} {name!r}. Closest names: {closest}."
