"""Reading a COCO json, and refusing what the COCO form does not allow."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .source import Coco, Source
from .specs import DatasetSpec, require_path

__all__ = ["read_coco"]


def read_coco(spec: DatasetSpec, *, annotated: bool) -> Source:
    """Reads and checks the annotation file of a spec ``coco://annotations.json:images``.

    Args:
        spec: of the kind "coco".
        annotated: the file has to hold annotations, as training needs them.

    Raises:
        FileNotFoundError: the annotation file or the image folder does not exist.
        ValueError: the file is no json, or not of the COCO form; names the entry.
    """
    image_root = Path(spec.rest)
    require_path(spec.path, "annotation file", spec, folder=False)
    require_path(image_root, "image folder", spec, folder=True)
    try:
        coco = json.loads(spec.path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{spec.path} is not a readable json file: {error}.") from error
    _check_coco(coco, spec.path, annotated=annotated)
    names = {c["id"]: str(c["name"]) for c in coco["categories"]}
    used = {names[a["category_id"]]: spec.path for a in coco.get("annotations", ())}
    return Source(spec, coco, image_root, used)


def _check_coco(coco: Any, path: Path, *, annotated: bool) -> None:
    """Raises ValueError, naming file and entry, for what the COCO form does not allow."""
    if not isinstance(coco, dict):
        raise ValueError(f"{path} holds a {type(coco).__name__} at the top, expected an object.")
    _check_entries(coco, "images", ("id", "file_name"), path)
    _check_entries(coco, "categories", ("id", "name"), path)
    if annotated or "annotations" in coco:
        _check_entries(coco, "annotations", ("image_id", "category_id", "bbox"), path)
    _check_unique(coco["images"], "images", "id", path)
    _check_unique(coco["categories"], "categories", "id", path)
    _check_unique(coco["categories"], "categories", "name", path)
    _check_annotations(coco, path)


def _check_entries(coco: Coco, key: str, fields: Sequence[str], path: Path) -> None:
    entries = coco.get(key)
    if not isinstance(entries, list):
        found = ", ".join(sorted(coco)) or "none"
        raise ValueError(f"{path} has no list {key!r}, which the COCO form needs; keys: {found}.")
    for index, entry in enumerate(entries):
        missing = [f for f in fields if not isinstance(entry, dict) or f not in entry]
        if missing:
            raise ValueError(f"{path}: {key}[{index}] lacks {', '.join(map(repr, missing))}.")
        for name in fields:
            if name != "bbox" and not isinstance(entry[name], int | str):
                raise ValueError(
                    f"{path}: {key}[{index}] has {name} {entry[name]!r}, expected a number or text."
                )


def _check_unique(entries: Sequence[Coco], key: str, name: str, path: Path) -> None:
    values = [entry[name] for entry in entries]
    for value, count in Counter(map(repr, values)).items():
        if count > 1:
            raise ValueError(
                f"{path}: {name} {value} occurs {count} times in {key!r}; make it one."
            )


def _check_annotations(coco: Coco, path: Path) -> None:
    names = {c["id"]: c["name"] for c in coco["categories"]}
    images = {i["id"] for i in coco["images"]}
    annotations = coco.get("annotations", [])
    for index, annotation in enumerate(annotations):
        where = f"{path}: annotations[{index}] (id {annotation.get('id')!r})"
        if annotation["category_id"] not in names:
            raise ValueError(
                f"{where} names the unknown class {annotation['category_id']!r}; "
                f"the file's 'categories' are {names}."
            )
        if not _is_box(annotation["bbox"]):
            raise ValueError(
                f"{where} has bbox {annotation['bbox']!r}, expected 4 numbers: x, y, width, height."
            )
        if annotation.get("ignore"):
            raise ValueError(f"{where} has 'ignore', which is not supported; use 'iscrowd': 1.")
    if annotations and not any(a["image_id"] in images for a in annotations):
        raise ValueError(
            f"{path}: no annotation's image_id is an id of 'images' (the first: "
            f"{annotations[0]['image_id']!r} against "
            f"{[i['id'] for i in coco['images'][:1]]}); do the types agree?"
        )


def _is_box(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 4
        and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
    )
