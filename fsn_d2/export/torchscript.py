"""Export to TorchScript by Detectron2's TracingAdapter, and a check of the exported file."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.export import TracingAdapter
from detectron2.structures import Instances
from torch import Tensor, nn
from torch.jit import ScriptModule

# What the exported file returns, in this order; Detectron2's TracingAdapter sorts by name.
OUTPUTS = ("pred_boxes", "pred_classes", "scores", "image_size")


def _inference(model: nn.Module, inputs: list[dict[str, Tensor]]) -> list[dict[str, Instances]]:
    # Without postprocessing: the caller of an exported model knows the size it wants boxes for.
    return [{"instances": model.inference(inputs, do_postprocess=False)[0]}]


def export_torchscript(
    cfg: CfgNode, model: nn.Module, image: Tensor, path: str | Path
) -> ScriptModule:
    """Traces a model in inference mode and saves it.

    The file takes one image, a float32 Tensor[3, H, W] of any size in the channel order of
    INPUT.FORMAT, values 0..255, and returns boxes [D, 4] (x1, y1, x2, y2 in its pixels), classes
    [D], scores [D] and the image size. It needs two op libraries loaded: torchvision's (NMS) and
    this project's (`fsn_d2.layers.op_library_path()`). It carries the config and the class names
    as extra files "config.yaml" and "classes.json".

    Args:
        cfg: the model's config.
        model: a detector of Detectron2's.
        image: an image to trace with; its size does not limit the export.
        path: where to write the file.

    Returns:
        the exported model, loaded back from the file.
    """
    model.eval()
    adapter = TracingAdapter(model, [{"image": image}], _inference)
    adapter.eval()
    with torch.no_grad():
        traced = torch.jit.trace(adapter, (image,), check_trace=False)
    extra = {"config.yaml": cfg.dump(), "classes.json": json.dumps(_class_names(cfg))}
    torch.jit.save(traced, str(path), _extra_files=extra)
    return torch.jit.load(str(path))


def _class_names(cfg: CfgNode) -> list[str]:
    from detectron2.data import MetadataCatalog

    for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        if names := MetadataCatalog.get(name).get("thing_classes"):
            return list(names)
    return list(cfg.DATASETS.CLASSES)


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
    model: nn.Module, exported: ScriptModule, images: Iterable[Tensor]
) -> ExportDifference:
    """Runs both models on each image, a float32 Tensor[3, H, W], and measures the difference."""
    model.eval()
    worst = ExportDifference()
    for image in images:
        eager = _inference(model, [{"image": image}])[0]["instances"]
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
