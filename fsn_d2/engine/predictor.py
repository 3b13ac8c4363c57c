"""Detectron2's predictor for single images of any shape, with weights from anywhere."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.engine import DefaultPredictor
from numpy import ndarray

from .memory import limit_convolution_caches
from .weights import load_weights, without_start_weights

__all__ = ["Predictor"]


class _Resize(T.ResizeShortestEdge):
    """Leaves a pixel of the short side where the long one is thousands of times as long."""

    def get_transform(self, image: ndarray) -> T.Transform:
        transform = super().get_transform(image)
        if isinstance(transform, T.ResizeTransform):
            transform.new_h, transform.new_w = max(transform.new_h, 1), max(transform.new_w, 1)
        return transform


class Predictor(DefaultPredictor):
    """`DefaultPredictor`, whose own way to load MODEL.WEIGHTS would run code of a ``.pkl``.

    Takes a uint8 array [H, W, 3] in BGR order, gives the detections in its pixels.

    Args:
        cfg: of the model; MODEL.WEIGHTS, INPUT and the metadata of DATASETS.TEST are read.

    Raises:
        FileNotFoundError, ValueError: as `load_weights`.
    """

    def __init__(self, cfg: CfgNode) -> None:
        limit_convolution_caches()
        super().__init__(without_start_weights(cfg) if cfg.MODEL.WEIGHTS else cfg)
        self.aug = _Resize([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
        load_weights(self.model, cfg.MODEL.WEIGHTS)
