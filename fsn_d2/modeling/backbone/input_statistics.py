"""The pixel statistics and channel order that a pretrained backbone expects, put into a config."""

from __future__ import annotations

import logging

from detectron2.config import CfgNode, get_cfg

from .embedded_lite0 import LITE0_MEAN, LITE0_STD
from .timm_library import require_timm_model

_logger = logging.getLogger(__name__)


def adopt_input_statistics(cfg: CfgNode) -> None:
    """Set the pixel statistics and channel order to those of a backbone of this package, in place.

    Nothing is done for Detectron2's own backbones, nor where ``MODEL.PIXEL_MEAN``,
    ``MODEL.PIXEL_STD`` or ``INPUT.FORMAT`` differs from Detectron2's default: then the three are
    the user's.

    Args:
        cfg: an unfrozen config.

    Raises:
        ImportError: timm is needed and not installed.
        ValueError: timm has no such model.
    """
    if _input_keys(cfg) != _input_keys(get_cfg()):
        return
    name = cfg.MODEL.BACKBONE.NAME
    if name.startswith("build_timm_"):
        mean, std = _timm_statistics(cfg)
    elif name.startswith("build_googlenet_"):
        # torchvision reaches the same numbers in two steps: its preset normalises by ImageNet's
        # mean and std, which the network's `transform_input` then undoes. We leave out both.
        mean, std = [127.5] * 3, [127.5] * 3
    else:
        return
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD, cfg.INPUT.FORMAT = mean, std, "RGB"
    _logger.info("%s: INPUT.FORMAT RGB, PIXEL_MEAN %s, PIXEL_STD %s", name, mean, std)


def _timm_statistics(cfg: CfgNode) -> tuple[list[float], list[float]]:
    if cfg.MODEL.TIMM.PRETRAINED == "embedded":
        return [LITE0_MEAN] * 3, [LITE0_STD] * 3
    name = cfg.MODEL.TIMM.NAME
    source = require_timm_model(name).get_pretrained_cfg(name, allow_unregistered=False)
    # timm states them on the range 0..1.
    return [255 * value for value in source.mean], [255 * value for value in source.std]


def _input_keys(cfg: CfgNode) -> tuple[list[float], list[float], str]:
    return list(cfg.MODEL.PIXEL_MEAN), list(cfg.MODEL.PIXEL_STD), cfg.INPUT.FORMAT
