"""Pictures."""

from .detections import save_detection_sheet
from .drawing import draw_detections, draw_ground_truth
from .level_assignment import save_level_picture
from .selection import explain_detection, save_explanation

__all__ = [
    "draw_detections",
    "draw_ground_truth",
    "explain_detection",
    "save_detection_sheet",
    "save_explanation",
    "save_level_picture",
]
