"""Reading a Pascal VOC folder into the COCO form."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .paths import leaves
from .problems import Problem, collected
from .source import Coco, Source
from .specs import DatasetSpec, require_path
from .wording import show

__all__ = ["read_voc"]

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class _Annotation:
    """What one xml file holds.

    Attributes:
        image: the image's COCO entry without its id.
        objects: class name, and x, y, width, height in pixels.
        problems: objects that cannot be read; or the file, which then has no image.
    """

    image: Coco | None = None
    objects: list[tuple[str, list[float]]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def read_voc(spec: DatasetSpec, *, allow_outside: bool = False) -> Source:
    """Reads the split of a spec ``voc://VOCroot:split`` into the COCO form.

    Two conventions are those of Detectron2's `load_voc_instances`: coordinates are 1-based
    inclusive pixels, so 1 is taken from xmin and ymin; objects marked `difficult` are ordinary
    objects (they are trained on, and `iscrowd` is 0). Unlike there, a box with xmax <= xmin or
    ymax <= ymin is taken as one without area: it is a slip of the mouse, not one pixel.

    Folders and files that do not exist, an empty split file, and annotations that cannot be read
    become `Source.problems`; the rest is read.

    Args:
        spec: of the kind "voc".
        allow_outside: read annotations that lie outside the folder of annotations too, where the
            split file or a link leads there. Otherwise their ids are listed in `Source.outside`.
    """
    annotations, image_root = spec.path / "Annotations", spec.path / "JPEGImages"
    problems: list[Problem] = []
    counts: Counter[str] = Counter()
    with collected(problems):
        require_path(spec.path, "VOC root", spec, folder=True)
        for path, what in ((annotations, "annotations"), (image_root, "images")):
            with collected(problems):
                require_path(path, f"folder of {what}", spec, folder=True)
        counts.update(_read_split(spec))
    there = annotations.is_dir()
    read = [i for i in counts if there and (allow_outside or not leaves(annotations, f"{i}.xml"))]
    files = {i: annotations / f"{i}.xml" for i in read}
    parsed = [_read_xml(file, i, image_root) for i, file in files.items()]
    used: dict[str, Path] = {}
    for file, annotation in zip(files.values(), parsed, strict=True):
        for name, _ in annotation.objects:
            used.setdefault(name, file)
    problems += [problem for annotation in parsed for problem in annotation.problems]
    return Source(
        spec,
        _voc_to_coco(parsed, used),
        image_root,
        used,
        repeated=[i for i, count in counts.items() if count > 1],
        outside=[i for i in counts if there and i not in files],
        problems=problems,
        classes_known=not problems,
        verbatim=False,
    )


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
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"The split file {path} cannot be read as UTF-8: {error}.") from error
    ids = [line.strip() for line in text.splitlines()]
    ids = [i for i in ids if i]
    if not ids:
        raise ValueError(f"The split file {path} is empty; it needs one image id a line.")
    if "\0" in text:
        raise ValueError(f"The split file {path} holds NUL characters; save it as UTF-8.")
    return ids


def _read_xml(path: Path, image_id: str, image_root: Path) -> _Annotation:
    try:
        if path.exists() and not path.is_file():
            raise ValueError("not a file")
        root = ET.parse(path).getroot()
    except FileNotFoundError:
        text = (
            f"{path} does not exist, but the split file names {image_id!r}. Add the file (without "
            "objects, if the image has none) or take the line out."
        )
        return _Annotation(problems=[Problem(text, "no xml", missing=True)])
    except (ET.ParseError, LookupError, OSError, ValueError) as error:
        return _Annotation(problems=[_unreadable(path, f"{error}", "xml")])
    image: Coco = {"file_name": _find_image(image_root, image_id, root.findtext("filename"))}
    for key in ("width", "height"):
        text = (root.findtext(f"size/{key}") or "").strip()
        image[key] = int(text) if text.isdecimal() and len(text) < 10 else None
    annotation = _Annotation(image)
    for number, element in enumerate(root.findall("object"), start=1):
        try:
            annotation.objects.append(_read_object(element))
        except ValueError as error:
            problem = _unreadable(path, f"object {number} {error}", "object")
            annotation.problems.append(problem)
    return annotation


def _unreadable(path: Path, what: str, kind: str) -> Problem:
    return Problem(f"{path} is not a readable VOC annotation: {what}.", kind)


def _read_object(element: ET.Element) -> tuple[str, list[float]]:
    """Class name, and x, y, width, height; raises ValueError, continuing "object 1 ..."."""
    name = (element.findtext("name") or "").strip()
    if not name:
        raise ValueError("has no <name>")
    corners = []
    for key in ("xmin", "ymin", "xmax", "ymax"):
        text = element.findtext(f"bndbox/{key}")
        if text is None:
            raise ValueError(f"({name!r}) has no <bndbox> with <{key}>")
        try:
            corners.append(float(text))
        except ValueError as error:
            raise ValueError(f"({name!r}) has {key} {show(text)}, expected a number") from error
    xmin, ymin, xmax, ymax = corners
    width = xmax - xmin + 1 if xmax > xmin else 0.0
    height = ymax - ymin + 1 if ymax > ymin else 0.0
    return name, [xmin - 1, ymin - 1, width, height]


def _find_image(image_root: Path, image_id: str, file_name: str | None) -> str:
    """Finds the file of an image by its id, else by <filename>, which tools often leave stale."""
    suffixes = [case(e) for e in IMAGE_EXTENSIONS for case in (str.lower, str.upper)]
    names = [image_id + suffix for suffix in suffixes] + [(file_name or "").strip()]
    return next((n for n in names if n and _is_file(image_root / n)), names[0])


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long, for one
        return False


def _voc_to_coco(parsed: Sequence[_Annotation], names: Iterable[str]) -> Coco:
    category_ids = {name: i for i, name in enumerate(sorted(names), start=1)}
    read = [(a.image, a.objects) for a in parsed if a.image is not None]
    images = [{"id": i, **image} for i, (image, _) in enumerate(read, start=1)]
    annotations = [
        {"image_id": i, "category_id": category_ids[name], "bbox": box}
        for i, (_, objects) in enumerate(read, start=1)
        for name, box in objects
    ]
    categories = [{"id": i, "name": name} for name, i in category_ids.items()]
    return {"images": images, "annotations": annotations, "categories": categories}
