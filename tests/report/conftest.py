"""A case small enough to be worked by hand, and one of random boxes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fsn_d2.report.inputs import Evaluated, as_coco

Box = list[float]
Truth = list[tuple[int, int, Box]]  # image, class, XYWH
Found = list[tuple[int, int, Box, float]]  # and score

SIZES = {1: (300, 300), 2: (300, 300), 3: (120, 60)}  # width, height by image id


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Evaluated]:
    """Makes an `Evaluated` of gray images 1 to 3; class i has the category id 10 * i."""

    def make(
        truth: Truth,
        found: Found,
        *,
        crowd: Truth = (),  # type: ignore[assignment]
        classes: tuple[str, ...] = ("apple", "bear"),
    ) -> Evaluated:
        images, files = [], {}
        for number, size in SIZES.items():
            name = f"{number}.png"
            Image.new("RGB", size, (90, 120, 150)).save(tmp_path / name)
            images.append({"id": number, "width": size[0], "height": size[1], "file_name": name})
            files[number] = str(tmp_path / name)
        categories = [{"id": 10 * i, "name": name} for i, name in enumerate(classes)]
        annotations = [
            {
                "image_id": image,
                "category_id": 10 * label,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": iscrowd,
            }
            for iscrowd, boxes in ((0, truth), (1, crowd))
            for image, label, box in boxes
        ]
        detections = [
            {"image_id": image, "category_id": 10 * label, "bbox": box, "score": score}
            for image, label, box, score in found
        ]
        coco = as_coco({"images": images, "categories": categories}, annotations)
        return Evaluated("a set", coco, detections, files)

    return make


@pytest.fixture
def by_hand(build: Callable[..., Evaluated]) -> Evaluated:
    """In image 1 an apple and a bear, in image 2 an apple and a crowd of bears; image 3 is empty.

    The apple of image 1 is found (0.9). The bear is called apple (0.8) and bear (0.7). There is a
    bear where nothing is (0.6), an apple where nothing is (0.04), and a bear in the crowd (0.95).
    The apple of image 2 is missed.
    """
    apple, bear = [10.0, 10, 40, 40], [100.0, 10, 40, 40]
    crowd = [200.0, 200, 80, 80]
    return build(
        [(1, 0, apple), (1, 1, bear), (2, 0, apple)],
        [
            (1, 0, apple, 0.9),
            (1, 0, bear, 0.8),
            (1, 1, bear, 0.7),
            (1, 1, [200.0, 200, 30, 30], 0.6),
            (1, 0, [250.0, 10, 30, 30], 0.04),
            (2, 1, [210.0, 210, 50, 50], 0.95),
        ],
        crowd=[(2, 1, crowd)],
    )


@pytest.fixture
def random_case(build: Callable[..., Evaluated]) -> Evaluated:
    """Images 1 and 2, full of three classes; distinct scores in steps of 0.001."""
    rng = np.random.default_rng(0)
    scores = iter(rng.choice(1001, 80, replace=False) / 1000)
    truth: Truth = []
    found: Found = []
    for _ in range(40):
        image, label = int(rng.integers(1, 3)), int(rng.integers(3))
        box = [*rng.uniform(0, 200, 2).tolist(), *rng.uniform(20, 90, 2).tolist()]
        truth.append((image, label, box))
        for _ in range(2):
            near = (np.array(box) + rng.normal(0, 5, 4)).tolist()
            said = label if rng.random() < 0.7 else int(rng.integers(3))
            found.append((image, said, near, float(next(scores))))
    return build(truth, found, classes=("a", "b", "c"))
