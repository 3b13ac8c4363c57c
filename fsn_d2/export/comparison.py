"""Whether an exported model detects what the eager one does."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.modeling import GeneralizedRCNN, build_model
from torch import Tensor
from torch.jit import ScriptModule

from ..data import TolerantMapper
from ..engine import load_weights
from .torchscript import detect, export_torchscript


@dataclass
class ExportDifference:
    """How far an exported model is from the eager one, at worst over some images.

    Attributes:
        images: compared.
        detections: of the eager model, in all.
        counts_differ: images on which the numbers of detections differ.
        boxes: largest difference of a coordinate, in pixels.
        scores: largest difference of a score.
        classes: detections whose class differs.
    """

    images: int = 0
    detections: int = 0
    counts_differ: int = 0
    boxes: float = 0.0
    scores: float = 0.0
    classes: int = 0

    def within(self, boxes: float = 0.01, scores: float = 1e-4) -> bool:
        """Whether the models agree: same detections, boxes and scores within these bounds."""
        same = self.counts_differ == 0 and self.classes == 0
        return same and self.boxes <= boxes and self.scores <= scores


@torch.no_grad()
def compare_export(
    model: GeneralizedRCNN, exported: ScriptModule, images: Iterable[Tensor]
) -> ExportDifference:
    """Runs both models on each image, a float32 Tensor[3, H, W], and measures the difference."""
    model.eval()
    worst = ExportDifference()
    for image in images:
        eager = detect(model, [{"image": image}])[0]["instances"]
        boxes, classes, scores = exported(image)[:3]
        worst.images += 1
        worst.detections += len(eager)
        if len(eager) != len(scores):
            worst.counts_differ += 1
        elif len(eager):
            worst.boxes = max(worst.boxes, float((eager.pred_boxes.tensor - boxes).abs().max()))
            worst.scores = max(worst.scores, float((eager.scores - scores).abs().max()))
            worst.classes += int((eager.pred_classes != classes).sum())
    return worst


def export_and_compare(cfg: CfgNode, path: str | Path, num_images: int = 20) -> ExportDifference:
    """Exports the model of MODEL.WEIGHTS and compares it with eager on images of the test set.

    Args:
        cfg: the config; the first of DATASETS.TEST is registered.
        path: TorchScript file to write.
        num_images: images to compare on, the first of the set.

    Raises:
        FileNotFoundError: no weights, or no images.
    """
    model = build_model(cfg)
    load_weights(model, cfg.MODEL.WEIGHTS)
    images = _test_images(cfg, num_images)
    return compare_export(model, export_torchscript(cfg, model, images[0], path), images)


def _test_images(cfg: CfgNode, count: int) -> list[Tensor]:
    mapper = TolerantMapper(cfg, is_train=False)
    samples = (mapper(record) for record in DatasetCatalog.get(cfg.DATASETS.TEST[0])[:count])
    images = [sample["image"].float() for sample in samples if sample is not None]
    if not images:
        raise FileNotFoundError(f"DATASETS.TEST: {cfg.DATASETS.TEST[0]!r} holds no images to trace")
    return images
