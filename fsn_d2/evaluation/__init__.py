"""Evaluation: which of Detectron2's evaluators serves a data set."""

from __future__ import annotations

import os
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, PascalVOCDetectionEvaluator

from ..data.datasets import safe_name
from .slices import average_precisions, fewest_objects


def first_test_set(cfg: CfgNode) -> str:
    """The first of DATASETS.TEST, for what looks at one set alone.

    Args:
        cfg: reads DATASETS.TEST.

    Raises:
        ValueError: there is none.
    """
    if not cfg.DATASETS.TEST:
        raise ValueError(
            "DATASETS.TEST is empty, and a set is needed here: name one, as "
            "DATASETS.TEST \"('coco://annotations.json:images',)\"."
        )
    return cfg.DATASETS.TEST[0]


def evaluation_folder(cfg: CfgNode, dataset: str, kind: str = "inference") -> str:
    """Where an evaluation writes its detections: a folder each, where there are several sets.

    Args:
        cfg: reads OUTPUT_DIR and DATASETS.TEST.
        dataset: one of DATASETS.TEST.
        kind: "inference", or "inference_TTA" with test-time augmentation.
    """
    folder = os.path.join(cfg.OUTPUT_DIR, kind)
    return os.path.join(folder, safe_name(dataset)) if len(cfg.DATASETS.TEST) > 1 else folder


def evaluator_kind(dataset: str) -> str:
    """Which evaluator a registered data set asks for: "coco" or "pascal_voc".

    Args:
        dataset: its name in Detectron2's catalogs.

    Raises:
        ValueError: the set's metadata name an evaluator this project does not use.
    """
    kind = MetadataCatalog.get(dataset).get("evaluator_type", "coco")
    if kind in ("coco", "pascal_voc"):
        return kind
    raise ValueError(
        f"data set {dataset!r} asks for the evaluator {kind!r}; 'coco' and 'pascal_voc' are known. "
        "Set MetadataCatalog.get(name).evaluator_type, or override Trainer.build_evaluator."
    )


def build_evaluator(
    dataset: str, output_dir: str, keypoint_sigmas: Sequence[float] = ()
) -> DatasetEvaluator:
    """Builds the evaluator for a registered data set.

    Args:
        dataset: its name in Detectron2's catalogs.
        output_dir: where the detections are written.
        keypoint_sigmas: one per keypoint (TEST.KEYPOINT_OKS_SIGMAS); empty: COCO's 17.

    Raises:
        ValueError: as `evaluator_kind`.
    """
    if evaluator_kind(dataset) == "coco":
        return COCOEvaluator(dataset, output_dir=output_dir, kpt_oks_sigmas=keypoint_sigmas)
    return PascalVOCDetectionEvaluator(dataset)


__all__ = [
    "average_precisions",
    "build_evaluator",
    "evaluation_folder",
    "evaluator_kind",
    "fewest_objects",
    "first_test_set",
]
