"""Export to TorchScript by Detectron2's TracingAdapter."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.export import TracingAdapter
from detectron2.modeling import GeneralizedRCNN
from detectron2.structures import Instances
from torch import Tensor
from torch.jit import ScriptModule


def detect(model: GeneralizedRCNN, inputs: list[dict[str, Tensor]]) -> list[dict[str, Instances]]:
    """What is exported: the detections in one image, in its own pixels, without rescaling."""
    return [{"instances": model.inference(inputs, do_postprocess=False)[0]}]


def export_torchscript(
    cfg: CfgNode, model: GeneralizedRCNN, image: Tensor, path: str | Path
) -> ScriptModule:
    """Traces a model in inference mode and saves it.

    The file takes one image, a float32 Tensor[3, H, W] of any size in the channel order of
    INPUT.FORMAT, values 0..255, and returns boxes [D, 4] (x1, y1, x2, y2 in its pixels), classes
    [D], scores [D] and the image size. It needs two op libraries loaded: torchvision's (NMS) and
    this project's (`fsn_d2.layers.op_library_path()`). It carries the config and the class names
    as extra files "config.yaml" and "classes.json".

    Args:
        cfg: the model's config.
        model: the detector; put into inference mode.
        image: an image to trace with; its size does not limit the export.
        path: where to write the file.

    Returns:
        the exported model, loaded back from the file.
    """
    model.eval()
    adapter = TracingAdapter(model, [{"image": image}], detect)
    adapter.eval()
    with torch.no_grad():
        traced = torch.jit.trace(adapter, (image,), check_trace=False)
    extra = {"config.yaml": cfg.dump(), "classes.json": json.dumps(_class_names(cfg))}
    torch.jit.save(traced, str(path), _extra_files=extra)
    return torch.jit.load(str(path))


def _class_names(cfg: CfgNode) -> list[str]:
    for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        if names := MetadataCatalog.get(name).get("thing_classes"):
            return list(names)
    return list(cfg.DATASETS.CLASSES)
