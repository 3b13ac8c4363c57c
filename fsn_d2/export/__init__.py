"""Export of trained models."""

from .comparison import ExportDifference, compare_export, export_and_compare
from .torchscript import export_torchscript

__all__ = ["ExportDifference", "compare_export", "export_and_compare", "export_torchscript"]
