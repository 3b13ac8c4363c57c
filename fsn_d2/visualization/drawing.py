"""Boxes on pictures, by Detectron2's visualizer."""

from __future__ import annotations

import numpy as np
import torch
from detectron2.data import Metadata
from detectron2.structures import Instances
from detectron2.utils.visualizer import Visualizer


def draw_ground_truth(image: np.ndarray, record: dict, metadata: Metadata) -> np.ndarray:
    """Draws a record's annotations on its RGB image, uint8 [H, W, 3]."""
    return Visualizer(image, metadata).draw_dataset_dict(record).get_image()


def draw_detections(
    image: np.ndarray, instances: Instances, metadata: Metadata, min_score: float
) -> np.ndarray:
    """Draws the detections that score at least `min_score` on an RGB image, uint8 [H, W, 3]."""
    shown = instances[instances.scores >= min_score].to(torch.device("cpu"))
    return Visualizer(image, metadata).draw_instance_predictions(shown).get_image()
