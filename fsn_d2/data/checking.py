"""From the names of a config to checked and cleaned sets, with everything that is wrong."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from .classes import choose_classes, class_problems
from .cleaning import CleanedSet, Rules, clean, image_defect
from .coco_source import read_coco
from .keypoints import keypoint_problems
from .problems import Problem, collected
from .source import Source
from .specs import SPEC_SYNTAX, DatasetSpec, parse_spec
from .voc_source import read_voc

__all__ = ["check_datasets", "read_sources"]


def check_datasets(
    cfg: CfgNode, *, eval_only: bool = False, decode_all: bool = False
) -> tuple[dict[str, CleanedSet], list[Problem]]:
    """Reads and cleans the sets that are given by a spec, and checks all that the config names.

    It does not stop at the first problem: what can be read is read, and checked as far as it goes.

    Args:
        cfg: as `register_datasets`.
        eval_only: training sets serve only to find the classes and may be absent.
        decode_all: decode the images of the training sets in full too, not those of the test sets
            alone.

    Returns:
        The sets by name, and what has to be corrected before any of them can be used.

    Raises:
        ValueError: ``DATASETS.CLASSES`` names a class twice.
    """
    train, test = tuple(cfg.DATASETS.TRAIN), tuple(cfg.DATASETS.TEST)
    needed = tuple(dict.fromkeys(test if eval_only else train + test))
    sources, problems = read_sources(cfg, needed)
    known = sources
    if eval_only and not cfg.DATASETS.get("CLASSES", []):
        known = _read_if_there(cfg, sorted(set(train) - set(test)), problems) | sources
    classes = choose_classes(cfg, train, test, known)
    if classes is None:
        return {}, problems
    if cfg.DATASETS.get("CLASSES", []) or _classes_are_certain(needed, known):
        problems += class_problems(cfg, needed, sources, classes)
    rules = Rules.of(cfg)
    learnt = () if eval_only else (*train, *_watched(cfg))
    cleaned = {
        name: clean(
            source,
            classes,
            rules if name in learnt else replace(rules, polygons=False),
            decode=decode_all or name in test,
        )
        for name, source in sources.items()
        if source.image_root.is_dir() and source.coco["images"]
    }
    problems += [problem for each in cleaned.values() for problem in each.problems]
    problems += keypoint_problems(cfg, cleaned)
    if not problems and train and not eval_only:
        problems += _training_problems(cfg, [cleaned.get(name) for name in train], rules)
    return cleaned, problems


def _watched(cfg: CfgNode) -> Sequence[str]:
    """The test set on which a training computes a loss, if it does."""
    images = cfg.get("WATCH", {}).get("LOSS_IMAGES", 0)
    return cfg.DATASETS.TEST[:1] if images and cfg.TEST.EVAL_PERIOD > 0 else ()


def read_sources(cfg: CfgNode, names: Iterable[str]) -> tuple[dict[str, Source], list[Problem]]:
    """Reads the sets among the names that are given by a spec.

    Args:
        cfg: reads ``DATASETS.TRAIN`` (sets that need annotations) and ``DATASETS.ALLOW_OUTSIDE``.
        names: specs, and names that are registered; of Detectron2's own sets among these the files
            have to be there.

    Returns:
        What was read, by name, and what is wrong with it and with the names.
    """
    problems: list[Problem] = []
    sources: dict[str, Source] = {}
    for name in names:
        with collected(problems):
            spec = _look_up(name)
            if spec is None:
                _check_registered_files(name)
                continue
            sources[name] = _read(spec, cfg, annotated=name in cfg.DATASETS.TRAIN)
            problems += sources[name].problems
            if not sources[name].coco["images"] and not sources[name].problems:
                raise ValueError(f"Data set {name!r} lists no image.")
    return sources, problems


def _classes_are_certain(needed: Iterable[str], sources: Mapping[str, Source]) -> bool:
    read = [name for name in needed if name in sources or name in DatasetCatalog]
    return set(read) == set(needed) and all(s.classes_known for s in sources.values())


def _look_up(name: str) -> DatasetSpec | None:
    """The spec, or None for a registered name; raises ValueError for a name that is neither."""
    spec = parse_spec(name)
    if spec is None and name not in DatasetCatalog:
        close = difflib.get_close_matches(name, DatasetCatalog.list(), n=3)
        hint = f" Close matches: {', '.join(close)}." if close else ""
        raise ValueError(
            f"Data set {name!r} is neither registered nor a spec.{hint} "
            f"Your own data is given as {SPEC_SYNTAX}."
        )
    return spec


def _check_registered_files(name: str) -> None:
    """Raises FileNotFoundError if files that Detectron2's own loaders will open are missing.

    Sets registered by other code may make their files when first asked, and are not looked at.
    """
    loader = getattr(DatasetCatalog[name], "__module__", None) or ""
    if not loader.startswith("detectron2."):
        return
    metadata = MetadataCatalog.get(name)
    keys = ("json_file", "image_root", "dirname", "image_dir", "gt_dir")
    paths = [str(metadata.get(key)) for key in keys if metadata.get(key)]
    if metadata.get("dirname") and metadata.get("split"):
        paths.append(os.path.join(metadata.dirname, "ImageSets", "Main", f"{metadata.split}.txt"))
    for path in paths:
        if "://" not in path and not os.path.exists(path):
            root = os.environ.get("DETECTRON2_DATASETS", "datasets")
            raise FileNotFoundError(
                f"Data set {name!r}: {os.path.abspath(path)} does not exist. Detectron2 looks for "
                f"its own sets in $DETECTRON2_DATASETS (now {os.path.abspath(root)}); put the "
                "data there, or set the variable before the start."
            )


def _read(spec: DatasetSpec, cfg: CfgNode, *, annotated: bool) -> Source:
    if spec.kind == "coco":
        return read_coco(spec, annotated=annotated)
    return read_voc(spec, allow_outside=cfg.DATASETS.get("ALLOW_OUTSIDE", False))


def _read_if_there(
    cfg: CfgNode, names: Iterable[str], problems: list[Problem]
) -> dict[str, Source]:
    """Reads the specs among the names for their classes; files may be missing, but not broken."""
    sources = {}
    for name in names:
        with collected(problems):
            spec = parse_spec(name)
            source = _read(spec, cfg, annotated=False) if spec else None
            if source is None:
                continue
            absent = any(problem.missing for problem in source.problems)
            # A COCO json lists all of its classes; those of a VOC set are in its annotations.
            if source.classes_known and not (absent and source.spec.kind == "voc"):
                sources[name] = source
            elif not absent:
                problems += source.problems
    return sources


def _training_problems(cfg: CfgNode, train: list[CleanedSet | None], rules: Rules) -> list[Problem]:
    """Training sets of which Detectron2's filter, or the mapper, would leave nothing at all."""
    sets = [each for each in train if each is not None]
    if len(sets) < len(train):  # a registered set is not opened
        return []
    usable = [(each, image) for each in sets for image in _trained_on(each, cfg)]
    names = ", ".join(repr(each.source.spec.name) for each in sets)
    if not usable:
        text = (
            f"No image of DATASETS.TRAIN ({names}) has a box to train on (one with an area, of a "
            "readable image, and not 'iscrowd')."
        )
        return [Problem(text, "no box")]
    if all(image_defect(each.source, image, rules) for each, image in usable):
        text = (
            f"No image with a box of DATASETS.TRAIN ({names}) can be decoded to its end; copy the "
            "images anew."
        )
        return [Problem(text, "no decodable image")]
    return []


def _trained_on(cleaned: CleanedSet, cfg: CfgNode) -> list[dict]:
    boxed = {a["image_id"] for a in cleaned.coco["annotations"] if not a["iscrowd"]}
    keep_empty = not cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    return [i for i in cleaned.coco["images"] if keep_empty or i["id"] in boxed]
