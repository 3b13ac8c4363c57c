"""Writing a picture, under any name, with an error where OpenCV would return False or crash."""

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
        OSError: it cannot be written, or OpenCV does not know its format.
    """
    path = Path(path)
    try:
        encoded, data = cv2.imencode(path.suffix, bgr)
    except cv2.error:
        encoded = False
    if not encoded:
        height, width = bgr.shape[:2]
        raise OSError(
            f"{path}: OpenCV cannot write {width} x {height} pixels as {path.suffix or 'no suffix'}"
            ". Let the name end with .png."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.tobytes())  # OpenCV's own writing dies of a name that is not UTF-8
