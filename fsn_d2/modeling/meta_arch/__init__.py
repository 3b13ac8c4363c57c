"""Whole detectors beside Detectron2's own; importing this package registers them."""

from .config import add_fsaf_config
from .fsaf import FSAF
from .tower_head import TowerHead

__all__ = ["FSAF", "TowerHead", "add_fsaf_config"]
