"""A user's own data set, named by a string in the config.

``DATASETS.TRAIN`` and ``DATASETS.TEST`` take, next to every registered name, two kinds of spec::

    coco://path/to/annotations.json:path/to/images
    voc://path/to/VOCroot:split        (Annotations/, ImageSets/Main/<split>.txt, JPEGImages/)

`register_datasets` reads each spec, checks it before training starts and registers it under the
spec string itself. A VOC set is turned into the COCO form first, so that both kinds share one
path: read, agree on the classes, clean, write, load with Detectron2's own loader.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import logging
import math
import os
import pickle
import re
import tempfile
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from PIL import ExifTags, Image

__all__ = ["DatasetSpec", "parse_spec", "register_datasets"]

logger = logging.getLogger(__name__)

SPEC_SYNTAX = "'coco://path/annotations.json:path/images' or 'voc://path/VOCroot:split'"
IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")

# Annotation tools round coordinates; a box that sticks out by less than this is left as it is.
CLIP_SLACK = 0.1  # pixels

Coco = dict[str, Any]


# ---------------------------------------------------------------------------- specs and paths


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


def _require_path(path: Path, what: str, spec: DatasetSpec, *, folder: bool) -> None:
    """Raises FileNotFoundError, naming the nearest parent that exists, unless `path` is there."""
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


# ---------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class Source:
    """What was read from disk for one spec, before any cleaning.

    Attributes:
        spec: the spec it was read for.
        coco: the set in COCO's json form; ids and boxes as they came.
        image_root: the folder that image file names are relative to.
        listed: class names in the set's own order.
        used: for each class that has a box, a file that names it.
        repeated: image ids that the split file holds more than once (VOC).
    """

    spec: DatasetSpec
    coco: Coco
    image_root: Path
    listed: list[str]
    used: dict[str, Path]
    repeated: list[str] = field(default_factory=list)


def _read_source(spec: DatasetSpec, *, annotated: bool) -> Source:
    return _read_coco(spec, annotated=annotated) if spec.kind == "coco" else _read_voc(spec)


def _read_coco(spec: DatasetSpec, *, annotated: bool) -> Source:
    image_root = Path(spec.rest)
    _require_path(spec.path, "annotation file", spec, folder=False)
    _require_path(image_root, "image folder", spec, folder=True)
    try:
        coco = json.loads(spec.path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{spec.path} is not a readable json file: {error}.") from error
    _check_coco(coco, spec.path, annotated=annotated)
    names = {c["id"]: str(c["name"]) for c in coco["categories"]}
    used = {names[a["category_id"]]: spec.path for a in coco.get("annotations", ())}
    return Source(spec, coco, image_root, [names[i] for i in sorted(names)], used)


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


def _read_voc(spec: DatasetSpec) -> Source:
    """Reads a VOC set into the COCO form.

    Two conventions are those of Detectron2's `load_voc_instances`: coordinates are 1-based
    inclusive pixels, so 1 is taken from xmin and ymin; objects marked `difficult` are ordinary
    objects (they are trained on, and `iscrowd` is 0). Unlike there, a box with xmax <= xmin or
    ymax <= ymin is taken as one without area: it is a slip of the mouse, not one pixel.
    """
    annotations, image_root = spec.path / "Annotations", spec.path / "JPEGImages"
    _require_path(spec.path, "VOC root", spec, folder=True)
    _require_path(annotations, "folder of annotations", spec, folder=True)
    _require_path(image_root, "folder of images", spec, folder=True)
    ids = _read_split(spec)
    parsed = [_read_xml(annotations / f"{i}.xml", i, image_root) for i in dict.fromkeys(ids)]
    used: dict[str, Path] = {}
    for i, (_, objects) in zip(dict.fromkeys(ids), parsed, strict=True):
        for name, _ in objects:
            used.setdefault(name, annotations / f"{i}.xml")
    repeated = [i for i, count in Counter(ids).items() if count > 1]
    return Source(spec, _voc_to_coco(parsed, used), image_root, sorted(used), used, repeated)


def _read_split(spec: DatasetSpec) -> list[str]:
    folder = spec.path / "ImageSets" / "Main"
    _require_path(folder, "folder of splits", spec, folder=True)
    path = folder / f"{spec.rest}.txt"
    if not path.is_file():
        splits = ", ".join(sorted(p.stem for p in folder.glob("*.txt"))) or "none"
        raise FileNotFoundError(
            f"Data set {spec.name!r}: there is no split {spec.rest!r} ({path}). "
            f"Splits that exist: {splits}."
        )
    ids = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    ids = [i for i in ids if i]
    if not ids:
        raise ValueError(f"The split file {path} is empty; it needs one image id a line.")
    return ids


VocObject = tuple[str, list[float]]


def _read_xml(path: Path, image_id: str, image_root: Path) -> tuple[Coco, list[VocObject]]:
    """Returns the image's COCO entry without its id, and its (name, xywh box) pairs."""
    try:
        root = ET.parse(path).getroot()
        objects = [_read_object(element) for element in root.findall("object")]
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{path} does not exist, but the split file names {image_id!r}. Add the file (without "
            "objects, if the image has none) or take the line out."
        ) from error
    except (ET.ParseError, ValueError) as error:
        raise ValueError(f"{path} is not a readable VOC annotation: {error}.") from error
    image: Coco = {"file_name": _find_image(image_root, image_id, root.findtext("filename"))}
    for key in ("width", "height"):
        text = (root.findtext(f"size/{key}") or "").strip()
        image[key] = int(text) if text.isdecimal() else None
    return image, objects


