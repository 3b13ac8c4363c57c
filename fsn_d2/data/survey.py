"""What is in a user's data: images, classes, boxes, their sizes and shapes, and what is suspicious.

The sets are read, checked and cleaned as for training, with every image decoded.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode

from .checking import check_datasets, read_sources
from .classes import choose_classes, num_classes_key
from .cleaning import CleanedSet, Findings
from .problems import Problem

__all__ = ["SetSurvey", "Survey", "equal_images", "survey_datasets"]

NO_BOX = "images without any box"
REPEATED_IMAGE = "images that are, byte for byte, an earlier one of the set"
# A class that so many of the images show is expected on the others too.
COMMON = 0.9


@dataclass(frozen=True)
class SetSurvey:
    """One set, after what cannot be used was taken out.

    Attributes:
        cleaned: the set itself.
        image_sizes: [N, 2], width and height in pixels.
        boxes: [M, 2], width and height in pixels; without those marked `iscrowd`.
        box_images: [M], index of the box's image.
        box_classes: [M], index of the box's class.
        findings: kind of finding -> the images concerned; what cleaning found, and more.
    """

    cleaned: CleanedSet
    image_sizes: np.ndarray
    boxes: np.ndarray
    box_images: np.ndarray
    box_classes: np.ndarray
    findings: Findings

    @property
    def name(self) -> str:
        return self.cleaned.source.spec.name

    def scales(self, min_size: int, max_size: int) -> np.ndarray:
        """[N], what Detectron2's ResizeShortestEdge multiplies each image's sides by."""
        short, long = self.image_sizes.min(1), self.image_sizes.max(1)
        return np.minimum(min_size / short, max_size / long)

    def box_sides(self, min_size: int, max_size: int) -> np.ndarray:
        """[M], square roots of the boxes' areas in pixels of the network's input."""
        return np.sqrt(self.boxes.prod(1)) * self.scales(min_size, max_size)[self.box_images]

    @property
    def ratios(self) -> np.ndarray:
        """[M], height / width."""
        return self.boxes[:, 1] / self.boxes[:, 0]

    def images_with(self, label: int) -> int:
        """How many images show the class of this index."""
        return len(np.unique(self.box_images[self.box_classes == label]))


@dataclass(frozen=True)
class Survey:
    """All sets together.

    Attributes:
        classes: in the order of the model's outputs.
        train: the training sets that could be read.
        test: the test sets that could be read.
        shared: pairs of an image of a training set and the same one, byte for byte, of a test set.
        alike: groups of class names that differ in case, spaces or punctuation alone.
        problems: what has to be corrected before a training can start.
    """

    classes: list[str]
    train: list[SetSurvey]
    test: list[SetSurvey]
    shared: list[tuple[str, str]]
    alike: list[list[str]]
    problems: list[Problem]


def survey_datasets(cfg: CfgNode) -> Survey:
    """Looks at the sets of a config.

    Args:
        cfg: reads what `register_datasets` reads, but that sets have to be given by specs, and that
            the number of classes is the data's; not changed.

    Raises:
        ValueError: ``DATASETS.CLASSES`` names a class twice.
    """
    cfg = cfg.clone()
    cfg.defrost()
    train, test = tuple(cfg.DATASETS.TRAIN), tuple(cfg.DATASETS.TEST)
    sources, _ = read_sources(cfg, dict.fromkeys(train + test))
    classes = choose_classes(cfg, train, test, sources) or []
    if all(source.classes_known for source in sources.values()):
        cfg.DATASETS.CLASSES = classes  # sets may list others as long as they do not use them
    key = num_classes_key(cfg)
    if key is not None:
        cfg.MODEL[key].NUM_CLASSES = len(classes)
    sets, problems = check_datasets(cfg, decode_all=True)
    surveys = {name: _survey_set(cleaned, classes) for name, cleaned in sets.items()}
    return Survey(
        classes,
        [surveys[name] for name in train if name in surveys],
        [surveys[name] for name in test if name in surveys],
        _shared_images(sets, train, test),
        _alike(classes),
        problems,
    )


def _survey_set(cleaned: CleanedSet, classes: Sequence[str]) -> SetSurvey:
    coco = cleaned.coco
    images = {image["id"]: index for index, image in enumerate(coco["images"])}
    labels = {c["id"]: classes.index(str(c["name"])) for c in coco["categories"]}
    kept = [a for a in coco.get("annotations", ()) if not a["iscrowd"]]
    survey = SetSurvey(
        cleaned,
        np.array([(i["width"], i["height"]) for i in coco["images"]], dtype=float).reshape(-1, 2),
        np.array([a["bbox"][2:] for a in kept], dtype=float).reshape(-1, 2),
        np.array([images[a["image_id"]] for a in kept], dtype=int),
        np.array([labels[a["category_id"]] for a in kept], dtype=int),
        defaultdict(list, {kind: list(names) for kind, names in cleaned.findings.items()}),
    )
    if "annotations" in coco:
        _find_absences(survey, classes)
    _find_repetitions(survey)
    return survey


def _find_absences(survey: SetSurvey, classes: Sequence[str]) -> None:
    """Images without a box, and those without a class that nearly all of the others show."""
    names = [image["file_name"] for image in survey.cleaned.coco["images"]]
    labels: dict[int, set[int]] = defaultdict(set)
    for image, label in zip(survey.box_images.tolist(), survey.box_classes.tolist(), strict=True):
        labels[image].add(label)
    empty = [name for index, name in enumerate(names) if index not in labels]
    if empty:
        survey.findings[NO_BOX] = empty
    for label, class_name in enumerate(classes):
        without = [name for index, name in enumerate(names) if label not in labels.get(index, ())]
        if 0 < len(without) <= (1 - COMMON) * len(names):
            survey.findings[f"images without any {class_name}, which most images show"] = without


def _find_repetitions(survey: SetSurvey) -> None:
    repeated = [name for same in equal_images(survey.cleaned) for name in same[1:]]
    if repeated:
        survey.findings[REPEATED_IMAGE] = repeated


def equal_images(cleaned: CleanedSet) -> list[list[str]]:
    """Groups of file names of a set whose files have the same bytes."""
    root = cleaned.source.image_root
    names = {root / image["file_name"]: image["file_name"] for image in cleaned.coco["images"]}
    return [[names[path] for path in group] for group in _equal_files(names)]


def _image_paths(sets: Iterable[CleanedSet]) -> list[Path]:
    paths = [each.source.image_root / i["file_name"] for each in sets for i in each.coco["images"]]
    return list(dict.fromkeys(paths))


def _equal_files(paths: Iterable[Path]) -> list[list[Path]]:
    """Groups of files with the same bytes. Only files of one size are read."""
    by_size: dict[int, list[Path]] = defaultdict(list)
    for path in paths:
        by_size[path.stat().st_size].append(path)
    by_content: dict[bytes, list[Path]] = defaultdict(list)
    for same_size in by_size.values():
        if len(same_size) > 1:
            for path in same_size:
                by_content[hashlib.sha256(path.read_bytes()).digest()].append(path)
    return [group for group in by_content.values() if len(group) > 1]


def _shared_images(
    sets: Mapping[str, CleanedSet], train: Sequence[str], test: Sequence[str]
) -> list[tuple[str, str]]:
    trained = _image_paths(sets[name] for name in train if name in sets)
    tested = _image_paths(sets[name] for name in test if name in sets)
    both = set(trained) & set(tested)  # one file, named by both
    pairs = [(str(path), str(path)) for path in trained if path in both]
    of_train = set(trained)
    for group in _equal_files([*trained, *(p for p in tested if p not in of_train)]):
        first = next((p for p in group if p in of_train), None)
        pairs += [(str(first), str(p)) for p in group if first and p not in of_train]
    return pairs


def _alike(classes: Iterable[str]) -> list[list[str]]:
    groups: dict[str, list[str]] = defaultdict(list)
    for name in classes:
        groups[re.sub(r"[\W_]+", "", name.casefold()) or name].append(name)
    return [group for group in groups.values() if len(group) > 1]
