"""Export of trained models."""

from .torchscript import ExportDifference, compare_export, export_torchscript

__all__ = ["ExportDifference", "compare_export", "export_torchscript"]