def _read_object(element: ET.Element) -> VocObject:
    name = (element.findtext("name") or "").strip()
    if not name:
        raise ValueError("an object has no <name>")
    corners = []
    for key in ("xmin", "ymin", "xmax", "ymax"):
        text = element.findtext(f"bndbox/{key}")
        if text is None:
            raise ValueError(f"object {name!r} has no <bndbox> with <{key}>")
        corners.append(float(text))
    xmin, ymin, xmax, ymax = corners
    width = xmax - xmin + 1 if xmax > xmin else 0.0
    height = ymax - ymin + 1 if ymax > ymin else 0.0
    return name, [xmin - 1, ymin - 1, width, height]


def _find_image(image_root: Path, image_id: str, file_name: str | None) -> str:
    """Finds the file of an image by its id, else by <filename>, which tools often leave stale."""
    suffixes = [case(e) for e in IMAGE_EXTENSIONS for case in (str.lower, str.upper)]
    names = [image_id + suffix for suffix in suffixes] + [(file_name or "").strip()]
    return next((n for n in names if n and (image_root / n).is_file()), names[0])


def _voc_to_coco(parsed: Sequence[tuple[Coco, list[VocObject]]], names: Iterable[str]) -> Coco:
    category_ids = {name: i for i, name in enumerate(sorted(names), start=1)}
    images = [{"id": i, **image} for i, (image, _) in enumerate(parsed, start=1)]
    annotations = [
        {"image_id": i, "category_id": category_ids[name], "bbox": box}
        for i, (_, objects) in enumerate(parsed, start=1)
        for name, box in objects
    ]
    categories = [{"id": i, "name": name} for name, i in category_ids.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


# ---------------------------------------------------------------------------- classes


def _class_names(name: str, sources: Mapping[str, Source]) -> list[str] | None:
    if name in sources:
        return sources[name].listed
    names = MetadataCatalog.get(name).get("thing_classes")
    return None if names is None else list(names)


def _choose_classes(
    cfg: CfgNode, train: Sequence[str], test: Sequence[str], sources: Mapping[str, Source]
) -> list[str] | None:
    """Returns the class list that every set has to follow; None where no set has classes."""
    configured = [str(name) for name in cfg.DATASETS.get("CLASSES", [])]
    if configured:
        if len(set(configured)) < len(configured):
            raise ValueError(f"DATASETS.CLASSES names a class twice: {configured}.")
        return configured
    for group in (train, test):
        classes = _first_classes(group, sources)
        if classes is not None:
            if group is test and any(name in sources for name in test):
                logger.warning(
                    "Classes are taken from the test set: %s. If the model was trained with "
                    "another list or order, set DATASETS.CLASSES.",
                    classes,
                )
            return classes
    return None


def _first_classes(names: Sequence[str], sources: Mapping[str, Source]) -> list[str] | None:
    """The first set's list; for a VOC set the names seen in all VOC sets of the group."""
    first = next((n for n in names if _class_names(n, sources) is not None), None)
    if first is None:
        return None
    if first in sources and sources[first].spec.kind == "voc":
        voc = [sources[n] for n in names if n in sources and sources[n].spec.kind == "voc"]
        return sorted(set().union(*(source.used for source in voc)))
    return _class_names(first, sources)


def _check_classes(
    cfg: CfgNode, names: Iterable[str], sources: Mapping[str, Source], classes: list[str]
) -> None:
    if not classes:
        raise ValueError(
            "The data holds no annotation, so no class is known; correct the data, or set "
            "DATASETS.CLASSES."
        )
    configured = bool(cfg.DATASETS.get("CLASSES", []))
    for name in names:
        if name in sources:
            _check_source_classes(sources[name], classes, configured=configured)
            continue
        listed = _class_names(name, sources)
        if listed is not None and listed != classes:
            raise _class_conflict(name, listed, classes)
    _check_num_classes(cfg, classes)


def _check_source_classes(source: Source, classes: list[str], *, configured: bool) -> None:
    for name, path in source.used.items():
        if name not in classes:
            raise ValueError(
                f"Data set {source.spec.name!r}: {path} names the unknown class {name!r}; known "
                f"classes: {_shown(classes)}. Correct the annotation, or set DATASETS.CLASSES to "
                "the full list."
            )
    # A VOC set lists only the classes it happens to show, a COCO json all it means to have.
    if source.spec.kind == "coco" and not configured and set(source.listed) != set(classes):
        raise _class_conflict(source.spec.name, source.listed, classes)


def _class_conflict(name: str, listed: list[str], classes: list[str]) -> ValueError:
    extra = [c for c in listed if c not in classes]
    lacking = [c for c in classes if c not in listed]
    return ValueError(
        f"Data set {name!r} has another class list than the one in use (DATASETS.CLASSES, else the "
        f"training set's). Only there: {_shown(extra)}; only in the list in use: "
        f"{_shown(lacking)}; its order: {_shown(listed)}; the order in use: {_shown(classes)}. Use "
        "sets of the same classes, or set DATASETS.CLASSES to the list your own sets shall follow."
    )


def _shown(names: Sequence[str], limit: int = 20) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "") or "none"


