"""Writing a picture, with an error where OpenCV's function would return False."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np


def write_image(path: str | Path, bgr: np.ndarray) -> None:
    """Writes a picture, and the folders above it.

    Args:
        path: its suffix says the format.
        bgr: uint8 [H, W, 3].

    Raises:
        OSError: it cannot be written.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), bgr):
        raise OSError(f"{path} cannot be written: is the disk full or the folder read-only?")
