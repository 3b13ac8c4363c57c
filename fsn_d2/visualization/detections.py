"""A sheet of detections beside the ground truth."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..data.mapper import read_image
from ..engine.predictor import Predictor
from .drawing import draw_detections, draw_ground_truth
from .writing import write_image


def _caption(image: np.ndarray, text: str) -> np.ndarray:
    bar = np.full((22, image.shape[1], 3), 255, np.uint8)
    cv2.putText(bar, text, (6, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack([bar, image])


def save_detection_sheet(
    cfg: CfgNode, dataset: str, path: str | Path, *, images: int = 6, min_score: float = 0.5
) -> None:
    """Saves a sheet of test images, ground truth on the left and detections on the right.

    Args:
        cfg: a config whose MODEL.WEIGHTS is trained.
        dataset: name of a registered set; every n-th image is taken, so the sheet spans it.
        path: PNG or JPEG to write.
        images: rows of the sheet.
        min_score: detections below this are not drawn.

    Raises:
        FileNotFoundError, ValueError: the weights are missing, broken or refused.
    """
    predictor = Predictor(cfg)
    metadata = MetadataCatalog.get(dataset)
    records = DatasetCatalog.get(dataset)
    rows = []
    for record in records[:: max(1, len(records) // images)][:images]:
        rgb = read_image(record["file_name"], "RGB", cfg.INPUT.MAX_PIXELS)
        instances = predictor(rgb[:, :, ::-1])["instances"]
        pair = [
            _caption(draw_ground_truth(rgb, record, metadata), "ground truth"),
            _caption(
                draw_detections(rgb, instances, metadata, min_score),
                f"detections, score >= {min_score}",
            ),
        ]
        rows.append(np.hstack(pair))
    width = max(row.shape[1] for row in rows)
    rows = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in rows]
    write_image(path, np.vstack(rows)[:, :, ::-1])