def _check_num_classes(cfg: CfgNode, classes: list[str]) -> None:
    key = _num_classes_key(cfg)
    if key is None:
        return
    number = cfg.MODEL[key].NUM_CLASSES
    if number != len(classes):
        raise ValueError(
            f"MODEL.{key}.NUM_CLASSES is {number}, but the data has {len(classes)} classes "
            f"({_shown(classes)}). Set MODEL.{key}.NUM_CLASSES {len(classes)}."
        )


def _num_classes_key(cfg: CfgNode) -> str | None:
    """The config node whose NUM_CLASSES the model reads; None for a model we do not know."""
    try:
        architecture = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
    except KeyError:  # building the model says so, with the names that exist
        return None
    if not isinstance(architecture, type):
        return None
    if issubclass(architecture, GeneralizedRCNN):
        return "ROI_HEADS"
    return "RETINANET" if issubclass(architecture, DenseDetector) else None


# ---------------------------------------------------------------------------- cleaning


class Findings:
    """What cleaning came upon: for each kind of defect, the images concerned."""

    def __init__(self) -> None:
        self._names: dict[str, list[str]] = {}

    def add(self, defect: str, name: str) -> None:
        self._names.setdefault(defect, []).append(name)

    def __str__(self) -> str:
        return "; ".join(
            f"{defect}: {len(names)} ({_shown(list(dict.fromkeys(names)), limit=3)})"
            for defect, names in self._names.items()
        )

    def __bool__(self) -> bool:
        return bool(self._names)


