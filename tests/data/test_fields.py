"""Fields beside the box, against pycocotools where it has an opinion."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pycocotools import mask as mask_util

from fsn_d2.data.fields import AREA, KEYPOINTS, MASK, _run_lengths, repair_fields

WIDTH, HEIGHT = 40, 30
NAN = float("nan")


def annotation(**fields: Any) -> dict[str, Any]:
    return {"bbox": [2, 3, 10, 8], "image_id": 1, "category_id": 1, **fields}


def compressed() -> dict[str, Any]:
    pixels = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    pixels[3:11, 2:12] = 1
    rle = mask_util.encode(pixels)
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def test_missing_fields_are_filled_in_without_a_finding() -> None:
    new, findings = repair_fields(annotation(), WIDTH, HEIGHT)
    assert (new["area"], new["iscrowd"], findings) == (80, 0, [])


@pytest.mark.parametrize("area", [None, "80", NAN, float("inf"), -1, 0, 1e12, [], True, 10**400])
def test_an_area_that_is_none_is_the_boxs(area: Any) -> None:
    new, findings = repair_fields(annotation(area=area), WIDTH, HEIGHT)
    assert (new["area"], findings) == (80, [AREA])


@pytest.mark.parametrize("crowd, value", [(None, 0), (True, 1), (1.0, 1), (0, 0)])
def test_crowd_is_a_whole_number(crowd: Any, value: int) -> None:
    new, findings = repair_fields(annotation(iscrowd=crowd), WIDTH, HEIGHT)
    assert type(new["iscrowd"]) is int and new["iscrowd"] == value
    assert not findings


@pytest.mark.parametrize("ignore, kept", [(None, False), ("", False), (0, True), (False, True)])
def test_an_ignore_that_detectron2_would_stop_at_goes(ignore: Any, kept: bool) -> None:
    new, _ = repair_fields(annotation(ignore=ignore), WIDTH, HEIGHT)
    assert ("ignore" in new) == kept


TRIANGLE = [1, 1, 9, 1, 9, 9]
SOUND = [
    [TRIANGLE],
    [TRIANGLE, [1.5, 2, 3, 4, 5, 6, 7, 8]],
    {"size": [HEIGHT, WIDTH], "counts": [600, 100, 500]},
    compressed(),
]


@pytest.mark.parametrize("mask", SOUND)
def test_a_sound_mask_stays(mask: Any) -> None:
    new, findings = repair_fields(annotation(segmentation=mask), WIDTH, HEIGHT)
    assert new["segmentation"] == mask and not findings


@pytest.mark.parametrize("seed", range(20))
def test_run_lengths_equal_pycocotools(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 300, 2)
    pixels = rng.random((height, width)) < rng.choice([0.001, 0.5, 0.99])
    packed = mask_util.encode(np.asfortranarray(pixels, dtype=np.uint8))["counts"].decode()
    flat = pixels.T.ravel()
    edges = np.flatnonzero(np.diff(flat, prepend=False)).tolist()  # runs begin with background
    assert _run_lengths(packed) == np.diff([0, *edges, len(flat)]).tolist()
    assert _run_lengths(packed + "P") is None  # a bit that promises more
    assert _run_lengths(packed + "~") is None


MALFORMED = [
    [TRIANGLE[:5]],
    [TRIANGLE[:4]],
    TRIANGLE,
    "abc",
    12,
    True,
    [None],
    [[1, 1, 9, 1, 9, "9"]],
    [[1, 1, 9, 1, 9, NAN]],
    {"size": [HEIGHT, WIDTH]},
    {"size": [HEIGHT, WIDTH], "counts": ""},
    {"size": [HEIGHT, WIDTH], "counts": "zzzz"},
    {"size": [HEIGHT, WIDTH], "counts": [[1]]},
    {"size": [HEIGHT, WIDTH], "counts": [1, 2]},
    {"size": [HEIGHT, WIDTH], "counts": [-1, 1201]},
    {"size": [WIDTH, HEIGHT], "counts": [1200]},
    {"counts": [1200]},
]


@pytest.mark.parametrize("mask", MALFORMED)
def test_a_malformed_mask_goes_and_the_box_stays(mask: Any) -> None:
    new, findings = repair_fields(annotation(segmentation=mask), WIDTH, HEIGHT)
    assert "segmentation" not in new and new["bbox"] == [2, 3, 10, 8]
    assert findings == [MASK]


def test_of_several_polygons_the_sound_ones_stay() -> None:
    new, findings = repair_fields(annotation(segmentation=[[1], TRIANGLE, []]), WIDTH, HEIGHT)
    assert new["segmentation"] == [TRIANGLE]
    assert findings == [MASK]


@pytest.mark.parametrize("mask", [None, [], "", {}, 0])
def test_no_mask_is_no_finding(mask: Any) -> None:
    new, findings = repair_fields(annotation(segmentation=mask), WIDTH, HEIGHT)
    assert not new["segmentation"] and not findings


POINTS = [([1, 2, 2], True), ([], True), ([1, 2], False), ("ab", False), ([1, None, 2], False)]


@pytest.mark.parametrize("points, sound", [*POINTS, (None, False)])
def test_keypoints(points: Any, sound: bool) -> None:
    new, findings = repair_fields(annotation(keypoints=points), WIDTH, HEIGHT)
    assert ("keypoints" in new) == sound
    assert findings == ([] if sound else [KEYPOINTS])
