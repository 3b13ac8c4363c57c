"""Right and wrong detections at every score threshold, per class and between classes.

Thresholds are hundredths, from 0.05 to 0.99. A level is a score in hundredths, rounded down, so
that "level >= threshold" on whole numbers is exactly "score >= threshold".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .inputs import Evaluated
from .matching import Matches

__all__ = ["FIRST_LEVEL", "LAST_LEVEL", "Counts", "confusion", "count", "levels_of"]

FIRST_LEVEL = 5  # detections below are not among what the report shows
LAST_LEVEL = 99


@dataclass(frozen=True)
class Counts:
    """What a score threshold leaves; the last row stands for all classes together.

    Attributes:
        boxes: int64 [K + 1], objects to find.
        correct: int64 [K + 1, T], objects that were found, at thresholds 0.05 to 0.99.
        false: int64 [K + 1, T], detections that found no object of their class.
    """

    boxes: np.ndarray
    correct: np.ndarray
    false: np.ndarray

    def f1(self) -> np.ndarray:
        """float64 [K + 1, T]: harmonic mean of precision and recall; 0 where nothing is."""
        wrong_or_missed = self.false + self.boxes[:, None] - self.correct
        return 2 * self.correct / np.maximum(2 * self.correct + wrong_or_missed, 1)

    def best_levels(self) -> np.ndarray:
        """int64 [K + 1]: the threshold in hundredths with the largest F1, the lowest of equals."""
        return self.f1().argmax(axis=1) + FIRST_LEVEL


def levels_of(scores: np.ndarray) -> np.ndarray:
    """Scores, 0 to 1, in hundredths rounded down: int64."""
    return np.searchsorted(np.arange(101) / 100, scores, side="right") - 1


def count(evaluated: Evaluated, matches: Matches) -> Counts:
    """Counts per class and threshold.

    Args:
        evaluated: ground truth and detections.
        matches: within classes.
    """
    classes = len(evaluated.classes)
    boxes = np.bincount(evaluated.annotated.label[~evaluated.crowd], minlength=classes)
    tables = [
        _at_thresholds(evaluated.detected.label[chosen], evaluated.scores[chosen], classes)
        for chosen in (matches.correct, matches.false)
    ]
    return Counts(_with_total(boxes), *map(_with_total, tables))


def confusion(evaluated: Evaluated, matches: Matches) -> np.ndarray:
    """Detections by what lay there, what was said and at which score.

    Args:
        evaluated: ground truth and detections.
        matches: across classes.

    Returns:
        int64 [N, 4] of (true class, detected class, level, how many), levels from 5 to 99; true
        class K is background. Crowds are left out.
    """
    levels = np.minimum(levels_of(evaluated.scores), LAST_LEVEL)
    chosen = matches.counted & (levels >= FIRST_LEVEL)
    # The last entry is where -1, no object, points to.
    labels = np.append(evaluated.annotated.label, len(evaluated.classes))
    rows = np.stack([labels[matches.annotation], evaluated.detected.label, levels], axis=1)[chosen]
    unique, numbers = np.unique(rows, axis=0, return_counts=True)
    return np.concatenate([unique.reshape(-1, 3), numbers[:, None]], axis=1)


def _at_thresholds(labels: np.ndarray, scores: np.ndarray, classes: int) -> np.ndarray:
    """int64 [classes, T]: how many score at least the threshold."""
    histogram = np.zeros((classes, LAST_LEVEL + 1), np.int64)
    np.add.at(histogram, (labels, np.minimum(levels_of(scores), LAST_LEVEL)), 1)
    return histogram[:, ::-1].cumsum(axis=1)[:, ::-1][:, FIRST_LEVEL:]


def _with_total(table: np.ndarray) -> np.ndarray:
    return np.concatenate([table, table.sum(axis=0, keepdims=True)])
