"""The sheet of samples: which images are shown, and where their boxes are drawn."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from fsn_d2.data.cleaning import CleanedSet
from fsn_d2.data.source import Source
from fsn_d2.data.specs import DatasetSpec
from fsn_d2.visualization.samples import CAPTION, CELL, choose_samples, save_sample_sheet

GRAY = 128


def make_set(folder: Path, images: list[tuple[int, int]], boxes: list[tuple]) -> CleanedSet:
    """Gray images of the sizes; boxes are (image, class, x, y, w, h), numbers from 1."""
    entries = []
    for number, size in enumerate(images, start=1):
        Image.new("RGB", size, (GRAY,) * 3).save(folder / f"{number}.png")
        entry = {"id": number, "file_name": f"{number}.png", "width": size[0], "height": size[1]}
        entries.append(entry)
    annotations: list[dict[str, Any]] = [
        {"image_id": i, "category_id": c, "bbox": list(box), "iscrowd": 0} for i, c, *box in boxes
    ]
    categories = [{"id": c, "name": f"c{c}"} for c in (1, 2, 3)]
    coco = {"images": entries, "annotations": annotations, "categories": categories}
    source = Source(DatasetSpec("coco://x:y", "coco", folder, ""), coco, folder, {})
    return CleanedSet(source, coco, defaultdict(list), [])


def read_sheet(path: Path) -> np.ndarray:
    return cv2.imread(str(path)).astype(int)


def drawn(part: np.ndarray) -> bool:
    return bool((np.abs(part - GRAY).max(axis=2) > 20).any())


def test_a_box_is_drawn_at_its_place_of_the_scaled_image(tmp_path: Path) -> None:
    each = make_set(tmp_path, [(720, 360)], [(1, 1, 20, 20, 200, 100)])
    path = tmp_path / "new" / "sheet.png"
    save_sample_sheet([each], ["c1", "c2", "c3"], path, columns=1)
    sheet = read_sheet(path)
    assert sheet.shape == (CAPTION + CELL // 2, CELL, 3)
    picture = sheet[CAPTION:]  # half as large
    assert drawn(picture[58:62, 50:60])  # on the lower edge, at 120 / 2
    assert not drawn(picture[75:]) and not drawn(picture[:, 130:])


def test_every_class_is_shown_the_rarest_first(tmp_path: Path) -> None:
    boxes = [(i, 1, 1, 1, 9, 9) for i in range(1, 21)] + [(17, 3, 1, 1, 9, 9), (4, 2, 1, 1, 9, 9)]
    each = make_set(tmp_path, [(20, 20)] * 20, boxes)
    for seed in range(5):
        chosen = [image["id"] for image in choose_samples(each, 3, seed)]
        assert set(chosen[:2]) == {4, 17} and len(set(chosen)) == 3
    assert len(choose_samples(each, 50, 0)) == 20
    assert choose_samples(each, 5, 1) == choose_samples(each, 5, 1)


def test_rows_are_as_high_as_their_tallest_picture(tmp_path: Path) -> None:
    each = make_set(tmp_path, [(100, 50)] * 3, [])
    path = tmp_path / "sheet.jpg"
    save_sample_sheet([each, each], ["c1", "c2", "c3"], path, images=3, columns=2)
    assert read_sheet(path).shape == (4 * (CAPTION + CELL // 2), 2 * CELL, 3)


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (3000, 2)])
def test_odd_sizes(tmp_path: Path, size: tuple[int, int]) -> None:
    each = make_set(tmp_path, [size], [(1, 1, 0, 0, *size)])
    save_sample_sheet([each], ["c1", "c2", "c3"], tmp_path / "sheet.png")
    assert read_sheet(tmp_path / "sheet.png").shape[0] > CAPTION


def test_other_suffixes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"sheet\.pdf .*\.png or \.jpg"):
        save_sample_sheet([], [], tmp_path / "sheet.pdf")
