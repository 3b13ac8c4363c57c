"""Export to TorchScript by Detectron2's TracingAdapter."""

from __future__ import annotations

from pathlib import Path

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn
from torch.jit import ScriptModule

from .metadata import metadata
from .tracing import quiet_tracing, traceable


def export_torchscript(
    cfg: CfgNode, model: nn.Module, image: Tensor, path: str | Path
) -> ScriptModule:
    """Traces a model in inference mode and saves it.

    The file takes one image, a float32 Tensor[3, H, W] of any size in the channel order of
    INPUT.FORMAT, values 0..255, and returns boxes [D, 4] (x1, y1, x2, y2 in its pixels), classes
    [D], what heads for keypoints and masks find, scores [D] and the image size, as docs/export.md
    lists them. It needs two op libraries loaded: torchvision's (NMS) and this project's
    (`fsn_d2.layers.op_library_path()`). It carries the `metadata` as extra files.

    Args:
        cfg: the model's config.
        model: the detector; put into inference mode.
        image: an image to trace with; its size does not limit the export.
        path: where to write the file.

    Returns:
        the exported model, loaded back from the file.

    Raises:
        ValueError: the architecture cannot be exported.
    """
    adapter = traceable(model, image)
    with torch.no_grad(), quiet_tracing():
        traced = torch.jit.trace(adapter, (image,), check_trace=False)
    torch.jit.save(traced, str(path), _extra_files=metadata(cfg, model))
    return torch.jit.load(str(path))
