"""Box losses of matched boxes, and the number that losses are divided by."""

from __future__ import annotations

from collections.abc import Callable

import torch
from detectron2.structures import Boxes
from detectron2.structures.boxes import matched_pairwise_iou
from detectron2.utils import comm
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss

BoxLoss = Callable[[Tensor, Tensor], Tensor]
_LEAST_IOU = 1e-6  # keeps the logarithm finite where boxes do not meet


def iou_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """-log IoU (UnitBox) of boxes, float32 Tensor[Q, 4] each, any unit; Tensor[Q]."""
    return -matched_pairwise_iou(Boxes(boxes), Boxes(targets)).clamp(min=_LEAST_IOU).log()


# fvcore's GIoU loss refuses boxes that are not numbers, in one worker, while others wait for it.
BOX_LOSSES: dict[str, BoxLoss] = {"iou": iou_loss, "giou": generalized_box_iou_loss}


def mean_over_workers(count: int, device: torch.device) -> float:
    """The mean of a count over all workers, at least 1.

    Workers average their gradients, so a loss divided by this is normalised over the whole batch.
    Without gradients, as for validation, a loss is the worker's own: another may compute none.
    """
    if comm.get_world_size() == 1 or not torch.is_grad_enabled():
        return max(float(count), 1.0)
    total = torch.tensor(float(count), device=device)
    torch.distributed.all_reduce(total)
    return max(total.item() / comm.get_world_size(), 1.0)
