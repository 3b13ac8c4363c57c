"""Which detection found which object, against a literal loop and by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from fsn_d2.report.inputs import Columns, Evaluated
from fsn_d2.report.matching import match


def corners(boxes: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1))


def greedy(evaluated: Evaluated, across_classes: bool) -> list[int]:
    """Detections by score, each takes the free object that it overlaps most, from IoU 0.5 on."""
    truth: Columns = evaluated.annotated
    found: Columns = evaluated.detected
    overlap = box_iou(corners(found.box), corners(truth.box)).numpy()
    taken: set[int] = set()
    result = [-1] * len(evaluated.scores)
    for i in np.argsort(-evaluated.scores, kind="stable"):
        best = 0.5
        for j in range(len(truth.label)):
            same_class = across_classes or truth.label[j] == found.label[i]
            same_image = truth.image[j] == found.image[i]
            if j not in taken and same_class and same_image and overlap[i, j] >= best:
                best, result[i] = overlap[i, j], j
        taken.add(result[i])
    return result


@pytest.mark.parametrize("across_classes", [False, True])
def test_as_a_literal_loop(random_case: Evaluated, across_classes: bool) -> None:
    matches = match(random_case, across_classes=across_classes)
    assert matches.annotation.tolist() == greedy(random_case, across_classes)
    assert matches.counted.all()
    assert 20 < matches.correct.sum() < 40
    assert (matches.correct ^ matches.false).all()


def test_by_hand_within_and_across_classes(by_hand: Evaluated) -> None:
    within = match(by_hand)
    assert within.annotation[:5].tolist() == [0, -1, 1, -1, -1]
    assert within.counted.tolist() == [True] * 5 + [False]  # the last lies in a crowd
    across = match(by_hand, across_classes=True)
    assert across.annotation[:5].tolist() == [0, 1, -1, -1, -1]
    assert across.counted.tolist() == [True] * 5 + [False]


def test_beyond_an_images_hundred_best_nothing_counts(build: Callable[..., Evaluated]) -> None:
    box = [10.0, 10, 40, 40]
    found = [(1, 0, [200.0, 200, 9, 9], 0.9)] * 100 + [(1, 0, box, 0.5), (2, 0, box, 0.5)]
    matches = match(build([(1, 0, box), (2, 0, box)], found))
    assert matches.counted.tolist() == [True] * 100 + [False, True]
    assert matches.correct.sum() == 1


def test_nothing_detected_and_nothing_there(build: Callable[..., Evaluated]) -> None:
    assert match(build([(1, 0, [0.0, 0, 9, 9])], [])).annotation.shape == (0,)
    assert match(build([], [(1, 0, [0.0, 0, 9, 9], 0.5)])).false.tolist() == [True]
