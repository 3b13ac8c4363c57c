"""Heads on small random features: two images, a pyramid of four levels or one map of stride 16."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_roi_heads
from detectron2.structures import BitMasks, Boxes, ImageList, Instances, Keypoints
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from fsn_d2 import add_fsn_config

SIZE = (128, 160)  # height, width of each of the two images
PYRAMID = {"p2": 4, "p3": 8, "p4": 16, "p5": 32}
ONE_MAP = {"res5": 16}
CHANNELS, CLASSES = 16, 3
NOTHING = [Boxes(torch.zeros(0, 4))] * 2


def head_cfg(name: str, levels: dict[str, int] = PYRAMID, **changes) -> CfgNode:
    """Changes are keys below MODEL with "__" for the dot."""
    cfg = get_cfg()
    add_fsn_config(cfg)
    values = {
        "ROI_HEADS.NAME": name,
        "ROI_HEADS.IN_FEATURES": list(levels),
        "ROI_HEADS.NUM_CLASSES": CLASSES,
        "ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
        "ROI_HEADS.SCORE_THRESH_TEST": 0.0,
        "ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
        "ROI_BOX_HEAD.NUM_FC": 1,
        "ROI_BOX_HEAD.FC_DIM": 32,
        "ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
        "ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True,
        "ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",
        "ROI_MASK_HEAD.NUM_CONV": 1,
        "ROI_MASK_HEAD.CONV_DIM": 8,
        "RFCN.REDUCTION": 8,
        "LIGHT_HEAD.MIDDLE": 4,
        "LIGHT_HEAD.KERNEL": 3,
        **{key.replace("__", "."): value for key, value in changes.items()},
    }
    cfg.merge_from_list([item for key, value in values.items() for item in (f"MODEL.{key}", value)])
    return cfg


def build(cfg: CfgNode, levels: dict[str, int] = PYRAMID) -> nn.Module:
    torch.manual_seed(0)
    shapes = {name: ShapeSpec(channels=CHANNELS, stride=s) for name, s in levels.items()}
    return build_roi_heads(cfg, shapes)


def make_features(levels: dict[str, int] = PYRAMID, channels: int = CHANNELS) -> dict[str, Tensor]:
    """Leaves, which take the gradient that a backbone would get."""
    torch.manual_seed(1)
    return {
        name: torch.randn(2, channels, SIZE[0] // s, SIZE[1] // s, requires_grad=True)
        for name, s in levels.items()
    }


def box_gradients(losses: dict[str, Tensor], features: dict[str, Tensor]) -> list[Tensor]:
    """What reaches the features from the losses of boxes, mask and keypoints left out."""
    total = sum(loss for name, loss in losses.items() if name.startswith(("loss_cls", "loss_box")))
    return list(torch.autograd.grad(total, list(features.values()), retain_graph=True))


def make_proposals(boxes: list[Boxes]) -> list[Instances]:
    return [
        Instances(SIZE, proposal_boxes=b, objectness_logits=torch.linspace(2, -2, len(b)))
        for b in boxes
    ]


def make_targets(boxes: list[Boxes]) -> list[Instances]:
    """The first three boxes of each image are objects, each with a mask that fills it and keypoints
    in its centre.
    """
    targets = []
    for image_boxes in boxes:
        objects = image_boxes[:3]
        points = torch.cat([objects.get_centers(), torch.full((len(objects), 1), 2.0)], dim=1)
        masks = torch.zeros(len(objects), *SIZE, dtype=torch.bool)
        for mask, (x1, y1, x2, y2) in zip(masks, objects.tensor.long().tolist(), strict=True):
            mask[y1 : y2 + 1, x1 : x2 + 1] = True
        target = Instances(SIZE, gt_boxes=objects, gt_classes=torch.arange(3)[: len(objects)])
        target.gt_masks = BitMasks(masks)
        target.gt_keypoints = Keypoints(points[:, None].repeat(1, 17, 1))
        targets.append(target)
    return targets


def make_images() -> ImageList:
    return ImageList(torch.zeros(2, 3, *SIZE), [SIZE, SIZE])


def losses_of(
    heads: nn.Module, features: dict, boxes: list[Boxes], objects: list[Boxes] | None = None
) -> dict[str, Tensor]:
    targets = make_targets(boxes if objects is None else objects)
    torch.manual_seed(2)  # of the sampling of proposals
    with EventStorage():
        return heads.train()(make_images(), features, make_proposals(boxes), targets)[1]


@torch.no_grad()
def detections_of(heads: nn.Module, features: dict, boxes: list[Boxes]) -> list[Instances]:
    return heads.eval()(make_images(), features, make_proposals(boxes))[0]


def check_it_trains(heads: nn.Module, features: dict, boxes: list[Boxes]) -> None:
    """Every parameter gets a gradient, whether or not there are proposals and objects; a gradient
    that is not zero where there are both, and then the backbone too.
    """
    parts = [boxes[0], NOTHING[0]]
    batches = [(boxes, boxes), (boxes, NOTHING), (NOTHING, NOTHING), (parts, parts)]
    for proposed, objects in batches:
        heads.zero_grad(set_to_none=True)
        losses = losses_of(heads, features, proposed, objects)
        assert all(torch.isfinite(loss) for loss in losses.values())
        if objects is boxes:
            assert any(gradient.any() for gradient in box_gradients(losses, features))
        sum(losses.values()).backward()
        missing = [n for n, p in heads.named_parameters() if p.requires_grad and p.grad is None]
        assert not missing
        if objects is boxes:
            idle = [n for n, p in heads.named_parameters() if not p.grad.any()]
            assert not idle


def check_detections(found: list[Instances], most: int) -> None:
    for image in found:
        assert 0 < len(image) <= most
        x1, y1, x2, y2 = image.pred_boxes.tensor.unbind(1)
        assert (x1 >= 0).all() and (y1 >= 0).all()
        assert (x2 <= SIZE[1]).all() and (y2 <= SIZE[0]).all()
        assert ((image.scores >= 0) & (image.scores <= 1)).all()
