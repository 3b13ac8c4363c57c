"""Config keys of a user's own data, and of what is refused in data from elsewhere."""

from __future__ import annotations

from detectron2.config import CfgNode

from .image_header import MAX_PIXELS


def add_data_config(cfg: CfgNode) -> None:
    """Adds the keys that `register_datasets` and `TolerantMapper` read.

    Args:
        cfg: a config that already holds Detectron2's defaults; changed in place.
    """
    # Class names in the order of the model's outputs; category_id i is the i-th name. Empty: found
    # in the training set (COCO json: its categories by id; VOC: the names seen, sorted). To be set
    # when the training set is not at hand, or to fix the order. Our key.
    cfg.DATASETS.CLASSES = []
    # Whether a set given by a spec may name files outside its folder of images (or, VOC, of
    # annotations): by an absolute path, by "..", or by a link, that leads out. False: such images
    # are skipped and counted. Our key.
    cfg.DATASETS.ALLOW_OUTSIDE = False
    # Largest width times height that is decoded, read from the header: a file of a few kilobytes
    # can claim gigabytes. Larger images are handled as unreadable ones. Default: where Pillow
    # stops by itself; to go above, raise PIL.Image.MAX_IMAGE_PIXELS to half of this as well. Our
    # key.
    cfg.INPUT.MAX_PIXELS = MAX_PIXELS
