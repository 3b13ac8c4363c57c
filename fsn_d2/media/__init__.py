"""Images, videos and webcams: read, looked at by a model, and written with what it found."""

from .classes import class_names
from .detection import Summary, detect_media
from .sources import Media, find_media, webcam

__all__ = ["Media", "Summary", "class_names", "detect_media", "find_media", "webcam"]
