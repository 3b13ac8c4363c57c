"""Reading a Pascal VOC folder into the COCO form."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from .paths import leaves
from .source import Coco, Source
from .specs import DatasetSpec, require_path

__all__ = ["read_voc"]

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")

VocObject = tuple[str, list[float]]  # class name; x, y, width, height in pixels


def read_voc(spec: DatasetSpec, *, allow_outside: bool = False) -> Source:
    """Reads the split of a spec ``voc://VOCroot:split`` into the COCO form.

    Two conventions are those of Detectron2's `load_voc_instances`: coordinates are 1-based
    inclusive pixels, so 1 is taken from xmin and ymin; objects marked `difficult` are ordinary
    objects (they are trained on, and `iscrowd` is 0). Unlike there, a box with xmax <= xmin or
    ymax <= ymin is taken as one without area: it is a slip of the mouse, not one pixel.

    Args:
        spec: of the kind "voc".
        allow_outside: read annotations that lie outside the folder of annotations too, where the
            split file or a link leads there. Otherwise their ids are listed in `Source.outside`.

    Raises:
        FileNotFoundError: a folder, the split file or the annotation of an image is missing.
        ValueError: the split file is empty or an annotation cannot be read.
    """
    annotations, image_root = spec.path / "Annotations", spec.path / "JPEGImages"
    require_path(spec.path, "VOC root", spec, folder=True)
    require_path(annotations, "folder of annotations", spec, folder=True)
    require_path(image_root, "folder of images", spec, folder=True)
    counts = Counter(_read_split(spec))
    read = [i for i in counts if allow_outside or not leaves(annotations, f"{i}.xml")]
    files = {i: annotations / f"{i}.xml" for i in read}
    parsed = [_read_xml(file, i, image_root) for i, file in files.items()]
    used: dict[str, Path] = {}
    for file, (_, objects) in zip(files.values(), parsed, strict=True):
        for name, _ in objects:
            used.setdefault(name, file)
    repeated = [i for i, count in counts.items() if count > 1]
    outside = [i for i in counts if i not in files]
    return Source(spec, _voc_to_coco(parsed, used), image_root, used, repeated, outside)


def _read_split(spec: DatasetSpec) -> list[str]:
    folder = spec.path / "ImageSets" / "Main"
    require_path(folder, "folder of splits", spec, folder=True)
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
