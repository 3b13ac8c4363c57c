"""The pixel statistics and channel order that a pretrained backbone expects, put into a config."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from detectron2.config import CfgNode, get_cfg

from .embedded_lite0 import LITE0_MEAN, LITE0_STD
from .timm_library import require_timm_model

_logger = logging.getLogger(__name__)


def adopt_input_statistics(cfg: CfgNode) -> None:
    """Set the pixel statistics and channel order to those of a backbone of this package, in place.

    Of ``MODEL.PIXEL_MEAN``, ``MODEL.PIXEL_STD`` and ``INPUT.FORMAT`` those are set that have
    Detectron2's default. The others are the user's and stay; where pretrained weights of timm's or
    torchvision's expect something else, a warning is logged. Nothing is done for Detectron2's own
    backbones.

    Args:
        cfg: an unfrozen config.

    Raises:
        ImportError: timm is needed and not installed.
        ValueError: timm has no such model.
    """
    builder = cfg.MODEL.BACKBONE.NAME
    if builder.startswith("build_timm_"):
        network, pretrained = cfg.MODEL.TIMM.NAME, cfg.MODEL.TIMM.PRETRAINED
        mean, std = _timm_statistics(cfg)
    elif builder.startswith("build_googlenet_"):
        network, pretrained = "GoogLeNet", cfg.MODEL.GOOGLENET.PRETRAINED
        # torchvision reaches the same numbers in two steps: its preset normalises by ImageNet's
        # mean and std, which the network's `transform_input` then undoes. We leave out both.
        mean, std = [127.5] * 3, [127.5] * 3
    else:
        return
    default = get_cfg()
    expected: list[tuple[str, str, list[float] | str]] = [
        ("MODEL", "PIXEL_MEAN", mean),
        ("MODEL", "PIXEL_STD", std),
        ("INPUT", "FORMAT", "RGB"),
    ]
    for section, key, value in expected:
        found = cfg[section][key]
        if list(found) == list(default[section][key]):
            cfg[section][key] = value
            _logger.info("%s: %s.%s %s", network, section, key, value)
        elif pretrained and not cfg.MODEL.WEIGHTS and not _alike(found, value):
            _logger.warning(
                "%s.%s is %s, but the pretrained weights of %s expect %s. Set it to that, or take "
                "it out of the config.",
                section,
                key,
                found,
                network,
                value,
            )


def _alike(found: Sequence[float] | str, expected: Sequence[float] | str) -> bool:
    """Whether two formats are equal, or two statistics up to a gray level, which does no harm."""
    if isinstance(found, str) or isinstance(expected, str):
        return found == expected
    pairs = zip(found, expected, strict=False)
    return len(found) == len(expected) and all(math.isclose(*pair, abs_tol=1) for pair in pairs)


def _timm_statistics(cfg: CfgNode) -> tuple[list[float], list[float]]:
    if cfg.MODEL.TIMM.PRETRAINED == "embedded":
        return [LITE0_MEAN] * 3, [LITE0_STD] * 3
    name = cfg.MODEL.TIMM.NAME
    source = require_timm_model(name).get_pretrained_cfg(name, allow_unregistered=False)
    # timm states them on the range 0..1.
    return [255 * value for value in source.mean], [255 * value for value in source.std]
