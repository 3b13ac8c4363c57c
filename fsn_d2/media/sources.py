"""Where pictures come from: image files, the frames of a video, a webcam."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath
from typing import NamedTuple

import cv2
import numpy as np
from PIL import UnidentifiedImageError

from ..data.mapper import read_image
from .names import name_for_opencv

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
VIDEO_SUFFIXES = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"}
FRAMES_PER_SECOND = 25.0  # of a video that does not say


class Unreadable(NamedTuple):
    """A file, or some frames of it, that cannot be read, and why."""

    name: str
    reason: str


class Frame(NamedTuple):
    """A picture.

    Attributes:
        number: of the frame in its video, from 0; None for an image.
        image: uint8 [H, W, 3], BGR.
    """

    number: int | None
    image: np.ndarray


class ImageFile(NamedTuple):
    """An image.

    Attributes:
        name: a relative path, unique among those read together.
        path: of the file.
    """

    name: str
    path: Path

    @property
    def result(self) -> str:
        """Where it is written with what was found; unique too."""
        known = self.name.lower().endswith(tuple(IMAGE_SUFFIXES))
        return self.name if known else f"{self.name}.png"

    @property
    def file(self) -> Path | None:
        return self.path


class VideoFile(NamedTuple):
    """A video file or webcam.

    Attributes:
        name: as of an image.
        source: path, or the number of a webcam.
    """

    name: str
    source: Path | int

    @property
    def result(self) -> str:
        """As of an image; always an MP4."""
        return PurePath(self.name).with_suffix(".mp4").as_posix()

    @property
    def file(self) -> Path | None:
        return self.source if isinstance(self.source, Path) else None

    def frames(self) -> int | None:
        """How many it says it has; None where it does not, or cannot be opened."""
        if isinstance(self.source, int):
            return None
        try:
            with Video(self.source) as video:
                return video.expected
        except OSError:
            return None


Media = ImageFile | VideoFile
"""What `detect_media` takes."""


def find_media(inputs: Iterable[str]) -> list[Media]:
    """The images and videos among files and folders.

    Args:
        inputs: paths. Folders are searched to all depths, through links too. A file is taken
            whatever its name: a video if the suffix says so.

    Raises:
        FileNotFoundError: a path does not exist, or there is neither image nor video.
    """
    found: list[Media] = []
    taken: set[str] = set()
    inputs = list(inputs)
    for path in map(Path, inputs):
        if not path.exists():
            raise FileNotFoundError(f"--input: {path} does not exist.")
        files = sorted(filter(_is_media, _files_below(path))) if path.is_dir() else [path]
        for file in files:
            name = file.relative_to(path) if path.is_dir() else Path(file.name)
            found.append(_named(name, file, taken))
    if not found:
        known = ", ".join(sorted(IMAGE_SUFFIXES | VIDEO_SUFFIXES))
        raise FileNotFoundError(f"--input: no image or video in {', '.join(inputs)} ({known}).")
    return found


def _files_below(folder: Path) -> Iterator[Path]:
    """All of them once: links may lead to the same folder, or in circles."""
    seen: set[str] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(parent)) in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(parent, name) for name in files)


def webcam(number: int) -> Media:
    """A camera as an endless video; it is opened when it is read.

    Args:
        number: of the camera, from 0, as OpenCV counts them.
    """
    return VideoFile(f"webcam{number}", number)


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES


def _is_media(path: Path) -> bool:
    return path.is_file() and (_is_video(path) or path.suffix.lower() in IMAGE_SUFFIXES)


def _named(name: Path, file: Path, taken: set[str]) -> Media:
    """The file under this name, or the first numbered one whose result no other file has."""
    kind = VideoFile if _is_video(file) else ImageFile
    media, number = kind(name.as_posix(), file), 1
    while media.result in taken:
        number += 1
        media = kind(name.with_stem(f"{name.stem}_{number}").as_posix(), file)
    taken.add(media.result)
    return media


def read_picture(path: Path, max_pixels: int) -> np.ndarray:
    """An image file as BGR.

    Raises:
        OSError: it cannot be read; says why.
    """
    try:
        return np.ascontiguousarray(read_image(str(path), "BGR", max_pixels))
    except UnidentifiedImageError as error:  # its text names a Python object
        raise OSError("not an image of a known format") from error
    except Exception as error:  # Pillow's decoders raise nearly any type on a broken file
        raise OSError(str(error) or type(error).__name__) from error


class Video:
    """The frames of a video or webcam, one by one; to be used as a context.

    Attributes:
        frames_per_second: as the file says.
        expected: how many frames the file says it has; None where it does not.
        missing: frames that could not be decoded, as far as the iteration has come.
    """

    def __init__(self, source: Path | int) -> None:
        """Raises OSError where it cannot be opened."""
        name = source if isinstance(source, int) else name_for_opencv(source)
        self.capture = cv2.VideoCapture(name)
        if not self.capture.isOpened():
            raise OSError("no such camera" if isinstance(source, int) else "not a readable video")
        rate = self.capture.get(cv2.CAP_PROP_FPS)
        self.frames_per_second = rate if 0 < rate < 1000 else FRAMES_PER_SECOND
        count = int(self.capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.expected = count if count > 0 and isinstance(source, Path) else None
        self.missing = 0

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *error: object) -> None:
        self.capture.release()

    def __iter__(self) -> Iterator[Frame]:
        number = 0
        while self.capture.grab():
            decoded, image = self.capture.retrieve()
            if decoded and image is not None:
                yield Frame(number, image)
            else:
                self.missing += 1
            number += 1
        if self.expected is not None and number < self.expected:
            self.missing += self.expected - number
