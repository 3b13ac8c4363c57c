"""Where the annotated frames of a video go."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from .names import name_for_opencv


class VideoWriter:
    """An MP4 that takes the size of its first frame; to be used as a context."""

    def __init__(self, path: Path, frames_per_second: float) -> None:
        self.path = path
        self.frames_per_second = frames_per_second
        self.writer: cv2.VideoWriter | None = None

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, *error: object) -> None:
        if self.writer is not None:
            self.writer.release()

    def write(self, image: np.ndarray) -> None:
        """Appends a BGR frame.

        Raises:
            OSError: OpenCV cannot write the file.
        """
        if self.writer is None:
            name = name_for_opencv(self.path)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            code = cv2.VideoWriter.fourcc(*"mp4v")
            size = (image.shape[1], image.shape[0])
            self.writer = cv2.VideoWriter(name, code, self.frames_per_second, size)
            if not self.writer.isOpened():
                raise OSError(f"{self.path} cannot be written as MP4 by this build of OpenCV")
        self.writer.write(image)
