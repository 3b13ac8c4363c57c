"""The pixel statistics and channel order that a pretrained backbone expects, put into a config."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from detectron2.config import CfgNode, get_cfg

from .embedded_lite0 import LITE0_MEAN, LITE0_STD
from .timm_library import require_timm_model

_logger = logging.getLogger(__name__)


def adopt_timm_input(cfg: CfgNode) -> None:
    """Set the pixel statistics and channel order to those of the timm backbone, in place.

    Nothing is done for another backbone, nor where ``MODEL.PIXEL_MEAN``, ``MODEL.PIXEL_STD`` or
    ``INPUT.FORMAT`` differs from Detectron2's default: then the three are the user's.

    Args:
        cfg: an unfrozen config. timm states mean and std on the range 0..1; the config holds them
            on 0..255. timm's models take RGB.

    Raises:
        ImportError: timm is not installed.
        ValueError: timm has no such model.
    """
    if not cfg.MODEL.BACKBONE.NAME.startswith("build_timm_"):
        return
    if cfg.MODEL.TIMM.PRETRAINED == "embedded":
        mean, std = [LITE0_MEAN] * 3, [LITE0_STD] * 3
    else:
        name = cfg.MODEL.TIMM.NAME
        source = require_timm_model(name).get_pretrained_cfg(name, allow_unregistered=False)
        mean, std = [[255 * value for value in triple] for triple in (source.mean, source.std)]
    _adopt(cfg, mean, std)


def adopt_googlenet_input(cfg: CfgNode) -> None:
    """Do as :func:`adopt_timm_input` for GoogLeNet, whose weights expect (x - 127.5) / 127.5, RGB.

    torchvision reaches the same numbers in two steps: its preset normalises by ImageNet's mean
    and std, which the network's ``transform_input`` then undoes. We leave out both.
    """
    if cfg.MODEL.BACKBONE.NAME.startswith("build_googlenet_"):
        _adopt(cfg, [127.5] * 3, [127.5] * 3)


def _adopt(cfg: CfgNode, mean: Sequence[float], std: Sequence[float]) -> None:
    default = get_cfg()
    if _input_keys(cfg) != _input_keys(default):
        return
    cfg.MODEL.PIXEL_MEAN = list(mean)
    cfg.MODEL.PIXEL_STD = list(std)
    cfg.INPUT.FORMAT = "RGB"
    _logger.info(
        "%s: INPUT.FORMAT RGB, PIXEL_MEAN %s, PIXEL_STD %s",
        cfg.MODEL.BACKBONE.NAME,
        [round(value, 3) for value in mean],
        [round(value, 3) for value in std],
    )


def _input_keys(cfg: CfgNode) -> tuple[list[float], list[float], str]:
    return list(cfg.MODEL.PIXEL_MEAN), list(cfg.MODEL.PIXEL_STD), cfg.INPUT.FORMAT
