"""What every format exports: a detector as a function from one image to tensors."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.export import TracingAdapter
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn


def detect(model: Any, inputs: list[dict[str, Tensor]]) -> list[dict[str, Instances]]:
    """What is exported: the detections in one image, in its own pixels, without rescaling.

    Raises:
        ValueError: the architecture gives something else.
    """
    found = model.inference(inputs, do_postprocess=False)[0]
    if not isinstance(found, Instances):
        raise ValueError(
            f"MODEL.META_ARCHITECTURE {type(model).__name__} cannot be exported: expected one that "
            f"gives detections, as GeneralizedRCNN and FSAF do, got a {type(found).__name__}."
        )
    # Boxes end at the border, which dense detectors leave to their postprocessing.
    height, width = found.image_size
    x1, y1, x2, y2 = found.pred_boxes.tensor.unbind(dim=1)
    sides = [x1.clamp(0, width), y1.clamp(0, height), x2.clamp(0, width), y2.clamp(0, height)]
    found.pred_boxes = Boxes(torch.stack(sides, dim=1))
    return [{"instances": found}]


def traceable(model: nn.Module, image: Tensor) -> TracingAdapter:
    """The model in inference mode, from one float32 Tensor[3, H, W] to a tuple of tensors.

    Raises:
        ValueError: the architecture cannot leave its detections in the pixels of its input, or
            wants proposals beside it.
    """
    if getattr(model, "proposal_generator", model) is None:
        raise ValueError(
            "MODEL.PROPOSAL_GENERATOR.NAME is PrecomputedProposals, and an exported model has to "
            "find its own proposals. Export one that was trained with RPN."
        )
    if not hasattr(model, "inference"):
        raise ValueError(
            f"MODEL.META_ARCHITECTURE {type(model).__name__} has no `inference` to export. For "
            "RetinaNet set MODEL.META_ARCHITECTURE to FSAF and MODEL.FSAF.MODE to anchors: the "
            "same model, which takes the same weights."
        )
    model.eval()
    return TracingAdapter(model, [{"image": image}], detect).eval()


@contextmanager
def quiet_tracing() -> Iterator[None]:
    """Without the warnings that every Detectron2 model gives while it is traced.

    It asks traced values for their truth, knowing what that fixes; PyTorch announces that tracing
    will go one day; ONNX has no negative indices, and none are used.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", "Exporting aten::index", UserWarning)
        yield


def output_names(found: Instances) -> list[str]:
    """Names of what an exported model returns, in its order, for detections `found` of the model.

    These are boxes, classes, keypoint_heatmaps, keypoints and masks (if the model has such heads),
    scores and image_size.
    """
    return [*(name.removeprefix("pred_") for name in sorted(found.get_fields())), "image_size"]
