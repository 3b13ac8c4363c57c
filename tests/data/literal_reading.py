"""What a data set holds, read a second time in the most literal way: the oracle of the fuzzed sets.

It shares no code with the package. Boxes are cut with exact fractions, xml is read with minidom,
and what is true of an image file is what its writer says.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any
from xml.dom import minidom
from xml.parsers.expat import ExpatError

from .fuzzed_pictures import Picture

__all__ = ["Box", "Truth", "read_literally"]

Box = tuple[str, str, tuple[float, ...], bool]  # image, class, (x1, y1, x2, y2), crowd
ABSENT = Picture(None, False, "unreadable")


@dataclass
class Truth:
    """What has to come out.

    Attributes:
        problems: places that nobody can read; a set that has some is refused.
        boxes: that have an area in an image that can be used, cut to it.
        findings: how often each kind of repairable defect occurs.
        classes: in the order of their ids (COCO) or of the alphabet (VOC).
        images: that can be used, each with whether it decodes to the end.
        annotations: how many there are in the file, whatever they are like.
    """

    problems: Counter[str] = field(default_factory=Counter)
    boxes: list[Box] = field(default_factory=list)
    findings: Counter[str] = field(default_factory=Counter)
    classes: list[str] = field(default_factory=list)
    images: dict[str, bool] = field(default_factory=dict)
    annotations: int = 0


def read_literally(spec: str, pictures: dict[str, Picture], *, train: bool) -> Truth:
    """Reads a fuzzed set.

    Args:
        spec: ``coco://...`` or ``voc://...``.
        pictures: what is true of its images, by file name (COCO) or by id (VOC).
        train: it is to be trained on: it needs annotations, and images are not decoded beforehand.
    """
    kind, _, rest = spec.partition("://")
    path, _, last = rest.rpartition(":")
    if kind == "coco":
        truth = _read_coco(Path(path), pictures, train=train)
    else:
        truth = _read_voc(Path(path), last, pictures, train=train)
    return truth


def _finish(truth: Truth, listed: int, *, classes_known: bool, train: bool) -> Truth:
    """Adds what is wrong with the set as a whole."""
    if listed == 0 and not truth.problems:
        truth.problems["lists no image"] += 1
    if listed > 0 and not truth.images:
        truth.problems["no image"] += 1
    if not truth.classes and classes_known:
        truth.problems["no class"] += 1
    if train and not truth.problems:
        boxed = {image for image, _, _, crowd in truth.boxes if not crowd}
        if not boxed:
            truth.problems["no box"] += 1
        elif not any(truth.images[image] for image in boxed):
            truth.problems["nothing decodes"] += 1
    return truth


# ---------------------------------------------------------------------------- COCO


def _read_coco(path: Path, pictures: dict[str, Picture], *, train: bool) -> Truth:
    truth = Truth()
    raw = path.read_bytes()
    try:
        coco = json.loads(_decode(raw))
        if type(coco) is not dict:
            raise ValueError
    except (ValueError, RecursionError):
        truth.problems["file"] += 1
        return truth
    truth.annotations = len(coco["annotations"]) if _is_list(coco, "annotations") else 0
    images = _sound_images(coco, truth)
    images_sound = not truth.problems
    categories = _sound_categories(coco, truth)
    classes_known = _is_list(coco, "categories") and len(categories) == len(coco["categories"])
    truth.classes = [str(categories[i]) for i in sorted(categories, key=_order)]
    annotations = _sound_annotations(coco, truth, categories, train=train)
    owners = [a["image_id"] for a in annotations]
    if images_sound and owners and not any(_in(owner, images) for owner in owners):
        truth.problems["image ids"] += 1
    if not _is_list(coco, "categories"):
        annotations = []
    sizes = {}
    for image_id, image in images.items():
        picture = pictures.get(image["file_name"], ABSENT)
        state = picture.state or ("unreadable" if not train and not picture.decodes else None)
        given = image.get("width"), image.get("height")
        if state:
            truth.findings[state] += 1
            continue
        if given[0] is not None and given[1] is not None and given != picture.size:
            truth.findings["wrong size"] += 1
        assert picture.size
        sizes[image_id] = picture.size
        truth.images[image["file_name"]] = picture.decodes
    for annotation in annotations:
        if not _in(annotation["category_id"], categories):
            continue
        if not _in(annotation["image_id"], images):
            truth.findings["no image"] += 1
        elif annotation["image_id"] in sizes:
            width, height = sizes[annotation["image_id"]]
            box = _cut(annotation["bbox"], width, height)
            name = images[annotation["image_id"]]["file_name"]
            if box is None:
                truth.findings["no area"] += 1
                continue
            _count_fields(annotation, box, width, height, truth)
            crowd = annotation.get("iscrowd") in (1, True)
            truth.boxes.append((name, str(categories[annotation["category_id"]]), box, crowd))
    return _finish(truth, len(images), classes_known=classes_known, train=train)


def _decode(raw: bytes) -> str:
    for mark, encoding in ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16")):
        if raw.startswith(mark):
            return raw.decode(encoding, "surrogatepass")
    return raw.decode("utf-8", "surrogatepass")


def _is_list(coco: dict, key: str) -> bool:
    return type(coco.get(key)) is list


def _is_id(value: Any) -> bool:
    return type(value) in (int, str)


def _in(value: Any, table: dict) -> bool:
    return _is_id(value) and any(type(v) is type(value) and v == value for v in table)


def _order(value: Any) -> tuple:
    return (1, value) if isinstance(value, str) else (0, value)


def _sound_images(coco: dict, truth: Truth) -> dict[Any, dict]:
    images: dict[Any, dict] = {}
    if not _is_list(coco, "images"):
        truth.problems["list images"] += 1
        return images
    counts: Counter[Any] = Counter()
    for number, image in enumerate(coco["images"]):
        sound = type(image) is dict and _is_id(image.get("id"))
        if not sound or type(image.get("file_name")) is not str:
            truth.problems[f"images[{number}]"] += 1
        else:
            counts[image["id"]] += 1
            images.setdefault(image["id"], image)
    truth.problems.update("images id twice" for count in counts.values() if count > 1)
    return images


def _sound_categories(coco: dict, truth: Truth) -> dict[Any, Any]:
    categories: dict[Any, Any] = {}
    if not _is_list(coco, "categories"):
        truth.problems["list categories"] += 1
        return categories
    entries = []
    for number, category in enumerate(coco["categories"]):
        sound = type(category) is dict and _is_id(category.get("id"))
        sound = sound and _is_id(category.get("name"))
        name = str(category["name"]) if sound else ""
        if not name.strip() or any("\ud800" <= c <= "\udfff" for c in name):
            truth.problems[f"categories[{number}]"] += 1
        else:
            entries.append((category["id"], name))
    ids = Counter(i for i, _ in entries)
    truth.problems.update("categories id twice" for count in ids.values() if count > 1)
    first: dict[Any, str] = {}
    for category_id, name in entries:
        first.setdefault(category_id, name)
    names = Counter(first.values())
    truth.problems.update("categories name twice" for count in names.values() if count > 1)
    for category_id, name in first.items():
        if name not in categories.values():
            categories[category_id] = name
    return categories


def _sound_annotations(
    coco: dict, truth: Truth, categories: dict[Any, Any], *, train: bool
) -> list[dict]:
    if "annotations" not in coco and not train:
        return []
    if not _is_list(coco, "annotations"):
        truth.problems["list annotations"] += 1
        return []
    sound = []
    for number, annotation in enumerate(coco["annotations"]):
        if _is_sound(annotation, categories if _is_list(coco, "categories") else None):
            sound.append(annotation)
        else:
            truth.problems[f"annotations[{number}]"] += 1
    return sound


def _is_sound(annotation: Any, categories: dict[Any, Any] | None) -> bool:
    if type(annotation) is not dict:
        return False
    if not _is_id(annotation.get("image_id")) or not _is_id(annotation.get("category_id")):
        return False
    box = annotation.get("bbox")
    if type(box) is not list or len(box) != 4:
        return False
    if not all(type(v) in (int, float) for v in box):
        return False
    if annotation.get("ignore"):
        return False
    crowd = annotation.get("iscrowd", 0)
    if not (crowd is None or (type(crowd) in (int, float, bool) and crowd in (0, 1))):
        return False
    return categories is None or _in(annotation["category_id"], categories)


def _cut(box: list, width: int, height: int) -> tuple[float, ...] | None:
    """Corners of the part inside the image, None where that has no area."""
    try:
        if any(math.isnan(v) or math.isinf(v) for v in box):
            return None
    except OverflowError:
        return None
    x, y, w, h = (Fraction(v) for v in box)
    if w <= 0 or h <= 0:
        return None
    left, right = max(x, Fraction(0)), min(x + w, Fraction(width))
    top, bottom = max(y, Fraction(0)), min(y + h, Fraction(height))
    if left >= right or top >= bottom:
        return None
    return tuple(float(v) for v in (left, top, right, bottom))


def _finite(value: Any) -> bool:
    if type(value) not in (int, float):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def _count_fields(
    annotation: dict, box: tuple[float, ...], width: int, height: int, truth: Truth
) -> None:
    x, y, w, h = annotation["bbox"]
    reach = max(-x, -y, x + w - width, y + h - height)
    masked = bool(annotation.get("segmentation"))
    if "area" in annotation and (reach <= 0.1 or masked):
        area = annotation["area"]
        if not _finite(area) or area <= 0 or area > (width + 1) * (height + 1):
            truth.findings["area"] += 1
    if masked and not _is_whole_mask(annotation["segmentation"], width, height):
        truth.findings["mask"] += 1
    if "keypoints" in annotation:
        points = annotation["keypoints"]
        if type(points) is not list or len(points) % 3 or not all(map(_finite, points)):
            truth.findings["keypoints"] += 1


def _is_whole_mask(mask: Any, width: int, height: int) -> bool:
    if type(mask) is list:
        return all(
            type(p) is list and len(p) >= 6 and len(p) % 2 == 0 and all(map(_finite, p))
            for p in mask
        )
    if type(mask) is not dict or mask.get("size") != [height, width]:
        return False
    counts = mask.get("counts")  # the sets hold no sound compressed ones
    if type(counts) is not list or any(type(c) is not int or c < 0 for c in counts):
        return False
    return sum(counts) == width * height


# ---------------------------------------------------------------------------- VOC


def _read_voc(root: Path, split: str, pictures: dict[str, Picture], *, train: bool) -> Truth:
    truth = Truth()
    raw = (root / "ImageSets" / "Main" / f"{split}.txt").read_bytes()
    try:
        text = raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError:
        text = "\0"
    ids = [line.strip() for line in text.replace("\r", "").split("\n") if line.strip()]
    if not ids or "\0" in text:
        truth.problems["split"] += 1
        return truth
    truth.findings["repeated"] = sum(count > 1 for count in Counter(ids).values())
    listed, seen = 0, set()
    for image_id in dict.fromkeys(ids):
        if image_id.startswith("../"):
            truth.findings["outside"] += 1
            continue
        path = root / "Annotations" / f"{image_id}.xml"
        if len(image_id) > 250 or not path.is_file():
            truth.problems[path.name] += 1
            continue
        try:
            document = minidom.parseString(path.read_bytes()).documentElement
        except (ExpatError, LookupError, ValueError):
            truth.problems[path.name] += 1
            continue
        listed += 1
        picture = pictures[image_id]
        if picture.size is None:
            picture = _without_file(root / "JPEGImages", image_id, _text(document, "filename"))
        state = picture.state or ("unreadable" if not train and not picture.decodes else None)
        if state:
            truth.findings[state] += 1
        else:
            assert picture.size
            size = _child(document, "size")
            given = [_whole(_text(size, key)) for key in ("width", "height")]
            if None not in given and tuple(given) != picture.size:
                truth.findings["wrong size"] += 1
            truth.images[image_id] = picture.decodes
        number = 0
        for element in document.childNodes:
            if element.nodeName != "object":
                continue
            number += 1
            truth.annotations += 1
            found = _read_object(element)
            if found is None:
                truth.problems[f"{path.name} object {number}"] += 1
                continue
            name, (x1, y1, x2, y2) = found
            seen.add(name)
            if state:
                continue
            ordered = x2 > x1 and y2 > y1 and all(math.isfinite(v) for v in (x1, y1, x2, y2))
            width, height = picture.size or (0, 0)
            # Pixels are counted from 1, and the last one is part of the box.
            box = _cut([x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1], width, height)
            if not ordered or box is None:
                truth.findings["no area"] += 1
            else:
                truth.boxes.append((image_id, name, box, False))
    truth.classes = sorted(seen)
    return _finish(truth, listed, classes_known=not truth.problems, train=train)


def _without_file(images: Path, image_id: str, file_name: str | None) -> Picture:
    """An image that is not under its id: the xml's <filename> is tried."""
    there = any(p.is_file() for p in images.glob("*") if p.name.startswith(f"{image_id}."))
    if not there and file_name == "/etc/passwd":
        return Picture(None, False, "outside")
    return ABSENT


def _child(element: Any, name: str) -> Any:
    if element is None:
        return None
    return next((n for n in element.childNodes if n.nodeName == name), None)


def _text(element: Any, name: str) -> str | None:
    child = _child(element, name)
    if child is None:
        return None
    before = []  # the text up to the first element inside
    for node in child.childNodes:
        if node.nodeType not in (node.TEXT_NODE, node.CDATA_SECTION_NODE):
            break
        before.append(node.data)
    return "".join(before)


def _whole(text: str | None) -> int | None:
    text = (text or "").strip()
    return int(text) if text.isdecimal() and len(text) < 10 else None


def _read_object(element: Any) -> tuple[str, list[float]] | None:
    name = (_text(element, "name") or "").strip()
    corners = [_text(_child(element, "bndbox"), k) for k in ("xmin", "ymin", "xmax", "ymax")]
    try:
        return (name, [float(str(c)) for c in corners]) if name else None
    except ValueError:
        return None
