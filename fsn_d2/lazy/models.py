"""From a YAML config to the LazyConfig tree of the same model."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode

from .dense import lazy_fsaf
from .shared import require_values
from .two_stage import lazy_generalized_rcnn


def lazy_model(cfg: CfgNode) -> Any:
    """The model as a tree of LazyCall nodes, every one of which can be overridden.

    Args:
        cfg: Faster R-CNN, FSN, FSAF or RetinaNet on a feature pyramid.

    Raises:
        ValueError: it describes something else.
    """
    builders = {
        "GeneralizedRCNN": lazy_generalized_rcnn,
        "FSAF": lazy_fsaf,
        "RetinaNet": lazy_fsaf,
    }
    name = cfg.MODEL.META_ARCHITECTURE
    if name not in builders:
        raise ValueError(
            f"MODEL.META_ARCHITECTURE {name!r} has no LazyConfig version; {sorted(builders)} do."
        )
    require_values(
        cfg,
        {"MODEL.MASK_ON": False, "MODEL.KEYPOINT_ON": False, "MODEL.LOAD_PROPOSALS": False},
    )
    return builders[name](cfg)
