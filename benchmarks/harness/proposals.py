"""RoIs as a trained region proposal network gives them, drawn at random."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def _log_uniform(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    exponent = torch.rand(count, generator=generator)
    return low * (high / low) ** exponent


def draw_proposals(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """RoIs of one image: sides (the root of the area) log-uniform in 32 to 512 pixels, heights
    0.3 to 3 times the widths, centres anywhere in the image, clipped to it.

    Args:
        count: K.
        height, width: of the image, pixels.
        seed: of the draw.

    Returns:
        Tensor[K, 4] of (x1, y1, x2, y2), pixels.
    """
    generator = torch.Generator().manual_seed(seed)
    side = _log_uniform(count, 32, 512, generator)
    stretch = _log_uniform(count, math.sqrt(0.3), math.sqrt(3), generator)
    half = torch.stack([side / stretch, side * stretch], dim=1) / 2
    limit = torch.tensor([width, height], dtype=torch.float32)
    centre = torch.rand(count, 2, generator=generator) * limit
    return torch.cat([(centre - half).clamp(min=0), torch.minimum(centre + half, limit)], dim=1)
