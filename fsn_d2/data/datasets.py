"""A user's own data, registered with Detectron2 under the spec string that names it.

The way of the data: `parse_spec` (specs), `read_coco` or `read_voc` into one form (source),
`choose_classes` and `check_classes` (classes), `clean` (cleaning), then Detectron2's own COCO
registration, on the user's file or on a cleaned copy of it.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from .classes import check_classes, choose_classes
from .cleaning import clean, describe
from .coco_source import read_coco
from .image_header import MAX_PIXELS
from .source import Coco, Source
from .specs import SPEC_SYNTAX, DatasetSpec, parse_spec
from .voc_source import read_voc

__all__ = ["register_datasets"]

logger = logging.getLogger(__name__)


def register_datasets(cfg: CfgNode, *, eval_only: bool = False) -> None:
    """Checks every data set of the config and registers those given by a spec string.

    To be called before the trainer is built, in every process. Calling it again reads the data
    again and replaces the registration. Names that are registered already (Detectron2's own, or a
    user's) are left alone; their files, classes and number of classes are checked as far as
    Detectron2's catalogs tell without opening a file.

    Boxes without area, unreadable images, images outside the set's folder and similar defects are
    skipped and counted in one warning per set. A set that was changed by this, and every VOC set,
    is written to ``<OUTPUT_DIR>/datasets/`` as a COCO json, which training and evaluation then
    both use.

    Args:
        cfg: reads ``DATASETS.TRAIN``, ``DATASETS.TEST``, ``DATASETS.CLASSES``,
            ``DATASETS.ALLOW_OUTSIDE``, ``INPUT.MAX_PIXELS``, ``OUTPUT_DIR``,
            ``MODEL.META_ARCHITECTURE`` and the ``NUM_CLASSES`` that this architecture uses.
        eval_only: training sets serve only to find the classes and may be absent.

    Raises:
        FileNotFoundError: a path, split or file of Detectron2's own sets is missing.
        ValueError: an unknown name, a malformed spec or annotation file, an unknown class, or
            classes that contradict each other or ``NUM_CLASSES``.
    """
    train, test = tuple(cfg.DATASETS.TRAIN), tuple(cfg.DATASETS.TEST)
    needed = tuple(dict.fromkeys(test if eval_only else train + test))
    specs = {name: spec for name in needed if (spec := _look_up(name))}
    for name in needed:
        if name not in specs:
            _check_registered_files(name)
    outside = cfg.DATASETS.get("ALLOW_OUTSIDE", False)
    sources = {n: _read(s, annotated=n in train, outside=outside) for n, s in specs.items()}
    if eval_only and not cfg.DATASETS.get("CLASSES", []):
        sources = _read_if_there(set(train) - set(test), outside=outside) | sources
    classes = choose_classes(cfg, train, test, sources)
    if classes is None:
        return
    check_classes(cfg, needed, sources, classes)
    for name in specs:
        _register(sources[name], classes, cfg, decode=name in test)


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


def _read_if_there(names: Iterable[str], *, outside: bool) -> dict[str, Source]:
    """Reads the specs among the names whose files are there."""
    sources = {}
    for name in names:
        spec = parse_spec(name)
        with contextlib.suppress(FileNotFoundError):
            if spec is not None:
                sources[name] = _read(spec, annotated=False, outside=outside)
    return sources


def _read(spec: DatasetSpec, *, annotated: bool, outside: bool) -> Source:
    if spec.kind == "coco":
        return read_coco(spec, annotated=annotated)
    return read_voc(spec, allow_outside=outside)


def _register(source: Source, classes: list[str], cfg: CfgNode, *, decode: bool) -> None:
    spec = source.spec
    cleaned, findings = clean(
        source,
        classes,
        decode=decode,
        max_pixels=cfg.INPUT.get("MAX_PIXELS", MAX_PIXELS),
        allow_outside=cfg.DATASETS.get("ALLOW_OUTSIDE", False),
    )
    if findings:
        logger.warning("Data set %s: %s.", spec.name, describe(findings))
    json_file = spec.path
    if spec.kind == "voc" or cleaned != source.coco:
        folder = Path(cfg.OUTPUT_DIR) / "datasets"
        json_file = _write_json(cleaned, folder / f"{_safe_name(spec.name)}.json")
    for catalog in (DatasetCatalog, MetadataCatalog):
        if spec.name in catalog:
            catalog.remove(spec.name)
    register_coco_instances(spec.name, {}, str(json_file), str(source.image_root))
    # Loading fills in the class names, and refuses a malformed mask now rather than hours later.
    try:
        DatasetCatalog.get(spec.name)
    except (TypeError, ValueError) as error:  # from pycocotools
        raise ValueError(
            f"Data set {spec.name!r}: {spec.path} holds a malformed segmentation ({error}). "
            "Correct it, or remove it from the annotation."
        ) from error


def _safe_name(name: str) -> str:
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9.-]+', '_', name)[-80:].strip('_.')}-{digest}"


def _write_json(coco: Coco, path: Path) -> Path:
    """Writes so that another process never sees half a file; equal data gives equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=path.parent, suffix=".tmp", delete=False
    ) as file:
        json.dump(coco, file, sort_keys=True)
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)
    return path
