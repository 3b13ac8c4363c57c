"""Detectors at work: a batch to train or detect on, and one step of either."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn
from torch.optim import Optimizer


def draw_batch(images: int, height: int, width: int, instances: int) -> list[dict]:
    """Noise with boxes of log-uniform sides from 16 pixels to half of the image.

    Args:
        images: in the batch.
        height, width: of every image, pixels.
        instances: per image, of three classes.
    """
    rng = torch.Generator().manual_seed(0)
    size = torch.tensor([width, height])
    batch = []
    for _ in range(images):
        sides = 16 * (size / 32) ** torch.rand(instances, 2, generator=rng)
        corner = torch.rand(instances, 2, generator=rng) * (size - sides)
        target = Instances((height, width))
        target.gt_boxes = Boxes(torch.cat([corner, corner + sides], dim=1))
        target.gt_classes = torch.randint(3, (instances,), generator=rng)
        image = torch.randint(256, (3, height, width), generator=rng)
        batch.append({"image": image.float(), "instances": target})
    return batch


def training_step(model: nn.Module, optimizer: Optimizer, batch: list[dict]) -> Callable[[], Any]:
    """Forward, backward and the optimizer's step. The model is to be in training mode."""

    def step() -> None:
        with EventStorage():
            losses = sum(model(batch).values())
        optimizer.zero_grad()
        losses.backward()
        optimizer.step()

    return step


def still_optimizer(model: nn.Module) -> Optimizer:
    """Does the work of a step and moves nothing, so that every step sees the same model."""
    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.SGD(learnt, lr=0.0, momentum=0.9)


def inference(model: nn.Module, batch: list[dict]) -> Callable[[], Any]:
    """Detection without gradients. The model is to be in evaluation mode when it is called."""

    def detect() -> Any:
        with torch.no_grad():
            return model(batch)

    return detect
