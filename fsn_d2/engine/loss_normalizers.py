"""What dense detectors divide their losses by: a state of the training that is no weight.

Detectron2's `DenseDetector`, of which RetinaNet is one, keeps a moving average of the number of
positive anchors of this process's batches as a plain attribute, which every forward pass in
training mode moves and no `state_dict` holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from torch import nn

__all__ = ["loss_normalizers", "set_loss_normalizers"]


def loss_normalizers(model: nn.Module) -> list[float | None]:
    """The average of each dense detector in the model, in anchors; None where it has none yet."""
    return [getattr(detector, "loss_normalizer", None) for detector in _dense_detectors(model)]


def set_loss_normalizers(model: nn.Module, values: Sequence[float | None]) -> None:
    """Puts back what `loss_normalizers` gave.

    Raises:
        ValueError: the model has another number of dense detectors.
    """
    for detector, value in zip(_dense_detectors(model), values, strict=True):
        vars(detector).pop("loss_normalizer", None)
        if value is not None:
            vars(detector)["loss_normalizer"] = value


def _dense_detectors(model: nn.Module) -> Iterator[nn.Module]:
    return (module for module in model.modules() if isinstance(module, DenseDetector))
