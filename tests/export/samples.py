"""Images to export with and to compare on, and the comparison."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from fsn_d2.export import compare_export

TRACED = (64, 80)  # height, width
OTHERS = [(64, 80), (80, 64), (96, 96), (50, 131), (33, 40)]


def image_of(height: int, width: int, seed: int = 0) -> Tensor:
    """float32 Tensor[3, height, width] in 0 to 255 without sharp edges."""
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 6, 8, generator=rng) * 255
    return nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]


def check_equal(export: Callable, cfg: CfgNode, model: nn.Module, path: Path) -> None:
    """`export` writes to `path` what finds `model`'s detections in images of other sizes."""
    exported = export(cfg, model, image_of(*TRACED), path)
    images = [image_of(*size, seed=i) for i, size in enumerate(OTHERS)]
    difference = compare_export(model, exported, images)
    assert difference.images == len(OTHERS)
    assert difference.detections >= 10 * len(OTHERS)
    assert difference.within(), difference
