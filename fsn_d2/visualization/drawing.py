"""Boxes on pictures, by Detectron2's visualizer."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from detectron2.data import Metadata
from detectron2.structures import Instances
from detectron2.utils.visualizer import Visualizer
from matplotlib import rc_context


def draw_ground_truth(image: np.ndarray, record: dict, metadata: Metadata) -> np.ndarray:
    """Draws a record's annotations.

    Args:
        image: RGB, uint8 [H, W, 3], of the size that the boxes are in.
        record: a data set's dict of this image.
        metadata: of the set, for the classes' names.

    Returns:
        RGB, uint8 [H, W, 3], a copy.
    """
    record = {**record, "annotations": _alike(record.get("annotations", []))}
    with plain_text():
        return Visualizer(image, metadata).draw_dataset_dict(record).get_image()


def draw_detections(
    image: np.ndarray, instances: Instances, metadata: Metadata, min_score: float
) -> np.ndarray:
    """Draws detections.

    Args:
        image: RGB, uint8 [H, W, 3].
        instances: detections in this image's pixels, on any device.
        metadata: of the data set, for the classes' names.
        min_score: 0..1; detections that score less are left out.

    Returns:
        RGB, uint8 [H, W, 3], a copy.
    """
    shown = instances[instances.scores >= min_score].to(torch.device("cpu"))
    with plain_text():
        return Visualizer(image, metadata).draw_instance_predictions(shown).get_image()


def plain_text() -> AbstractContextManager[None]:
    """A context in which matplotlib draws names as they are, and no "$" makes them formulas."""
    return rc_context({"text.parse_math": False})


def _alike(annotations: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without what only some of them have, for the visualizer takes all to be as the first."""
    shared = set.intersection(*map(set, annotations)) if annotations else set()
    return [{key: value for key, value in each.items() if key in shared} for each in annotations]
