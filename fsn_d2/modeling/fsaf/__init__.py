"""Feature selective anchor-free detection: the branch and its parts."""

from .branch import AnchorFreeBranch, Predictions, best_candidates
from .regions import Pyramid, Region, region_cells
from .selection import levels_by_size, select_levels
from .targets import Objects, Targets, assign_targets

__all__ = [
    "AnchorFreeBranch",
    "Objects",
    "Predictions",
    "Pyramid",
    "Region",
    "Targets",
    "assign_targets",
    "best_candidates",
    "levels_by_size",
    "region_cells",
    "select_levels",
]
