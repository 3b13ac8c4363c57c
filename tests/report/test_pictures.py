"""Which images are shown, and what is drawn on them."""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from fsn_d2.report.inputs import Evaluated
from fsn_d2.report.matching import match
from fsn_d2.report.pictures import SIDE, encode, pictures, rank

BOX, FAR = [10.0, 10, 40, 40], [60.0, 10, 20, 20]


def test_images_from_worst_to_best(build: Callable[..., Evaluated]) -> None:
    truth = [(1, 0, BOX), (2, 0, BOX)]
    found = [(1, 0, BOX, 0.5), (2, 0, BOX, 0.9), (2, 0, FAR, 0.4), (3, 0, FAR, 0.3)]
    evaluated = build(truth, found)
    matches = match(evaluated)

    def order(level: int) -> list[int]:
        return [index + 1 for index in rank(evaluated, matches, level)]

    assert order(30) == [3, 2, 1]  # F1 0, 2 / 3, 1
    assert order(40) == [2, 1]  # nothing in image 3, and nothing found
    assert order(60) == [1, 2]


def test_among_equals_more_boxes_lie_further_out(build: Callable[..., Evaluated]) -> None:
    missed = build([(1, 0, BOX), (2, 0, BOX), (2, 0, FAR)], [])
    assert rank(missed, match(missed), 50) == [1, 0]
    found = build(
        [(1, 0, BOX), (2, 0, BOX), (2, 0, FAR)],
        [(1, 0, BOX, 0.9), (2, 0, BOX, 0.9), (2, 0, FAR, 0.9)],
    )
    assert rank(found, match(found), 50) == [0, 1]


def test_no_image_is_shown_twice(build: Callable[..., Evaluated]) -> None:
    evaluated = build([(i, 0, BOX) for i in (1, 2, 3)], [(1, 0, BOX, 0.9), (2, 0, FAR, 0.9)])
    shown = pictures(evaluated, match(evaluated), 50, 12)
    assert [(p["list"], p["rank"], p["name"]) for p in shown] == [
        ("worst", 1, "2.png"),
        ("best", 1, "1.png"),
        ("best", 2, "3.png"),
    ]
    assert pictures(evaluated, match(evaluated), 50, 0) == []


def test_boxes_of_a_picture_by_hand(by_hand: Evaluated) -> None:
    shown = {p["name"]: p for p in pictures(by_hand, match(by_hand), 50, 12)}
    first, second = shown["1.png"], shown["2.png"]
    assert first["objects"] == [[10, 10, 40, 40, 0], [100, 10, 40, 40, 1]]
    # box, class, score in hundredths, which of the objects; nothing below 0.05
    assert first["detections"] == [
        [10, 10, 40, 40, 0, 90, 0],
        [100, 10, 40, 40, 0, 80, -1],
        [100, 10, 40, 40, 1, 70, 1],
        [200, 200, 30, 30, 1, 60, -1],
    ]
    assert second["objects"] == [[10, 10, 40, 40, 0]]  # no crowd
    assert second["detections"] == []


def test_a_picture_is_a_small_jpeg(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("RGB", (2000, 500), (200, 30, 60)).save(path)
    data = np.frombuffer(base64.b64decode(encode(str(path), 10**7)), np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert data[:2].tobytes() == b"\xff\xd8"
    assert image.shape == (SIDE // 4, SIDE, 3)
    np.testing.assert_allclose(image[80, 320], (60, 30, 200), atol=6)


def test_an_image_that_cannot_be_read_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(b"no image")
    with caplog.at_level(logging.WARNING, logger="fsn_d2"):
        assert encode(str(path), 10**7) == ""
    assert "broken.png is not shown" in caplog.text
    Image.new("RGB", (20, 20)).save(path)
    assert encode(str(path), 399) == ""
    assert encode(str(path), 400) != ""
