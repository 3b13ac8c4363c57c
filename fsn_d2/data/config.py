"""Config keys of a user's own data."""

from __future__ import annotations

from detectron2.config import CfgNode


def add_data_config(cfg: CfgNode) -> None:
    """Adds the keys that `register_datasets` reads.

    Args:
        cfg: a config that already holds Detectron2's defaults; changed in place.
    """
    # Class names in the order of the model's outputs; category_id i is the i-th name. Empty: found
    # in the training set (COCO json: its categories by id; VOC: the names seen, sorted). To be set
    # when the training set is not at hand, or to fix the order. Our key.
    cfg.DATASETS.CLASSES = []
