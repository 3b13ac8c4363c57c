"""Online hard example mining (Shrivastava et al. 2016), as R-FCN uses it (section 2): every sampled
RoI is evaluated, and of each image those of the highest loss are learnt from.
"""

from __future__ import annotations

import torch
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Instances
from torch import Tensor
from torch.nn import functional as F


@torch.no_grad()
def loss_per_roi(
    predictor: FastRCNNOutputLayers, scores: Tensor, deltas: Tensor, proposals: Instances
) -> Tensor:
    """Tensor[R]: cross-entropy plus, for foreground, the weighted smooth L1 loss of the box.

    Args:
        predictor: knows classes, box coding and loss weights.
        scores: Tensor[R, classes + 1], logits, the background last.
        deltas: Tensor[R, 4], or [R, classes * 4].
        proposals: of one image, R in number, labelled.
    """
    labels = proposals.gt_classes
    loss = F.cross_entropy(scores, labels, reduction="none") * predictor.loss_weight.get(
        "loss_cls", 1.0
    )
    foreground = ((labels >= 0) & (labels < predictor.num_classes)).nonzero().squeeze(1)
    if len(foreground):
        objects = labels[foreground] if deltas.shape[1] > 4 else torch.zeros_like(foreground)
        predicted = deltas.unflatten(1, (-1, 4))[foreground, objects]
        wanted = predictor.box2box_transform.get_deltas(
            proposals.proposal_boxes.tensor[foreground], proposals.gt_boxes.tensor[foreground]
        )
        box_loss = F.smooth_l1_loss(
            predicted, wanted, beta=predictor.smooth_l1_beta, reduction="none"
        ).sum(dim=1)
        loss[foreground] += box_loss * predictor.loss_weight.get("loss_box_reg", 1.0)
    return loss


def hardest(
    predictor: FastRCNNOutputLayers,
    predictions: tuple[Tensor, Tensor],
    proposals: list[Instances],
    per_image: int,
) -> tuple[tuple[Tensor, Tensor], list[Instances]]:
    """Keeps, of each image, the `per_image` RoIs of the highest loss; all where there are fewer.

    Overlapping RoIs are not suppressed first: R-FCN's public code does not either.

    Returns:
        predictions and proposals of what was kept, highest loss first within an image.
    """
    sizes = [len(p) for p in proposals]
    scores, deltas = (part.split(sizes) for part in predictions)
    kept = []
    for image_scores, image_deltas, image_proposals in zip(scores, deltas, proposals, strict=True):
        loss = loss_per_roi(predictor, image_scores, image_deltas, image_proposals)
        kept.append(loss.topk(min(per_image, len(loss))).indices)
    chosen = [p[index] for p, index in zip(proposals, kept, strict=True)]
    return (_of_kept(scores, kept), _of_kept(deltas, kept)), chosen


def _of_kept(parts: tuple[Tensor, ...], kept: list[Tensor]) -> Tensor:
    return torch.cat([part[index] for part, index in zip(parts, kept, strict=True)])
