"""Spec strings, which name a user's own data set in the config, and the paths they hold.

``DATASETS.TRAIN`` and ``DATASETS.TEST`` take, next to every registered name, two kinds of spec::

    coco://path/to/annotations.json:path/to/images
    voc://path/to/VOCroot:split        (Annotations/, ImageSets/Main/<split>.txt, JPEGImages/)
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

__all__ = ["SPEC_SYNTAX", "DatasetSpec", "parse_spec", "require_path"]

SPEC_SYNTAX = "'coco://path/annotations.json:path/images' or 'voc://path/VOCroot:split'"


@dataclass(frozen=True)
class DatasetSpec:
    """A parsed spec string.

    Attributes:
        name: the spec as written in the config; the name it is registered under.
        kind: ``"coco"`` or ``"voc"``.
        path: the annotation json (coco) or the VOC root (voc).
        rest: the image folder (coco) or the split (voc).
    """

    name: str
    kind: str
    path: Path
    rest: str


def parse_spec(name: str) -> DatasetSpec | None:
    """Reads a spec string; ``~`` and ``$VARIABLES`` are expanded, the last ``:`` separates.

    Args:
        name: an entry of ``DATASETS.TRAIN`` or ``DATASETS.TEST``.

    Returns:
        The spec, or None where the name does not start with ``coco://`` or ``voc://``.

    Raises:
        ValueError: a part of the spec is empty or the ``:`` is missing.
    """
    kind, separator, body = name.partition("://")
    if not separator or kind not in ("coco", "voc"):
        return None
    path, _, rest = body.rpartition(":")
    if not path or not rest:
        raise ValueError(f"Data set {name!r} lacks a part around its last ':'; use {SPEC_SYNTAX}.")
    return DatasetSpec(name, kind, Path(_expand(path)), _expand(rest))


def _expand(text: str) -> str:
    return os.path.expandvars(os.path.expanduser(text))


def require_path(path: Path, what: str, spec: DatasetSpec, *, folder: bool) -> None:
    """Lets only a path pass that exists.

    Args:
        path: what the spec, or the layout it stands for, leads to.
        what: the path's role, as the message names it.
        spec: the spec that is read.
        folder: a folder is expected, else a file.

    Raises:
        FileNotFoundError: names the nearest parent that exists.
    """
    if path.is_dir() if folder else path.is_file():
        return
    path = path.absolute()
    kind = "folder" if folder else "file"
    state = f"is not a {kind}" if path.exists() else "does not exist"
    parent = next(parent for parent in path.parents if parent.exists())
    raise FileNotFoundError(
        f"Data set {spec.name!r}: the {what} {path} {state}. The nearest folder that exists is "
        f"{parent}. Correct the path in DATASETS.TRAIN or DATASETS.TEST; syntax: {SPEC_SYNTAX}."
    )
