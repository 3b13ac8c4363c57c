"""Export of trained models to TorchScript and ONNX, compared with eager."""

from .comparison import ExportDifference, compare_export
from .metadata import metadata, weights_sha256
from .model_card import model_card
from .onnx import OnnxDetector, export_onnx
from .shipping import FORMATS, ExportedFile, Shipment, export_and_compare, export_files
from .torchscript import export_torchscript

__all__ = [
    "FORMATS",
    "ExportDifference",
    "ExportedFile",
    "OnnxDetector",
    "Shipment",
    "compare_export",
    "export_and_compare",
    "export_files",
    "export_onnx",
    "export_torchscript",
    "metadata",
    "model_card",
    "weights_sha256",
]
