"""The class list that every data set follows: where it comes from, and what contradicts it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.modeling.meta_arch.dense_detector import DenseDetector

from .problems import Problem
from .source import Source
from .wording import shorten

__all__ = ["choose_classes", "class_problems", "num_classes", "num_classes_key"]

logger = logging.getLogger(__name__)


def choose_classes(
    cfg: CfgNode, train: Sequence[str], test: Sequence[str], sources: Mapping[str, Source]
) -> list[str] | None:
    """Finds the class list that every set has to follow.

    Args:
        cfg: reads ``DATASETS.CLASSES``, which comes before the training and those before the test
            sets.
        train: names of the training sets.
        test: names of the test sets.
        sources: what was read of those that are given by a spec.

    Returns:
        The names in order; None where no set has classes.

    Raises:
        ValueError: ``DATASETS.CLASSES`` names a class twice.
    """
    configured = [str(name) for name in cfg.DATASETS.get("CLASSES", [])]
    if configured:
        if len(set(configured)) < len(configured):
            raise ValueError(f"DATASETS.CLASSES names a class twice: {configured}.")
        return configured
    for group in (train, test):
        classes = _first_classes(group, sources)
        if classes is not None:
            if group is test and any(name in sources for name in test):
                logger.warning(
                    "Classes are taken from the test set: %s. If the model was trained with "
                    "another list or order, set DATASETS.CLASSES.",
                    classes,
                )
            return classes
    return None


def _first_classes(names: Sequence[str], sources: Mapping[str, Source]) -> list[str] | None:
    """The first set's list; for a VOC set the names seen in all VOC sets of the group."""
    own = {name: sources[name] for name in names if name in sources}
    voc = {name: source.listed for name, source in own.items() if source.spec.kind == "voc"}
    for name in names:
        if name in voc:
            return sorted({seen for listed in voc.values() for seen in listed})
        listed = _class_names(name, sources)
        if listed is not None:
            return listed
    return None


def _class_names(name: str, sources: Mapping[str, Source]) -> list[str] | None:
    if name in sources:
        return sources[name].listed
    names = MetadataCatalog.get(name).get("thing_classes")
    return None if names is None else list(names)


def class_problems(
    cfg: CfgNode, names: Iterable[str], sources: Mapping[str, Source], classes: list[str]
) -> list[Problem]:
    """Compares data sets and model with the class list.

    Args:
        cfg: reads ``DATASETS.CLASSES`` and the ``NUM_CLASSES`` of the architecture.
        names: the data sets that are used.
        sources: what was read of those that are given by a spec.
        classes: the list to follow.

    Returns:
        A problem where no class is known, for a set that has another list, for each class outside
        of the list that a set uses, and where the model has another number of classes.
    """
    if not classes:
        text = (
            "The data holds no annotation, so no class is known; correct the data, or set "
            "DATASETS.CLASSES."
        )
        return [Problem(text, "no class")]
    problems: list[Problem] = []
    configured = bool(cfg.DATASETS.get("CLASSES", []))
    for name in names:
        if name in sources:
            problems += _source_problems(sources[name], classes, configured=configured)
            continue
        listed = _class_names(name, sources)
        if listed is not None and listed != classes:
            problems.append(_class_conflict(name, listed, classes))
    return problems + _num_classes_problem(cfg, classes)


def _source_problems(source: Source, classes: list[str], *, configured: bool) -> list[Problem]:
    unknown = [
        Problem(
            f"Data set {source.spec.name!r}: {path} names the unknown class {name!r}; known "
            f"classes: {shorten(classes)}. Correct the annotation, or set DATASETS.CLASSES to "
            "the full list.",
            "unknown class",
        )
        for name, path in source.used.items()
        if name not in classes
    ]
    # A VOC set lists only the classes it happens to show, a COCO json all it means to have.
    exact = source.spec.kind == "coco" and not configured
    if not unknown and exact and set(source.listed) != set(classes):
        return [_class_conflict(source.spec.name, source.listed, classes)]
    return unknown


def _class_conflict(name: str, listed: list[str], classes: list[str]) -> Problem:
    extra = [c for c in listed if c not in classes]
    lacking = [c for c in classes if c not in listed]
    text = (
        f"Data set {name!r} has another class list than the one in use (DATASETS.CLASSES, else the "
        f"training set's). Only there: {shorten(extra)}; only in the list in use: "
        f"{shorten(lacking)}; its order: {shorten(listed)}; the order in use: {shorten(classes)}. "
        "Use sets of the same classes, or set DATASETS.CLASSES to the list your own sets shall "
        "follow."
    )
    return Problem(text, "class list")


def _num_classes_problem(cfg: CfgNode, classes: list[str]) -> list[Problem]:
    key = num_classes_key(cfg)
    if key is None or len(classes) == cfg.MODEL[key].NUM_CLASSES:
        return []
    text = (
        f"MODEL.{key}.NUM_CLASSES is {cfg.MODEL[key].NUM_CLASSES}, but the data has {len(classes)} "
        f"classes ({shorten(classes)}). Set MODEL.{key}.NUM_CLASSES {len(classes)}."
    )
    return [Problem(text, "number of classes")]


def num_classes(cfg: CfgNode) -> int:
    """How many classes the model of the config has."""
    key = num_classes_key(cfg) or "ROI_HEADS"
    return int(cfg.MODEL[key].NUM_CLASSES)


def num_classes_key(cfg: CfgNode) -> str | None:
    """The config node whose NUM_CLASSES the model reads; None for a model we do not know."""
    try:
        architecture = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
    except KeyError:  # building the model says so, with the names that exist
        return None
    if not isinstance(architecture, type):
        return None
    if issubclass(architecture, GeneralizedRCNN):
        return "ROI_HEADS"
    return "RETINANET" if issubclass(architecture, DenseDetector) else None