NO_AREA = "boxes without area in the image, skipped"
UNREADABLE = "images that cannot be read, skipped"
WRONG_SIZE = "images whose size is not the annotated one, real size taken"
NO_IMAGE = "annotations of images that are not listed, skipped"
REPEATED = "image ids listed more than once, taken once"


def _clean(source: Source, classes: list[str], *, decode: bool) -> tuple[Coco, Findings]:
    """Returns a copy without defects, and what was found; equal to the input if there was none."""
    findings = Findings()
    for image_id in source.repeated:
        findings.add(REPEATED, image_id)
    images = _clean_images(source, findings, decode=decode)
    if not images:
        raise ValueError(
            f"Data set {source.spec.name!r}: none of its {len(source.coco['images'])} images can "
            f"be read in {source.image_root.absolute()}; is it the right folder? {findings}."
        )
    categories, new_ids = _clean_categories(source, classes)
    cleaned = {**source.coco, "images": images, "categories": categories}
    if "annotations" in source.coco:
        cleaned["annotations"] = _clean_annotations(source, images, new_ids, findings)
    return cleaned, findings


def _clean_images(source: Source, findings: Findings, *, decode: bool) -> list[Coco]:
    images = source.coco["images"]
    paths = [source.image_root / image["file_name"] for image in images]
    with ThreadPoolExecutor(max_workers=8) as pool:
        sizes = list(pool.map(partial(_image_size, decode=decode), paths))
    kept = []
    for image, size in zip(images, sizes, strict=True):
        declared = (image.get("width"), image.get("height"))
        if size is None:
            findings.add(UNREADABLE, image["file_name"])
            continue
        if size != declared and None not in declared:
            findings.add(WRONG_SIZE, image["file_name"])
        kept.append({**image, "width": size[0], "height": size[1]})
    return kept


def _image_size(path: Path, *, decode: bool) -> tuple[int, int] | None:
    """Width and height as Detectron2's `read_image` gives them, None for an unreadable file.

    Without `decode` only the header is read, and a file cut off later is not noticed.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = _exif_orientation(image) >= 5
            if decode:
                image.load()
    except Exception:  # Pillow's decoders raise nearly any type on a broken file
        return None
    return (height, width) if turned else (width, height)


def _exif_orientation(image: Image.Image) -> int:
    """1 to 8; 5 and above swap width and height."""
    try:
        # The base class's method: the one of PNG decodes the whole file first.
        return int(Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1))
    except Exception:  # a broken EXIF block is ignored, as in `read_image`
        return 1


def _clean_categories(source: Source, classes: list[str]) -> tuple[list[Coco], dict[Any, Any]]:
    """Puts the categories into the order of the classes; also returns old id to new id.

    COCO's evaluation goes by ascending id, and Detectron2 labels its per-class results by class
    order; so the two orders must be the same.
    """
    categories = source.coco["categories"]
    if source.listed == classes and all(isinstance(c["id"], int) for c in categories):
        return categories, {c["id"]: c["id"] for c in categories}
    ids = {name: i for i, name in enumerate(classes, start=1)}
    new = [{"id": i, "name": name} for name, i in ids.items()]
    return new, {c["id"]: ids.get(str(c["name"])) for c in categories}


def _clean_annotations(
    source: Source, images: Sequence[Coco], new_ids: Mapping[Any, Any], findings: Findings
) -> list[Coco]:
    listed = {image["id"] for image in source.coco["images"]}
    by_id = {image["id"]: image for image in images}
    kept = []
    for annotation in source.coco["annotations"]:
        if annotation["image_id"] not in listed:
            findings.add(NO_IMAGE, str(annotation["image_id"]))
            continue
        image = by_id.get(annotation["image_id"])
        if image is None:
            continue
        box = _clip_box(annotation["bbox"], image["width"], image["height"])
        if box is None:
            findings.add(NO_AREA, image["file_name"])
            continue
        kept.append(_clean_annotation(annotation, box, new_ids[annotation["category_id"]]))
    return _number(kept)


def _clip_box(box: Sequence[float], width: int, height: int) -> list[float] | None:
    """Cuts an [x, y, w, h] box to the image; None if nothing with an area is left."""
    x, y, w, h = box
    left, top, right, bottom = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
    # Comparisons with NaN are false, so a box with NaN in it needs its own look.
    if not all(map(math.isfinite, box)) or not (w > 0 and h > 0 and right > left and bottom > top):
        return None
    if max(left - x, top - y, x + w - right, y + h - bottom) <= CLIP_SLACK:
        return list(box)
    return [left, top, right - left, bottom - top]


def _clean_annotation(annotation: Coco, box: list[float], category_id: Any) -> Coco:
    """Fills in what COCO's evaluation cannot do without; a cut box gets its new area."""
    area = box[2] * box[3]
    new = {"iscrowd": 0, "area": area, **annotation, "bbox": box, "category_id": category_id}
    if box != annotation["bbox"] and not annotation.get("segmentation"):
        new["area"] = area
    return new


