"""A picture of which pyramid level each object learns on, beside the one its size would choose."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.data.detection_utils import build_augmentation, convert_image_to_rgb
from detectron2.modeling import build_model
from torch import Tensor

from ..data import TolerantMapper
from ..engine.weights import load_weights
from ..modeling.fsaf import levels_by_size
from ..modeling.meta_arch import FSAF
from .writing import write_image

# RGB per level from fine to coarse, told apart with the usual colour blindnesses (Okabe, Ito).
COLORS = [(86, 180, 233), (0, 158, 115), (240, 228, 66), (230, 159, 0), (213, 94, 0)]
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def draw_levels(
    image: np.ndarray, boxes: np.ndarray, levels: list[int], names: list[str], title: str
) -> np.ndarray:
    """Draws each box in the colour of its level, below a line of title and level names.

    Args:
        image: RGB, uint8 [H, W, 3].
        boxes: [M, 4] of (x1, y1, x2, y2), pixels of the image.
        levels: M indices into `names`.
        names: of the levels, from fine to coarse.
        title: text of the line.
    """
    drawn = image.copy()
    for (x1, y1, x2, y2), level in zip(np.rint(boxes).astype(int).tolist(), levels, strict=True):
        color = COLORS[level % len(COLORS)]
        cv2.rectangle(drawn, (x1, y1), (x2, y2), color, 2)
        cv2.putText(drawn, names[level], (x1 + 3, y1 + 13), _FONT, 0.4, (255, 255, 255), 3)
        cv2.putText(drawn, names[level], (x1 + 3, y1 + 13), _FONT, 0.4, (0, 0, 0), 1)
    return np.vstack([_heading(title, names, image.shape[1]), drawn])


def _heading(title: str, names: list[str], width: int) -> np.ndarray:
    bar = np.full((40, width, 3), 255, np.uint8)
    cv2.putText(bar, title, (6, 15), _FONT, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    for place, name in enumerate(names):
        left = 6 + 48 * place
        cv2.rectangle(bar, (left, 24), (left + 11, 35), COLORS[place % len(COLORS)], -1)
        cv2.putText(bar, name, (left + 15, 34), _FONT, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
    return bar


@torch.no_grad()
def compare_levels(model: FSAF, sample: dict) -> tuple[Tensor, Tensor]:
    """The level that each object chooses by its losses, and the one by its size alone.

    Args:
        model: in inference mode, with an anchor-free branch.
        sample: image and instances as the model reads them in training.

    Returns:
        two int64 Tensor[M], indices into the head's levels.
    """
    chosen = model.choose_levels([sample])[0].cpu()
    assert model.branch is not None  # choose_levels needs it
    return chosen, levels_by_size(sample["instances"].gt_boxes.tensor, model.branch.strides)


def _read_sample(cfg: CfgNode, record: dict) -> dict:
    """The record at test size, with its objects."""
    augmentations = build_augmentation(cfg, is_train=False)
    sample = TolerantMapper(cfg, is_train=True, augmentations=augmentations)(record)
    if sample is None:
        raise FileNotFoundError(f"{record['file_name']} cannot be read; choose another image.")
    return sample


def _build(cfg: CfgNode) -> FSAF:
    model = build_model(cfg)
    if not isinstance(model, FSAF):
        raise ValueError(
            f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE!r}; only FSAF selects levels."
        )
    load_weights(model, cfg.MODEL.WEIGHTS)
    return model.eval()


def save_level_picture(cfg: CfgNode, dataset: str, number: int, path: str | Path) -> dict[str, int]:
    """Saves an image with its objects twice: in the levels chosen by losses, and by size.

    Args:
        cfg: a config of FSAF whose MODEL.WEIGHTS is trained.
        dataset: name of a registered set.
        number: of the image in the set, from 0.
        path: PNG or JPEG to write.

    Returns:
        how many objects there are ("objects") and for how many both agree ("agree").

    Raises:
        FileNotFoundError: the weights or the image cannot be read.
        ValueError: the model has no anchor-free branch, or there is no such image.
    """
    records = DatasetCatalog.get(dataset)
    if not 0 <= number < len(records):
        raise ValueError(f"{dataset} has the images 0 to {len(records) - 1}, got {number}.")
    model, sample = _build(cfg), _read_sample(cfg, records[number])
    by_losses, by_size = compare_levels(model, sample)
    image = convert_image_to_rgb(sample["image"].permute(1, 2, 0), cfg.INPUT.FORMAT)
    boxes = sample["instances"].gt_boxes.tensor.numpy()
    pictures = [
        draw_levels(image, boxes, levels.tolist(), model.head_in_features, title)
        for levels, title in [(by_losses, "level by losses"), (by_size, "level by size")]
    ]
    write_image(path, np.hstack(pictures)[:, :, ::-1])
    return {"objects": len(by_losses), "agree": int((by_losses == by_size).sum())}
