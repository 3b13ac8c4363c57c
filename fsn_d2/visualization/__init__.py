"""Pictures."""

from .detections import draw_detections, draw_ground_truth, save_detection_sheet

__all__ = ["draw_detections", "draw_ground_truth", "save_detection_sheet"]
