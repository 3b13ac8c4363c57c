"""A sheet of a data set's images with the boxes that are annotated on them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
from detectron2.data import Metadata
from detectron2.structures import BoxMode

from ..data.cleaning import CleanedSet
from ..data.mapper import read_image
from .drawing import draw_ground_truth
from .writing import write_image

__all__ = ["save_sample_sheet"]

CELL = 360  # pixels, longer side of a picture
CAPTION = 20  # pixels, height
SUFFIXES = (".png", ".jpg", ".jpeg")


def save_sample_sheet(
    sets: Iterable[CleanedSet],
    classes: Sequence[str],
    path: str | Path,
    *,
    images: int = 12,
    columns: int = 4,
    seed: int = 0,
) -> None:
    """Saves pictures of some images of each set; every class is shown where there is room.

    Args:
        sets: each begins a new row.
        classes: names, as `thing_classes`.
        path: PNG or JPEG to write.
        images: pictures per set, at most.
        columns: pictures per row.
        seed: of the choice.

    Raises:
        ValueError: the path has another suffix.
    """
    if Path(path).suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path} cannot be a picture: give a name that ends in .png or .jpg.")
    metadata = Metadata(name="samples", thing_classes=list(classes))
    rows = []
    for each in sets:
        cells = [_draw(each, image, metadata) for image in choose_samples(each, images, seed)]
        rows += [cells[i : i + columns] for i in range(0, len(cells), columns)]
    sheet = [_in_a_row(row, columns) for row in rows]
    write_image(path, np.vstack(sheet)[:, :, ::-1])


def choose_samples(cleaned: CleanedSet, count: int, seed: int) -> list[dict]:
    """Entries of `images`: for each class, from the rarest on, one that shows it; then any.

    Args:
        cleaned: the set.
        count: how many, at most.
        seed: of the choice.
    """
    shuffled = random.Random(seed).sample(cleaned.coco["images"], len(cleaned.coco["images"]))
    owners: dict[int, set] = {c["id"]: set() for c in cleaned.coco["categories"]}
    for annotation in cleaned.coco.get("annotations", ()):
        owners[annotation["category_id"]].add(annotation["image_id"])
    chosen: dict = {}
    for shown in sorted(owners.values(), key=len):
        if shown and not shown & chosen.keys():
            image = next(image for image in shuffled if image["id"] in shown)
            chosen[image["id"]] = image
    for image in shuffled:
        chosen.setdefault(image["id"], image)
    return list(chosen.values())[:count]


def _draw(cleaned: CleanedSet, image: dict, metadata: Metadata) -> np.ndarray:
    """A picture below its name, RGB uint8 [CAPTION + height, CELL, 3]."""
    pixels = read_image(str(cleaned.source.image_root / image["file_name"]), "RGB")
    scale = CELL / max(pixels.shape[:2])
    size = (max(1, round(image["width"] * scale)), max(1, round(image["height"] * scale)))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    ids = sorted(category["id"] for category in cleaned.coco["categories"])  # in class order
    annotations = [
        {
            "bbox": [v * scale for v in a["bbox"]],
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": ids.index(a["category_id"]),
            "iscrowd": a["iscrowd"],
        }
        for a in cleaned.coco.get("annotations", ())
        if a["image_id"] == image["id"]
    ]
    drawn = draw_ground_truth(small, {"annotations": annotations}, metadata)
    cell = np.full((CAPTION + size[1], CELL, 3), 255, np.uint8)
    cell[CAPTION:, : size[0]] = drawn
    name = image["file_name"].encode("ascii", "replace").decode()[-45:]
    cv2.putText(cell, name, (4, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
    return cell


def _in_a_row(cells: Sequence[np.ndarray], columns: int) -> np.ndarray:
    row = np.full((max(map(len, cells)), CELL * columns, 3), 255, np.uint8)
    for place, cell in enumerate(cells):
        row[: len(cell), CELL * place : CELL * (place + 1)] = cell
    return row
