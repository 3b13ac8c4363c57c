"""Pictures."""

from .detections import draw_detections, draw_ground_truth, save_detection_sheet
from .level_assignment import save_level_picture

__all__ = ["draw_detections", "draw_ground_truth", "save_detection_sheet", "save_level_picture"]
