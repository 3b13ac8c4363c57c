"""Export to ONNX, in standard operators alone, and the exported file under onnxruntime.

The exporter is PyTorch's TorchScript-based one (`torch.onnx.export` with `dynamo=False`): it traces
Detectron2 as it is. The newer one rests on `torch.export`, which stops at Detectron2's padding and
filtering, whose sizes depend on values.
"""

from __future__ import annotations

import importlib
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from ..layers.composed import StockOps
from .metadata import metadata
from .tracing import detect, output_names, quiet_tracing, traceable

OPSET = 16  # the first whose RoiAlign has Detectron2's half-pixel convention


def export_onnx(cfg: CfgNode, model: nn.Module, image: Tensor, path: str | Path) -> OnnxDetector:
    """Writes a model in inference mode as an ONNX file of opset 16 without custom operators.

    Input "image" and the outputs "boxes", "classes", "masks" (if the model has them), "scores" and
    "image_size" are those of `export_torchscript`, and so is the metadata, here in the model's
    metadata_props. This project's ops become RoiAlign, or MaxRoiPool, one per bank and pyramid
    level; NMS becomes NonMaxSuppression.

    Args:
        cfg: the model's config.
        model: the detector; put into inference mode.
        image: an image to trace with; its size does not limit the export.
        path: where to write the file.

    Returns:
        the exported model, loaded back from the file.

    Raises:
        ImportError: onnx or onnxruntime is missing.
        ValueError: the architecture cannot be exported, or holds an operator that ONNX lacks.
    """
    onnx, _ = _require("onnx"), _require("onnxruntime")  # both before the work
    _trace(model, image, str(path))
    proto = onnx.load_model(str(path))
    onnx.helper.set_model_props(proto, metadata(cfg, model))
    onnx.checker.check_model(proto)
    onnx.save_model(proto, str(path))
    return OnnxDetector(path)


class OnnxDetector:
    """An exported file in onnxruntime on the CPU, with as many threads as PyTorch has."""

    def __init__(self, path: str | Path) -> None:
        """
        Args:
            path: of the .onnx file.

        Raises:
            ImportError: onnxruntime is missing.
        """
        runtime = _require("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = runtime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )

    @property
    def metadata(self) -> dict[str, str]:
        """As it was written, see `fsn_d2.export.metadata`."""
        return self.session.get_modelmeta().custom_metadata_map

    def __call__(self, image: Tensor) -> tuple[Tensor, ...]:
        """The file's outputs, in their order, for a float32 Tensor[3, H, W]."""
        outputs = self.session.run(None, {"image": image.cpu().numpy()})
        return tuple(torch.from_numpy(output) for output in outputs)


def _trace(model: nn.Module, image: Tensor, path: str) -> None:
    adapter = traceable(model, image)
    with torch.no_grad(), quiet_tracing():
        names = output_names(detect(model, [{"image": image}])[0]["instances"])
        sizes = {name: {0: "detections"} for name in names if name != "image_size"}
        try:
            # Before it raises, the exporter prints the whole graph.
            with StockOps(), redirect_stdout(None):
                torch.onnx.export(
                    adapter,
                    (image,),
                    path,
                    dynamo=False,
                    opset_version=OPSET,
                    input_names=["image"],
                    output_names=names,
                    dynamic_axes={"image": {1: "height", 2: "width"}, **sizes},
                )
        except (
            torch.onnx.errors.UnsupportedOperatorError,
            torch.onnx.errors.SymbolicValueError,
        ) as error:
            reason = str(error).partition("[Caused by")[0].strip()  # a part of the graph follows
            raise ValueError(
                f"This model holds an operator that ONNX opset {OPSET} lacks ({reason}); export it "
                "to TorchScript."
            ) from error


def _require(package: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"export to ONNX needs {package}, which cannot be imported ({error}): "
            "pip install onnx onnxruntime, or the extra `export` of fsn_d2"
        ) from error