def _number(annotations: list[Coco]) -> list[Coco]:
    """Numbers annotations from 1 where ids lack or repeat, or one is 0, which pycocotools takes
    for "no match"."""
    ids = [a.get("id") for a in annotations]
    usable = all(isinstance(i, int) and i > 0 for i in ids) and len(set(ids)) == len(ids)
    return annotations if usable else [{**a, "id": i} for i, a in enumerate(annotations, start=1)]


# ---------------------------------------------------------------------------- registering


def register_datasets(cfg: CfgNode, *, eval_only: bool = False) -> None:
    """Checks every data set of the config and registers those given by a spec string.

    To be called before the trainer is built, in every process. Calling it again reads the data
    again and replaces the registration. Names that are registered already (Detectron2's own, or a
    user's) are left alone; their files, classes and number of classes are checked as far as
    Detectron2's catalogs tell without opening a file.

    Boxes without area, unreadable images and similar defects are skipped and counted in one
    warning per set. A set that was changed by this, and every VOC set, is written to
    ``<OUTPUT_DIR>/datasets/`` as a COCO json, which training and evaluation then both use.

    Args:
        cfg: reads ``DATASETS.TRAIN``, ``DATASETS.TEST``, ``DATASETS.CLASSES``, ``OUTPUT_DIR``,
            ``MODEL.META_ARCHITECTURE`` and the ``NUM_CLASSES`` that this architecture uses.
        eval_only: training sets serve only to find the classes and may be absent.

    Raises:
        FileNotFoundError: a path, split or file of Detectron2's own sets is missing.
        ValueError: an unknown name, a malformed spec or annotation file, an unknown class, or
            classes that contradict each other or ``NUM_CLASSES``.
    """
    train, test = tuple(cfg.DATASETS.TRAIN), tuple(cfg.DATASETS.TEST)
    needed = tuple(dict.fromkeys(test if eval_only else train + test))
    specs = {name: spec for name in needed if (spec := _look_up(name))}
    for name in needed:
        if name not in specs:
            _check_registered_files(name)
    sources = {name: _read_source(spec, annotated=name in train) for name, spec in specs.items()}
    if eval_only and not cfg.DATASETS.get("CLASSES", []):
        sources = _read_if_there(set(train) - set(test)) | sources
    classes = _choose_classes(cfg, train, test, sources)
    if classes is None:
        return
    _check_classes(cfg, needed, sources, classes)
    for name in specs:
        _register(sources[name], classes, Path(cfg.OUTPUT_DIR), decode=name in test)


