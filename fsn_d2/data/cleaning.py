"""Skipping or repairing what training and evaluation cannot use, and counting it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.config import CfgNode
from PIL import Image

from .fields import repair_fields
from .image_header import MAX_PIXELS, check_header, orientation, upright_size
from .paths import leaves
from .problems import Problem
from .source import Coco, Source
from .wording import shorten, show

__all__ = ["CleanedSet", "Findings", "Rules", "clean", "describe", "image_defect"]

NO_AREA = "boxes without area in the image, skipped"
UNREADABLE = "images that cannot be read, skipped"
TOO_LARGE = "images of more pixels than INPUT.MAX_PIXELS, skipped"
TOO_NARROW = "images whose short side INPUT.MAX_SIZE_TRAIN or _TEST shrinks to nothing, skipped"
OUTSIDE = "images outside the set's folder, skipped (DATASETS.ALLOW_OUTSIDE True takes them)"
WRONG_SIZE = "images whose size is not the annotated one, real size taken"
NO_IMAGE = "annotations of images that are not listed, skipped"
REPEATED = "image ids listed more than once, taken once"

# Annotation tools round coordinates; a box that sticks out by less than this is left as it is.
CLIP_SLACK = 0.1  # pixels
ROUNDED = 0.02  # a side that is off by so little was not scaled, but noted down inexactly

Findings = defaultdict[str, list[str]]  # kind of defect -> the images concerned


@dataclass(frozen=True)
class Rules:
    """What a config lets through.

    Attributes:
        max_pixels: ``INPUT.MAX_PIXELS``; an image whose header says more is not decoded.
        allow_outside: ``DATASETS.ALLOW_OUTSIDE``; take images that lie outside their folder.
        max_aspect: an image whose long side is this many times its short one, or more, has a side
            of no pixel after resizing.
        masks: ``MODEL.MASK_ON``; every annotation needs a segmentation.
        polygons: ``INPUT.MASK_FORMAT`` is polygon; then segmentations to learn from are polygons.
    """

    max_pixels: int = MAX_PIXELS
    allow_outside: bool = False
    max_aspect: float = math.inf
    masks: bool = False
    polygons: bool = False

    @classmethod
    def of(cls, cfg: CfgNode) -> Rules:
        return cls(
            max_pixels=cfg.INPUT.get("MAX_PIXELS", MAX_PIXELS),
            allow_outside=cfg.DATASETS.get("ALLOW_OUTSIDE", False),
            # ResizeShortestEdge rounds to whole pixels: from half a pixel on there is one.
            max_aspect=2 * min(cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TEST),
            masks=cfg.MODEL.MASK_ON,
            polygons=cfg.MODEL.MASK_ON and cfg.INPUT.MASK_FORMAT == "polygon",
        )


@dataclass(frozen=True)
class CleanedSet:
    """A set without what cannot be used.

    Attributes:
        source: what it was made from.
        coco: the cleaned COCO json, equal to the source's if nothing was amiss.
        findings: what was skipped or repaired.
        problems: why it cannot be used all the same, beside those of the source.
    """

    source: Source
    coco: Coco
    findings: Findings
    problems: list[Problem]


def clean(source: Source, classes: list[str], rules: Rules, *, decode: bool) -> CleanedSet:
    """Takes out what cannot be used, and brings the categories into the order of the classes.

    Args:
        source: a set as read.
        classes: the class list in use; annotations of other classes are left out.
        rules: what the config lets through.
        decode: decode every image in full. Without it only headers are read, and a file cut off
            later is not noticed.
    """
    findings: Findings = defaultdict(list)
    if source.repeated:
        findings[REPEATED] = list(source.repeated)
    if source.outside:
        findings[OUTSIDE] = list(source.outside)
    look = partial(_look_at, source.image_root, rules=rules, decode=decode)
    images, problems = _clean_images(source, findings, look)
    problems += _shared_files(source, images)
    if not images:
        problems.append(_no_image(source, findings))
    categories, new_ids = _clean_categories(source, classes)
    cleaned = {**source.coco, "images": list(images.values()), "categories": categories}
    if "annotations" in source.coco:
        cleaned["annotations"] = _clean_annotations(source, images, new_ids, findings)
        if rules.masks:
            problems += _missing_masks(source, cleaned["annotations"])
        if rules.polygons:
            problems += _other_masks(source, cleaned["annotations"])
    return CleanedSet(source, cleaned, findings, problems)


def describe(findings: Findings, limit: int = 3) -> list[str]:
    """Says for each kind of defect how often it was met, and the first few images."""
    return [
        f"{defect}: {len(names)} ({shorten(list(dict.fromkeys(names)), limit)})"
        for defect, names in findings.items()
    ]


def _no_image(source: Source, findings: Findings) -> Problem:
    found = f"; {'; '.join(describe(findings))}" if findings else ""
    return Problem(
        f"Data set {source.spec.name!r}: none of its {len(source.coco['images'])} images can be "
        f"read in {source.image_root.absolute()}; is it the right folder{found}?",
        "no image",
    )


def _missing_masks(source: Source, annotations: Sequence[Coco]) -> list[Problem]:
    return [
        Problem(
            f"{source.spec.path}: the annotation (id {show(a['id'])}) of image "
            f"{show(a['image_id'])} has no usable segmentation, which MODEL.MASK_ON needs.",
            "no segmentation",
        )
        for a in annotations
        if not a.get("segmentation")
    ]


def _other_masks(source: Source, annotations: Sequence[Coco]) -> list[Problem]:
    return [
        Problem(
            f"{source.spec.path}: the segmentation of the annotation (id {show(a['id'])}) of image "
            f"{show(a['image_id'])} is run-length encoded, and INPUT.MASK_FORMAT is 'polygon'. Set "
            "it to 'bitmask', which takes both.",
            "no polygon",
        )
        for a in annotations
        if isinstance(a.get("segmentation"), dict) and not a.get("iscrowd")
    ]


def _clean_images(
    source: Source, findings: Findings, look: Callable[[str], Seen | str]
) -> tuple[dict[Any, Coco], list[Problem]]:
    """The images that can be used, with their real sizes, by the id that they have in the source.

    COCO's evaluation sorts ids: where numbers and text are mixed, images are numbered anew.
    """
    problems: list[Problem] = []
    images = source.coco["images"]
    with ThreadPoolExecutor(max_workers=8) as pool:
        sizes = list(pool.map(look, [image["file_name"] for image in images]))
    one_type = len({isinstance(image["id"], str) for image in images}) < 2
    kept = {}
    for number, (image, seen) in enumerate(zip(images, sizes, strict=True), start=1):
        declared = (image.get("width"), image.get("height"))
        if isinstance(seen, str):
            findings[seen].append(image["file_name"])
            continue
        if seen.size != declared and None not in declared:
            if problem := _other_frame(source, image, seen):
                problems.append(problem)
            findings[WRONG_SIZE].append(image["file_name"])
        new_id = image["id"] if one_type else number
        kept[image["id"]] = {**image, "id": new_id, "width": seen.size[0], "height": seen.size[1]}
    return kept, problems


def _other_frame(source: Source, image: Coco, seen: Seen) -> Problem | None:
    """Boxes of an image that was turned or scaled: in the real one they would lie elsewhere."""
    width, height = image["width"], image["height"]
    if not all(isinstance(n, (int, float)) and _is_finite(n) and n > 0 for n in (width, height)):
        return None
    text = f"{source.spec.path}: {image['file_name']} is annotated as {width} x {height}, "
    if seen.turned and seen.size == (height, width):
        return Problem(
            f"{text}as it is stored, and its EXIF orientation turns it. Turn the annotations, or "
            "take the orientation out of the file.",
            "annotated before it was turned",
        )
    real_width, real_height = seen.size
    differs = abs(real_width - width) > max(2, ROUNDED * width)
    if differs and abs(real_width / width * height - real_height) <= 1:
        return Problem(
            f"{text}and its file has {real_width} x {real_height} pixels: it was scaled after "
            "it was annotated. Scale the annotations too, or put the original there.",
            "annotated before it was scaled",
        )
    return None


def _shared_files(source: Source, images: Mapping[Any, Coco]) -> list[Problem]:
    """Files that several images have: each would teach the objects of the others as background."""
    ids = defaultdict(list)
    for image_id, image in images.items():
        ids[image["file_name"]].append(show(image_id))
    return [
        Problem(
            f"{source.spec.path}: the images {shorten(same)} have one file, {name}. Merge them "
            "into one, with the boxes of all.",
            "images of one file",
        )
        for name, same in ids.items()
        if len(same) > 1
    ]


def image_defect(source: Source, image: Coco, rules: Rules) -> str | None:
    """What keeps an image of the set from being decoded in full; None: nothing."""
    seen = _look_at(source.image_root, image["file_name"], rules=rules, decode=True)
    return seen if isinstance(seen, str) else None


class Seen(NamedTuple):
    """An image that can be used: width and height as `read_image` gives it, and whether its EXIF
    orientation swaps them."""

    size: tuple[int, int]
    turned: bool


def _look_at(folder: Path, name: str, *, rules: Rules, decode: bool) -> Seen | str:
    """What there is to know of the image, or its defect."""
    try:
        if not rules.allow_outside and leaves(folder, name):
            return OUTSIDE
        if not (folder / name).is_file():  # opening a named pipe would wait for ever
            return UNREADABLE
        with Image.open(folder / name) as image:
            check_header(image, rules.max_pixels)
            if max(image.size) >= rules.max_aspect * min(image.size):
                return TOO_NARROW
            seen = Seen(upright_size(image), orientation(image) >= 5)
            if decode:
                image.load()
    except Image.DecompressionBombError:
        return TOO_LARGE
    except Exception:  # Pillow's decoders raise nearly any type on a broken file
        return UNREADABLE
    return seen


def _clean_categories(source: Source, classes: list[str]) -> tuple[list[Coco], dict[Any, Any]]:
    """Puts the categories into the order of the classes; also returns old id to new id.

    COCO's evaluation goes by ascending id, and Detectron2 labels its per-class results by class
    order; so the two orders must be the same. Both take ids to be numbers and names to be text.
    """
    categories = source.coco["categories"]
    typed = all(isinstance(c["id"], int) and isinstance(c["name"], str) for c in categories)
    if source.listed == classes and typed:
        return categories, {c["id"]: c["id"] for c in categories}
    ids = {name: i for i, name in enumerate(classes, start=1)}
    old = {str(c["name"]): c for c in categories}  # what else they hold, as names of keypoints
    new = [{**old.get(name, {}), "id": i, "name": name} for name, i in ids.items()]
    return new, {c["id"]: ids.get(str(c["name"])) for c in categories}


def _clean_annotations(
    source: Source,
    images: Mapping[Any, Coco],
    new_ids: Mapping[Any, Any],
    findings: Findings,
) -> list[Coco]:
    listed = {image["id"] for image in source.coco["images"]}
    kept = []
    for annotation in source.coco["annotations"]:
        if annotation["image_id"] not in listed:
            findings[NO_IMAGE].append(show(annotation["image_id"]))
            continue
        image = images.get(annotation["image_id"])
        category_id = new_ids[annotation["category_id"]]
        if image is None or category_id is None:
            continue
        box = _clip_box(annotation["bbox"], image["width"], image["height"])
        if box is None:
            findings[NO_AREA].append(image["file_name"])
            continue
        named = {**annotation, "image_id": image["id"], "category_id": category_id, "bbox": box}
        if box != annotation["bbox"] and not annotation.get("segmentation"):
            named.pop("area", None)  # of the box before it was cut
        new, defects = repair_fields(named, image["width"], image["height"])
        for defect in defects:
            findings[defect].append(image["file_name"])
        kept.append(new)
    return _number(kept)


def _clip_box(box: Sequence[float], width: int, height: int) -> list[float] | None:
    """Cuts an [x, y, w, h] box to the image; None if nothing with an area is left."""
    if not all(map(_is_finite, box)):
        return None
    x, y, w, h = box
    left, top, right, bottom = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
    if not (w > 0 and h > 0 and right > left and bottom > top):
        return None
    if max(left - x, top - y, x + w - right, y + h - bottom) <= CLIP_SLACK:
        return list(box)
    return [left, top, right - left, bottom - top]


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that no float holds
        return False


def _number(annotations: list[Coco]) -> list[Coco]:
    """Numbers annotations from 1, unless they have distinct whole numbers above 0 as ids.

    pycocotools takes an id of 0 for "no match", and keeps ids as floats.
    """
    ids = [a.get("id") for a in annotations]
    whole = all(isinstance(i, int) and 0 < i < 2**53 for i in ids)
    usable = whole and len(set(ids)) == len(ids)
    return annotations if usable else [{**a, "id": i} for i, a in enumerate(annotations, start=1)]
