"""A model looks at media: what it finds is drawn, and kept as a COCO json."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import Metadata
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances
from pycocotools import mask
from tqdm import tqdm

from ..data.image_header import MAX_PIXELS
from ..visualization import draw_detections
from ..visualization.writing import write_image
from .sources import Frame, ImageFile, Media, Unreadable, Video, VideoFile, read_picture
from .video_writer import VideoWriter

Predict = Callable[[np.ndarray], dict[str, Any]]
RESULTS = "detections.json"


@dataclass
class Summary:
    """What was done.

    Attributes:
        pictures: images and frames that the model looked at.
        detections: that were kept.
        unreadable: files that could not be read, or not all of them.
        interrupted: the user ended it early.
    """

    pictures: int = 0
    detections: int = 0
    unreadable: list[Unreadable] = field(default_factory=list)
    interrupted: bool = False


class _Coco:
    """Grows into a COCO data set whose annotations have scores."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.categories = [{"id": i, "name": name} for i, name in enumerate(classes, start=1)]

    def add(self, name: str, frame: Frame, found: Instances) -> None:
        image_id = len(self.images) + 1
        height, width = frame.image.shape[:2]
        image = {"id": image_id, "file_name": name, "width": width, "height": height}
        self.images.append(image if frame.number is None else {**image, "frame": frame.number})
        for detection in instances_to_coco_json(found, image_id):
            self.annotations.append(
                {
                    **detection,
                    "id": len(self.annotations) + 1,
                    "category_id": detection["category_id"] + 1,
                    "area": _area(detection),
                    "iscrowd": 0,
                }
            )

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "images": self.images,
            "annotations": self.annotations,
            "categories": self.categories,
        }
        path.write_text(json.dumps(content))


def _area(detection: Mapping[str, Any]) -> float:
    """Of its mask where it has one, else of its box."""
    if "segmentation" in detection:
        return float(mask.area(detection["segmentation"]))
    _, _, width, height = detection["bbox"]
    return width * height


class _Detector:
    """Detects, filters and draws."""

    def __init__(
        self, predict: Predict, classes: Sequence[str], wanted: set[int], min_score: float
    ) -> None:
        self.predict = predict
        self.metadata = Metadata(thing_classes=list(classes))
        self.wanted = torch.tensor(sorted(wanted), dtype=torch.int64)
        self.min_score = min_score

    def __call__(self, image: np.ndarray) -> tuple[Instances, np.ndarray]:
        """The detections to keep of a BGR picture, and the picture with them."""
        found = self.predict(image)["instances"].to(torch.device("cpu"))
        found = found[
            (found.scores >= self.min_score) & torch.isin(found.pred_classes, self.wanted)
        ]
        drawn = draw_detections(image[:, :, ::-1], found, self.metadata, self.min_score)
        return found, drawn[:, :, ::-1]


def detect_media(
    predict: Predict,
    media: Sequence[Media],
    output: Path,
    *,
    classes: Sequence[str],
    only: Sequence[str] = (),
    min_score: float = 0.5,
    max_pixels: int = MAX_PIXELS,
    max_frames: int | None = None,
) -> Summary:
    """Detects on every picture and writes annotated media and `detections.json`.

    Args:
        predict: from a BGR picture, uint8 [H, W, 3], to {"instances": Instances}, as Detectron2's
            predictors.
        media: what to look at. What cannot be read is reported in the summary, the rest done.
        output: folder to write to: each image and video under its name, videos as MP4, images of
            formats that cannot be written as PNG.
        classes: the model's, in order.
        only: the classes to keep; empty: all.
        min_score: detections below this are dropped.
        max_pixels: of an image, as INPUT.MAX_PIXELS.
        max_frames: of every video or webcam; None: all.

    Raises:
        ValueError: an unknown name in `only`, no frame wanted, or one of `media` would be
            overwritten.
        OSError: the output cannot be written.
    """
    _keep_originals(media, output)
    if max_frames is not None and max_frames < 1:
        raise ValueError(f"--max-frames: expected 1 or more, got {max_frames}.")
    if strange := sorted(set(only) - set(classes)):
        raise ValueError(f"--classes: {strange} are not among the model's {list(classes)}.")
    wanted = {i for i, name in enumerate(classes) if not only or name in only}
    run = _Run(_Detector(predict, classes, wanted, min_score), _Coco(classes), output)
    try:
        with tqdm(total=_pictures(media, max_frames), unit="picture") as progress:
            for item in media:
                run.do(item, progress, max_pixels, max_frames)
    except KeyboardInterrupt:  # the way to end a webcam
        run.summary.interrupted = True
    finally:  # after an error too, what was found is kept
        run.coco.write(output / RESULTS)
    return run.summary


def _keep_originals(media: Sequence[Media], output: Path) -> None:
    originals = {path.resolve() for item in media if (path := item.file) is not None}
    for item in media:
        if (target := output / item.result).resolve() in originals:
            raise ValueError(f"--output: {target} would be overwritten; name another folder.")


def _pictures(media: Sequence[Media], max_frames: int | None) -> int | None:
    """How many there are; None where a webcam or a video does not say."""
    total = 0
    for item in media:
        count = 1 if isinstance(item, ImageFile) else item.frames()
        limits = [number for number in (count, max_frames) if number is not None]
        if not limits:
            return None
        total += min(limits)
    return total


class _Run:
    def __init__(self, detector: _Detector, coco: _Coco, output: Path) -> None:
        self.detector = detector
        self.coco = coco
        self.output = output
        self.summary = Summary()

    def do(self, item: Media, progress: tqdm, max_pixels: int, max_frames: int | None) -> None:
        progress.set_description(item.name)
        try:
            if isinstance(item, ImageFile):
                image = read_picture(item.path, max_pixels)
            else:
                video = Video(item.source)
        except OSError as error:
            self.summary.unreadable.append(Unreadable(item.name, str(error)))
            return
        if isinstance(item, ImageFile):
            write_image(self.output / item.result, self._look(item, Frame(None, image)))
            progress.update()
        else:
            self._video(item, video, progress, max_frames)

    def _video(self, item: VideoFile, video: Video, progress: tqdm, max_frames: int | None) -> None:
        with video, VideoWriter(self.output / item.result, video.frames_per_second) as writer:
            for done, frame in enumerate(video, start=1):
                writer.write(self._look(item, frame))
                progress.update()
                if done == max_frames:
                    return
        if video.missing:
            self.summary.unreadable.append(
                Unreadable(item.name, f"{video.missing} of {video.expected} frames")
            )

    def _look(self, item: Media, frame: Frame) -> np.ndarray:
        found, drawn = self.detector(frame.image)
        self.coco.add(item.name, frame, found)
        self.summary.pictures += 1
        self.summary.detections += len(found)
        return drawn
