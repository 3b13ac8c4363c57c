"""Which detection found which object, at IoU 0.5, by COCO's own matching.

In an image detections take their turns by score, and each takes the free object that it overlaps
most. So what is matched among the detections above a score does not depend on those below it, and
one matching serves every score threshold.
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass

import numpy as np
from pycocotools.cocoeval import COCOeval

from ..evaluation.slices import ALL
from .inputs import Evaluated, as_coco

__all__ = ["IOU", "Matches", "match"]

IOU = 0.5
MAX_DETECTIONS = 100  # per image, and per class when classes are matched apart; COCO's limit


@dataclass(frozen=True)
class Matches:
    """Arrays over the detections.

    Attributes:
        annotation: int64 [N], index of the object that was found, -1 for none.
        counted: bool [N]; False where COCO ignores the detection: it lies on a crowd, or is not
            among an image's 100 best.
    """

    annotation: np.ndarray
    counted: np.ndarray

    @property
    def correct(self) -> np.ndarray:
        """bool [N]: counted and matched."""
        return self.counted & (self.annotation >= 0)

    @property
    def false(self) -> np.ndarray:
        """bool [N]: counted and not matched."""
        return self.counted & (self.annotation < 0)


def match(evaluated: Evaluated, *, across_classes: bool = False) -> Matches:
    """Matches detections with objects of their own class, or of any class.

    Args:
        evaluated: ground truth and detections.
        across_classes: a detection may take an object of another class, which is then confused.
    """
    evaluation = _evaluate(evaluated, across_classes)
    count = len(evaluated.detections)
    annotation, counted = np.full(count, -1, np.int64), np.zeros(count, bool)
    for result in filter(None, evaluation.evalImgs):
        places = np.array(result["dtIds"], np.int64) - 1
        annotation[places] = result["dtMatches"][0].astype(np.int64) - 1
        counted[places] = ~result["dtIgnore"][0].astype(bool)
    return Matches(annotation, counted)


def _evaluate(evaluated: Evaluated, across_classes: bool) -> COCOeval:
    found = [{**d, "area": d["bbox"][2] * d["bbox"][3], "iscrowd": 0} for d in evaluated.detections]
    with contextlib.redirect_stdout(io.StringIO()):
        detections = as_coco(evaluated.truth.dataset, found)
        evaluation = COCOeval(evaluated.truth, detections, "bbox")
        evaluation.params.iouThrs = np.array([IOU])
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [list(ALL)], ["all"]
        evaluation.params.maxDets = [MAX_DETECTIONS]
        evaluation.params.useCats = not across_classes
        evaluation.evaluate()
    return evaluation
