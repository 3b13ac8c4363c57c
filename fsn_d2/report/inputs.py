"""What a report is made from: ground truth of a registered data set, detections, image files."""

from __future__ import annotations

import contextlib
import io
import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import convert_to_coco_json
from detectron2.utils.file_io import PathManager
from pycocotools.coco import COCO

Entry = dict[str, Any]  # an annotation or a detection in COCO's form

__all__ = ["Columns", "Evaluated", "as_coco", "read_detections", "read_evaluated"]

_EVALUATE = "write one with train_net.py --eval-only, for the same DATASETS.TEST"


@dataclass(frozen=True)
class Columns:
    """Boxes as arrays.

    Attributes:
        image: int64 [N], index into the images.
        label: int64 [N], index into the classes.
        box: float64 [N, 4], XYWH in pixels.
    """

    image: np.ndarray
    label: np.ndarray
    box: np.ndarray


@dataclass(frozen=True)
class Evaluated:
    """A ground truth and what was detected on it.

    Attributes:
        name: of the data set.
        truth: annotations have the ids 1 to M in their order.
        detections: with image_id, category_id, bbox and score alone.
        files: image id -> path of the image.
    """

    name: str
    truth: COCO
    detections: list[Entry]
    files: dict[Any, str]

    @cached_property
    def classes(self) -> list[str]:
        """Names by ascending category id, the order in which COCO's evaluation has them."""
        return [str(self.truth.cats[i]["name"]) for i in sorted(self.truth.cats)]

    @property
    def images(self) -> list[Entry]:
        return self.truth.dataset["images"]

    @cached_property
    def annotated(self) -> Columns:
        """The ground truth, crowds among it."""
        return self._columns(self.truth.dataset["annotations"])

    @cached_property
    def crowd(self) -> np.ndarray:
        """bool [M]: ground truth that neither counts nor harms."""
        return np.array([bool(a["iscrowd"]) for a in self.truth.dataset["annotations"]], bool)

    @cached_property
    def detected(self) -> Columns:
        return self._columns(self.detections)

    @cached_property
    def scores(self) -> np.ndarray:
        """float64 [N] of the detections, 0 to 1."""
        return np.array([d["score"] for d in self.detections], float)

    def _columns(self, entries: Sequence[Entry]) -> Columns:
        places = {image["id"]: i for i, image in enumerate(self.images)}
        labels = {category: i for i, category in enumerate(sorted(self.truth.cats))}
        return Columns(
            np.array([places[e["image_id"]] for e in entries], np.int64),
            np.array([labels[e["category_id"]] for e in entries], np.int64),
            np.array([e["bbox"] for e in entries], float).reshape(-1, 4),
        )


def read_evaluated(dataset: str, detections: str | Path) -> Evaluated:
    """Reads what a report needs.

    Args:
        dataset: name of a registered set with annotations.
        detections: json that `COCOEvaluator` wrote (coco_instances_results.json).

    Raises:
        FileNotFoundError: there are no such detections.
        ValueError: the set has no annotations, or the file holds something else than detections
            on this set.
    """
    records = DatasetCatalog.get(dataset)
    truth = _read_truth(dataset)
    files = {record["image_id"]: record["file_name"] for record in records}
    return Evaluated(dataset, truth, read_detections(Path(detections), truth), files)


def as_coco(dataset: Entry, annotations: Sequence[Entry]) -> COCO:
    """A COCO of the data set's images and classes with other annotations, numbered from 1."""
    coco = COCO()
    numbered = [{**annotation, "id": i} for i, annotation in enumerate(annotations, start=1)]
    coco.dataset = {
        "info": {},
        "images": dataset["images"],
        "categories": dataset["categories"],
        "annotations": numbered,
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _read_truth(dataset: str) -> COCO:
    content = _coco_json(dataset)
    if "annotations" not in content:
        raise ValueError(
            f"Data set {dataset!r} has no annotations to compare detections with. Name an "
            "annotated set in DATASETS.TEST."
        )
    kept = ("image_id", "category_id", "bbox", "area", "iscrowd")
    annotations = [{"iscrowd": 0, **a} for a in content["annotations"]]
    return as_coco(content, [{key: a[key] for key in kept} for a in annotations])


def _coco_json(dataset: str) -> Entry:
    """The set's own json, else what Detectron2's evaluator would make of its records."""
    path = MetadataCatalog.get(dataset).get("json_file")
    with tempfile.TemporaryDirectory() as folder:
        if path is None:
            path = f"{folder}/truth.json"
            convert_to_coco_json(dataset, path)
        with PathManager.open(path, "r") as file:
            return json.load(file)


def read_detections(path: Path, truth: COCO) -> list[Entry]:
    """Reads detections in COCO's results format and checks every one.

    Args:
        path: a json file.
        truth: the set that they belong to.

    Returns:
        Per detection image_id, category_id, bbox (XYWH) and score; other keys are dropped.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not json, not a list, or an entry that is no detection on this set.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"--detections: {path} does not exist; {_EVALUATE}. Detectron2's own VOC sets have "
            "none: give yours as voc://."
        )
    try:
        entries = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--detections: {path} is not json ({error}); {_EVALUATE}.") from error
    if not isinstance(entries, list):
        kind = type(entries).__name__
        raise ValueError(f"--detections: {path} holds a {kind}, expected a list; {_EVALUATE}.")
    for number, entry in enumerate(entries):
        defect = _defect(entry, truth)
        if defect:
            raise ValueError(f"--detections: {path}, entry {number}: {defect}; {_EVALUATE}.")
    kept = ("image_id", "category_id", "bbox", "score")
    return [{key: entry[key] for key in kept} for entry in entries]


def _defect(entry: Any, truth: COCO) -> str | None:
    if not isinstance(entry, dict):
        return f"expected an object, got {entry!r}"
    for key, known in (("image_id", truth.imgs), ("category_id", truth.cats)):
        value = entry.get(key)
        if not isinstance(value, int | str) or value not in known:
            return f"{key} {value!r} is not in the data set"
    box, score = entry.get("bbox"), entry.get("score")
    if not (isinstance(box, list) and len(box) == 4 and all(map(_is_finite, box))):
        return f"bbox {box!r}, expected four numbers"
    if min(box[2:]) < 0:
        return f"bbox {box!r} has a negative width or height"
    if not (_is_finite(score) and 0 <= score <= 1):  # type: ignore[operator]
        return f"score {score!r}, expected a number from 0 to 1"
    return None


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
