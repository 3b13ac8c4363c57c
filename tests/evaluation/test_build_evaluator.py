"""The evaluator that a data set gets, and that it measures what it should."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, PascalVOCDetectionEvaluator
from detectron2.structures import Boxes, BoxMode, Instances

from fsn_d2.engine import setup
from fsn_d2.evaluation import build_evaluator


def as_detections(record: dict, *, shift: float) -> Instances:
    found = Instances((record["height"], record["width"]))
    objects = record["annotations"]
    boxes = [BoxMode.convert(o["bbox"], o["bbox_mode"], BoxMode.XYXY_ABS) for o in objects]
    found.pred_boxes = Boxes(torch.tensor(boxes) + shift)
    found.pred_classes = torch.tensor([o["category_id"] for o in objects])
    found.scores = torch.ones(len(objects))
    return found


# Boxes are 16 to 39 pixels wide: moved by 60, no detection meets its object.
@pytest.mark.parametrize(("shift", "ap"), [(0.0, 100.0), (60.0, 0.0)])
def test_detections_of_the_ground_truth_have_full_ap(
    shift: float, ap: float, tiny_args: Callable[..., Namespace], tmp_path: Path
) -> None:
    (name,) = setup(tiny_args("fsn_R50.yaml", small=True)).DATASETS.TEST
    evaluator = build_evaluator(name, str(tmp_path))
    evaluator.reset()
    for record in DatasetCatalog.get(name):
        evaluator.process([record], [{"instances": as_detections(record, shift=shift)}])
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(ap, abs=0.01)


def test_a_voc_set_of_detectron2s_own_gets_its_evaluator(tmp_path: Path) -> None:
    assert isinstance(build_evaluator("voc_2007_test", str(tmp_path)), PascalVOCDetectionEvaluator)
    assert not isinstance(build_evaluator("voc_2007_test", str(tmp_path)), COCOEvaluator)


def test_another_kind_of_evaluator_is_refused_by_name(tmp_path: Path) -> None:
    MetadataCatalog.get("set_of_this_test").evaluator_type = "lvis"
    try:
        with pytest.raises(ValueError, match=r"set_of_this_test.*'lvis'"):
            build_evaluator("set_of_this_test", str(tmp_path))
    finally:
        MetadataCatalog.remove("set_of_this_test")
