"""Detectron2's predictor for single images, with weights that may come from anywhere."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.engine import DefaultPredictor

from .weights import load_weights

__all__ = ["Predictor"]


class Predictor(DefaultPredictor):
    """`DefaultPredictor`, whose own way to load MODEL.WEIGHTS would run code of a ``.pkl``.

    Takes a uint8 array [H, W, 3] in BGR order, gives the detections in its pixels.

    Raises:
        FileNotFoundError, ValueError: as `load_weights`.
    """

    def __init__(self, cfg: CfgNode) -> None:
        without_weights = cfg.clone()
        without_weights.defrost()
        without_weights.MODEL.WEIGHTS = ""
        super().__init__(without_weights)
        load_weights(self.model, cfg.MODEL.WEIGHTS)
