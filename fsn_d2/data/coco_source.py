"""Reading a COCO json, and finding what the COCO form does not allow."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from .problems import Problem, collected
from .source import Coco, Source
from .specs import DatasetSpec, require_path
from .wording import shorten, show

__all__ = ["read_coco"]

Fault = tuple[str, str]  # kind; what is wrong with an entry, continuing its name


def read_coco(spec: DatasetSpec, *, annotated: bool) -> Source:
    """Reads and checks the annotation file of a spec ``coco://annotations.json:images``.

    Paths that do not exist, a file that is no json, and entries that are not of the COCO form
    become `Source.problems`, which name them; the other entries are read.

    Args:
        spec: of the kind "coco".
        annotated: the file has to hold annotations, as training needs them.
    """
    image_root = Path(spec.rest)
    problems: list[Problem] = []
    content: Coco | None = None
    verbatim = False
    with collected(problems):
        require_path(spec.path, "annotation file", spec, folder=False)
        content, verbatim = _load(spec.path)
    with collected(problems):
        require_path(image_root, "image folder", spec, folder=True)
    if content is None:
        empty: Coco = {"images": [], "categories": [], "annotations": []}
        return Source(spec, empty, image_root, {}, problems=problems, classes_known=False)
    check = _Check(spec.path)
    coco = {**content, **check.sound_entries(content, annotated=annotated)}
    names = {c["id"]: str(c["name"]) for c in coco["categories"]}
    used = {names[a["category_id"]]: spec.path for a in coco.get("annotations", ())}
    return Source(
        spec,
        coco,
        image_root,
        used,
        problems=problems + check.problems,
        classes_known=check.classes_known,
        verbatim=verbatim,
    )


def _load(path: Path) -> tuple[Coco, bool]:
    """Returns the json, and whether it is strict UTF-8 without a mark, as pycocotools wants.

    Raises:
        ValueError: it cannot be read, is no json, or has no object at the top.
    """
    try:
        raw = path.read_bytes()
        content = json.loads(raw)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a readable json file: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__} at the top, expected an object.")
    return content, _is_plain_utf8(raw)


def _is_plain_utf8(raw: bytes) -> bool:
    try:
        return raw.decode("utf-8")[:1] != "\ufeff"
    except UnicodeDecodeError:
        return False


class _Check:
    """Goes through the lists of one file, keeps the sound entries and takes down the problems."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problems: list[Problem] = []
        self.classes_known = True

    def sound_entries(self, coco: Coco, *, annotated: bool) -> Coco:
        images = self._list(coco, "images", _image_fault, unique=("id",))
        images_known = not self.problems
        categories = self._list(coco, "categories", _category_fault, unique=("id", "name"))
        self.classes_known = categories == coco.get("categories")
        sound = {"images": images, "categories": categories}
        if not annotated and "annotations" not in coco:
            return sound
        names = {c["id"]: c["name"] for c in categories}
        known = isinstance(coco.get("categories"), list)
        fault = partial(_annotation_fault, names=names) if known else _box_fault
        annotations = self._list(coco, "annotations", fault)
        if images_known:
            self._check_image_ids(annotations, images)
        return {**sound, "annotations": [a for a in annotations if a["category_id"] in names]}

    def _list(
        self,
        coco: Coco,
        key: str,
        find_fault: Callable[[Any], Fault | None],
        unique: Sequence[str] = (),
    ) -> list[Coco]:
        entries = coco.get(key)
        if not isinstance(entries, list):
            keys = shorten(sorted(coco))
            self._add("list", f"no list {key!r}, which the COCO form needs; keys: {keys}.")
            return []
        sound = []
        for index, entry in enumerate(entries):
            fault = find_fault(entry)
            if fault is None:
                sound.append(entry)
            else:
                self._add(f"{key} {fault[0]}", f"{key}[{index}] {fault[1]}")
        for name in unique:
            sound = self._distinct(sound, key, name)
        return sound

    def _distinct(self, entries: Sequence[Coco], key: str, name: str) -> list[Coco]:
        """The first entry of each value. A name becomes text in the end: 1 and "1" are one."""
        values = [str(entry[name]) if name == "name" else entry[name] for entry in entries]
        for value, count in Counter(values).items():
            if count > 1:
                text = f"{name} {show(value)} occurs {count} times in {key!r}; make it one."
                self._add(f"{key} twice", text)
        first: dict[Any, Coco] = {}
        for value, entry in zip(values, entries, strict=True):
            first.setdefault(value, entry)
        return list(first.values())

    def _check_image_ids(self, annotations: Sequence[Coco], images: Sequence[Coco]) -> None:
        ids = {image["id"] for image in images}
        if annotations and not any(a["image_id"] in ids for a in annotations):
            text = (
                "no annotation's image_id is an id of 'images' (the first: "
                f"{show(annotations[0]['image_id'])} against {[i['id'] for i in images[:1]]}); do "
                "the types agree?"
            )
            self._add("image ids", text)

    def _add(self, kind: str, text: str) -> None:
        self.problems.append(Problem(f"{self.path}: {text}", kind))


def _lacking(entry: Any, fields: Sequence[str]) -> Fault | None:
    missing = [f for f in fields if not isinstance(entry, dict) or f not in entry]
    return ("lacks", f"lacks {', '.join(map(repr, missing))}.") if missing else None


def _unfit(entry: Coco, fields: Sequence[str], kinds: type | Any, expected: str) -> Fault | None:
    for name in fields:
        if not isinstance(entry[name], kinds) or isinstance(entry[name], bool):
            return f"type of {name}", f"has {name} {show(entry[name])}, expected {expected}."
    return None


def _image_fault(entry: Any) -> Fault | None:
    return (
        _lacking(entry, ("id", "file_name"))
        or _unfit(entry, ("id",), int | str, "a number or text")
        or _unfit(entry, ("file_name",), str, "text")
    )


def _category_fault(entry: Any) -> Fault | None:
    fault = _lacking(entry, ("id", "name")) or _unfit(
        entry, ("id", "name"), int | str, "a number or text"
    )
    if fault is None and not _is_written(str(entry["name"])):
        return "name", f"has name {entry['name']!r}, expected a name that can be written."
    return fault


def _annotation_fault(entry: Any, names: Mapping[Any, str]) -> Fault | None:
    fault = _box_fault(entry)
    if fault is None and entry["category_id"] not in names:
        return "class", (
            f"(id {show(entry.get('id'))}) names the unknown class {show(entry['category_id'])}; "
            f"the file's 'categories' are {show(names)}."
        )
    return fault


def _box_fault(entry: Any) -> Fault | None:
    """What is wrong with an annotation, whatever its class."""
    fault = _lacking(entry, ("image_id", "category_id", "bbox")) or _unfit(
        entry, ("image_id", "category_id"), int | str, "a number or text"
    )
    if fault is not None:
        return fault
    where = f"(id {show(entry.get('id'))})"
    if not _is_box(entry["bbox"]):
        return "bbox", (
            f"{where} has bbox {show(entry['bbox'])}, expected 4 numbers: x, y, width, height."
        )
    if entry.get("ignore"):
        return "ignore", f"{where} has 'ignore', which is not supported; use 'iscrowd': 1."
    if entry.get("iscrowd") not in (None, 0, 1):
        return "iscrowd", f"{where} has iscrowd {show(entry['iscrowd'])}, expected 0 or 1."
    return None


def _is_written(name: str) -> bool:
    """Not blank, and without half of a surrogate pair, which a json can hold."""
    return bool(name.strip()) and not any(0xD800 <= ord(c) < 0xE000 for c in name)


def _is_box(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 4
        and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
    )
