"""Configuration keys of the detectors that this package adds to Detectron2's."""

from __future__ import annotations

from detectron2.config import CfgNode


def add_fsaf_config(cfg: CfgNode) -> None:
    """Adds MODEL.FSAF, in place.

    The meta-architecture FSAF reads everything else (levels, towers, focal loss, thresholds, number
    of classes) from MODEL.RETINANET. "The paper" is arXiv 1903.00621, "mmdet" MMDetection's FSAF.

    Args:
        cfg: from `get_cfg()`.
    """
    fsaf = cfg.MODEL.FSAF = CfgNode()
    # What is predicted: "anchor_free" by the branch alone, "anchors" (then it is RetinaNet), or
    # "joint" by both. The paper has the first and the last.
    fsaf.MODE = "anchor_free"
    # Fraction of a box's width and height that is positive (the paper and mmdet).
    fsaf.EFFECTIVE = 0.2
    # Fraction up to which a box is neither positive nor background. mmdet: 0.2, no such ring, which
    # is 1.4 AP better on COCO than the paper's 0.5.
    fsaf.IGNORED = 0.2
    # Where an instance's ignored region counts beside the level that it chose: "paper", on the two
    # adjacent levels; "mmdet", on all others. The default goes with that of IGNORED.
    fsaf.OTHER_LEVELS = "mmdet"
    # Box loss: "iou", -log IoU (the paper), or "giou", 1 - GIoU.
    fsaf.LOSS = "iou"
    # Weight of the branch's losses beside those of the anchors, in the mode "joint" (the paper).
    fsaf.LAMBDA = 0.5
    # Cells per unit of the predicted distances, S in the paper.
    fsaf.BOX_SCALE = 4.0
    # Score of every class at the start (the paper, after RetinaNet).
    fsaf.PRIOR = 0.01
    # Distance from a cell to each side of its box at the start, units of BOX_SCALE cells (the
    # paper; mmdet 0.25).
    fsaf.BOX_BIAS = 0.1