def _look_up(name: str) -> DatasetSpec | None:
    """The spec, or None for a registered name; raises ValueError for a name that is neither."""
    spec = parse_spec(name)
    if spec is None and name not in DatasetCatalog:
        close = difflib.get_close_matches(name, DatasetCatalog.list(), n=3)
        hint = f" Close matches: {', '.join(close)}." if close else ""
        raise ValueError(
            f"Data set {name!r} is neither registered nor a spec.{hint} "
            f"Your own data is given as {SPEC_SYNTAX}."
        )
    return spec


def _check_registered_files(name: str) -> None:
    """Raises FileNotFoundError if files that Detectron2's own loaders will open are missing.

    Sets registered by other code may make their files when first asked, and are not looked at.
    """
    loader = getattr(DatasetCatalog[name], "__module__", None) or ""
    if not loader.startswith("detectron2."):
        return
    metadata = MetadataCatalog.get(name)
    keys = ("json_file", "image_root", "dirname", "image_dir", "gt_dir")
    paths = [str(metadata.get(key)) for key in keys if metadata.get(key)]
    if metadata.get("dirname") and metadata.get("split"):
        paths.append(os.path.join(metadata.dirname, "ImageSets", "Main", f"{metadata.split}.txt"))
    for path in paths:
        if "://" not in path and not os.path.exists(path):
            root = os.environ.get("DETECTRON2_DATASETS", "datasets")
            raise FileNotFoundError(
                f"Data set {name!r}: {os.path.abspath(path)} does not exist. Detectron2 looks for "
                f"its own sets in $DETECTRON2_DATASETS (now {os.path.abspath(root)}); put the "
                "data there, or set the variable before the start."
            )


def _read_if_there(names: Iterable[str]) -> dict[str, Source]:
    """Reads the specs among the names whose files are there."""
    sources = {}
    for name in names:
        spec = parse_spec(name)
        with contextlib.suppress(FileNotFoundError):
            if spec is not None:
                sources[name] = _read_source(spec, annotated=False)
    return sources


def _register(source: Source, classes: list[str], output_dir: Path, *, decode: bool) -> None:
    spec = source.spec
    cleaned, findings = _clean(source, classes, decode=decode)
    if findings:
        logger.warning("Data set %s: %s.", spec.name, findings)
    json_file = spec.path
    if spec.kind == "voc" or cleaned != source.coco:
        json_file = _write_json(cleaned, output_dir / "datasets" / f"{_safe_name(spec.name)}.json")
    order = {c["id"]: classes.index(str(c["name"])) for c in cleaned["categories"]}
    records = load_coco_json(str(json_file), str(source.image_root))
    for record in records:
        for annotation in record["annotations"]:
            annotation["category_id"] = order[annotation["category_id"]]
    _put_into_catalogs(
        spec.name,
        records,
        thing_classes=classes,
        thing_dataset_id_to_contiguous_id=order,
        json_file=str(json_file),
        image_root=str(source.image_root),
        evaluator_type="coco",
    )


def _put_into_catalogs(name: str, records: list[dict[str, Any]], **metadata: Any) -> None:
    for catalog in (DatasetCatalog, MetadataCatalog):
        if name in catalog:
            catalog.remove(name)
    # Pickled, because callers change the records they get, and must not change those of others.
    DatasetCatalog.register(name, partial(pickle.loads, pickle.dumps(records)))
    MetadataCatalog.get(name).set(**metadata)


def _safe_name(name: str) -> str:
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9.-]+', '_', name)[-80:].strip('_.')}-{digest}"


def _write_json(coco: Coco, path: Path) -> Path:
    """Writes so that another process never sees half a file; equal data gives equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=path.parent, suffix=".tmp", delete=False
    ) as file:
        json.dump(coco, file, sort_keys=True)
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)
    return path
