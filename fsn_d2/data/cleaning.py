"""Skipping or repairing what training and evaluation cannot use, and counting it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image

from .image_header import MAX_PIXELS, check_header
from .paths import leaves
from .source import Coco, Source
from .wording import shorten

__all__ = ["Findings", "clean", "describe"]

NO_AREA = "boxes without area in the image, skipped"
UNREADABLE = "images that cannot be read, skipped"
TOO_LARGE = "images of more pixels than INPUT.MAX_PIXELS, skipped"
OUTSIDE = "images outside the set's folder, skipped (DATASETS.ALLOW_OUTSIDE True takes them)"
WRONG_SIZE = "images whose size is not the annotated one, real size taken"
NO_IMAGE = "annotations of images that are not listed, skipped"
REPEATED = "image ids listed more than once, taken once"

# Annotation tools round coordinates; a box that sticks out by less than this is left as it is.
CLIP_SLACK = 0.1  # pixels

Findings = defaultdict[str, list[str]]  # kind of defect -> the images concerned


def clean(
    source: Source,
    classes: list[str],
    *,
    decode: bool,
    max_pixels: int = MAX_PIXELS,
    allow_outside: bool = False,
) -> tuple[Coco, Findings]:
    """Takes out what cannot be used, and brings the categories into the order of the classes.

    Args:
        source: a set whose classes were checked.
        classes: the class list in use.
        decode: decode every image in full. Without it only headers are read, and a file cut off
            later is not noticed.
        max_pixels: ``INPUT.MAX_PIXELS``; an image whose header says more is not decoded.
        allow_outside: ``DATASETS.ALLOW_OUTSIDE``; take images that lie outside their folder.

    Returns:
        The cleaned COCO json, equal to the source's if nothing was amiss, and what was found.

    Raises:
        ValueError: no image can be read.
    """
    findings: Findings = defaultdict(list)
    if source.repeated:
        findings[REPEATED] = list(source.repeated)
    if source.outside:
        findings[OUTSIDE] = list(source.outside)
    look = partial(_look_at, decode=decode, max_pixels=max_pixels, allow_outside=allow_outside)
    images = _clean_images(source, findings, partial(look, source.image_root))
    if not images:
        raise ValueError(
            f"Data set {source.spec.name!r}: none of its {len(source.coco['images'])} images can "
            f"be read in {source.image_root.absolute()}; is it the right folder? "
            f"{describe(findings)}."
        )
    categories, new_ids = _clean_categories(source, classes)
    cleaned = {**source.coco, "images": images, "categories": categories}
    if "annotations" in source.coco:
        cleaned["annotations"] = _clean_annotations(source, images, new_ids, findings)
    return cleaned, findings


def describe(findings: Findings) -> str:
    """Says for each kind of defect how often it was met and the first three images."""
    return "; ".join(
        f"{defect}: {len(names)} ({shorten(list(dict.fromkeys(names)), limit=3)})"
        for defect, names in findings.items()
    )


def _clean_images(
    source: Source, findings: Findings, look: Callable[[str], tuple[int, int] | str]
) -> list[Coco]:
    images = source.coco["images"]
    with ThreadPoolExecutor(max_workers=8) as pool:
        sizes = list(pool.map(look, [image["file_name"] for image in images]))
    kept = []
    for image, size in zip(images, sizes, strict=True):
        declared = (image.get("width"), image.get("height"))
        if isinstance(size, str):
            findings[size].append(image["file_name"])
            continue
        if size != declared and None not in declared:
            findings[WRONG_SIZE].append(image["file_name"])
        kept.append({**image, "width": size[0], "height": size[1]})
    return kept


def _look_at(
    folder: Path, name: str, *, decode: bool, max_pixels: int, allow_outside: bool
) -> tuple[int, int] | str:
    """Width and height as Detectron2's `read_image` gives them, or the defect of the image."""
    try:
        if not allow_outside and leaves(folder, name):
            return OUTSIDE
        with Image.open(folder / name) as image:
            check_header(image, max_pixels)
            width, height = image.size
            turned = _exif_orientation(image) >= 5
            if decode:
                image.load()
    except Image.DecompressionBombError:
        return TOO_LARGE
    except Exception:  # Pillow's decoders raise nearly any type on a broken file
        return UNREADABLE
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
    order; so the two orders must be the same. Both take ids to be numbers and names to be text.
    """
    categories = source.coco["categories"]
    typed = all(isinstance(c["id"], int) and isinstance(c["name"], str) for c in categories)
    if source.listed == classes and typed:
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
            findings[NO_IMAGE].append(str(annotation["image_id"]))
            continue
        image = by_id.get(annotation["image_id"])
        if image is None:
            continue
        box = _clip_box(annotation["bbox"], image["width"], image["height"])
        if box is None:
            findings[NO_AREA].append(image["file_name"])
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
    """Numbers annotations from 1, unless they have distinct ids above 0.

    pycocotools takes an id of 0 for "no match".
    """
    ids = [a.get("id") for a in annotations]
    usable = all(isinstance(i, int) and i > 0 for i in ids) and len(set(ids)) == len(ids)
    return annotations if usable else [{**a, "id": i} for i, a in enumerate(annotations, start=1)]
