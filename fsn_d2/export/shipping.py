"""From a trained checkpoint to the files that are handed on: written, compared with eager on images
of the test set, and measured side by side.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from torch import Tensor, nn

from ..data import TolerantMapper
from ..engine import load_weights
from ..evaluation import first_test_set
from .comparison import ExportDifference, compare_export
from .metadata import metadata
from .onnx import export_onnx
from .torchscript import export_torchscript
from .tracing import detect


class Format(NamedTuple):
    """A way to write a model.

    Attributes:
        suffix: of its files.
        export: from config, model, image to trace with, and path; returns the exported model.
    """

    suffix: str
    export: Callable[[CfgNode, nn.Module, Tensor, Path], Callable[[Tensor], Sequence[Tensor]]]


FORMATS = {
    "torchscript": Format(".ts", export_torchscript),
    "onnx": Format(".onnx", export_onnx),
}
"""Name of a format -> suffix of its files, and the function that exports to it."""


@dataclass
class ExportedFile:
    """A file, and how the model in it compares with the eager one.

    Attributes:
        format: one of `FORMATS`.
        path: where it is.
        difference: of its detections.
        seconds: per image, the median.
    """

    format: str
    path: Path
    difference: ExportDifference
    seconds: float

    @property
    def megabytes(self) -> float:
        return self.path.stat().st_size / 1e6

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.path.read_bytes()).hexdigest()


@dataclass
class Shipment:
    """What one checkpoint became.

    Attributes:
        files: one per format.
        eager_seconds: per image of the eager model, the median, measured in turn with the files.
        metadata: what the files carry.
    """

    files: list[ExportedFile]
    eager_seconds: float
    metadata: dict[str, str]

    def table(self) -> str:
        """Formats side by side, in Markdown."""
        rows: list[tuple[str, ...]] = [
            ("", "MB", "s / image", "boxes, px", "scores", "images that differ in number")
        ]
        rows.append(("---",) * len(rows[0]))
        rows.append(("eager", "", f"{self.eager_seconds:.3f}", "", "", ""))
        rows += [_row(file) for file in self.files]
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(file: ExportedFile) -> tuple[str, ...]:
    apart = file.difference
    sizes = f"{file.megabytes:.1f}", f"{file.seconds:.3f}"
    counts = f"{apart.counts_differ} of {apart.images}"
    return (
        f"{file.format}: {file.path.name}",
        *sizes,
        f"{apart.boxes:.1g}",
        f"{apart.scores:.1g}",
        counts,
    )


def export_files(cfg: CfgNode, paths: dict[str, Path], num_images: int = 20) -> Shipment:
    """Exports the model of MODEL.WEIGHTS, and compares every file with eager on the test set.

    Args:
        cfg: the config; the first of DATASETS.TEST is registered.
        paths: format, one of `FORMATS`, -> file to write; folders are made.
        num_images: images to compare and to measure on, the first of the set.

    Raises:
        FileNotFoundError: no weights, or no images.
        ImportError, ValueError: as the formats' export functions; or no test set, or no image of
            it asked for.
    """
    model, images = _model_and_images(cfg, num_images)
    for path in paths.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    exported = {
        name: FORMATS[name].export(cfg, model, images[0], path) for name, path in paths.items()
    }
    differences = {name: compare_export(model, run, images) for name, run in exported.items()}
    eager = {"eager": lambda image: detect(model, [{"image": image}])}
    seconds = _seconds_per_image({**eager, **exported}, images)
    return Shipment(
        [
            ExportedFile(name, path, differences[name], seconds[name])
            for name, path in paths.items()
        ],
        seconds["eager"],
        metadata(cfg, model),
    )


def export_and_compare(cfg: CfgNode, path: str | Path, num_images: int = 20) -> ExportDifference:
    """As `export_files`, to TorchScript alone and without measuring.

    Args:
        cfg: the config; the first of DATASETS.TEST is registered.
        path: file to write.
        num_images: images to compare on, the first of the set.

    Returns:
        how far it is from eager.

    Raises:
        FileNotFoundError, ImportError, ValueError: as `export_files`.
    """
    model, images = _model_and_images(cfg, num_images)
    return compare_export(model, export_torchscript(cfg, model, images[0], path), images)


def _model_and_images(cfg: CfgNode, count: int) -> tuple[nn.Module, list[Tensor]]:
    dataset = first_test_set(cfg)
    if count < 1:
        raise ValueError(f"--images: expected 1 or more to trace and compare on, got {count}.")
    model = build_model(cfg)
    load_weights(model, cfg.MODEL.WEIGHTS)
    mapper = TolerantMapper(cfg, is_train=False)
    images = [mapper(record)["image"].float() for record in DatasetCatalog.get(dataset)[:count]]
    if not images:
        raise FileNotFoundError(f"DATASETS.TEST: {dataset!r} holds no images to trace")
    return model.eval(), images


@torch.no_grad()
def _seconds_per_image(
    runs: dict[str, Callable[[Tensor], object]], images: list[Tensor]
) -> dict[str, float]:
    """Medians. The runs take turns, so that what else the machine does meets all of them."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for image in images:
        for name, run in runs.items():
            start = time.perf_counter()
            run(image)
            times[name].append(time.perf_counter() - start)
    return {name: median(taken) for name, taken in times.items()}
