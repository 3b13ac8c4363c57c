"""A user's own data, registered with Detectron2 under the spec string that names it.

The way of the data: `parse_spec` (specs), `read_coco` or `read_voc` into one form (source),
`choose_classes` and `class_problems` (classes), `clean` (cleaning), all of them called by
`check_datasets` (checking); then Detectron2's own COCO registration, on the user's file or on a
cleaned copy of it. What is wrong is collected on the way and reported together (problems).
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.utils import comm

from .checking import check_datasets
from .cleaning import CleanedSet, describe
from .keypoints import keypoint_metadata
from .problems import Problem, raise_problems
from .source import Coco
from .writing import write_json

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

    What cannot be skipped is reported for all sets at once, and nothing is registered. A report
    too long to show is written to ``<OUTPUT_DIR>/datasets/problems.txt``.

    Args:
        cfg: reads ``DATASETS.TRAIN``, ``DATASETS.TEST``, ``DATASETS.CLASSES``,
            ``DATASETS.ALLOW_OUTSIDE``, ``DATALOADER.FILTER_EMPTY_ANNOTATIONS``,
            ``INPUT.MAX_PIXELS``, ``INPUT.MAX_SIZE_TRAIN`` and ``_TEST``, ``OUTPUT_DIR``,
            ``MODEL.MASK_ON``, ``MODEL.KEYPOINT_ON``, ``MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS``,
            ``TEST.KEYPOINT_OKS_SIGMAS``, ``MODEL.META_ARCHITECTURE`` and the ``NUM_CLASSES`` that
            this architecture uses.
        eval_only: training sets serve only to find the classes and may be absent.

    Raises:
        FileNotFoundError: a path, split or file of Detectron2's own sets is missing.
        ValueError: an unknown name, a malformed spec or annotation file, an unknown class, classes
            that contradict each other or ``NUM_CLASSES``, no box to train on, or processes that see
            different images.
    """
    sets, problems = check_datasets(cfg, eval_only=eval_only)
    for name, cleaned in sets.items():
        if cleaned.findings:
            logger.warning("Data set %s: %s.", name, "; ".join(describe(cleaned.findings)))
    folder = Path(cfg.OUTPUT_DIR) / "datasets"
    _require_equal_sets(sets, problems)
    raise_problems(problems, folder / "problems.txt")
    for cleaned in sets.values():
        _register(cleaned, folder, keypoint_metadata(cleaned.coco))


def _require_equal_sets(sets: Mapping[str, CleanedSet], problems: Sequence[Problem]) -> None:
    """Processes share a set out by its length: of different images they would leave some out.

    To be called by all of them, those with problems too, which say their own.
    """
    if problems:
        comm.all_gather(None)
        return
    ours = {name: _fingerprint(cleaned.coco) for name, cleaned in sets.items()}
    for rank, theirs in enumerate(comm.all_gather(ours)):
        if theirs is None:
            raise ValueError(f"Process {rank} found problems in the data, which it says itself.")
        if differing := [name for name in ours if theirs.get(name) != ours[name]]:
            raise ValueError(
                f"Process {rank} can use other images or boxes of {', '.join(differing)} than "
                f"process {comm.get_rank()}: their machines have different files, or one could not "
                "read some of them. Look at the warnings above and in OUTPUT_DIR/log.txt.rank*."
            )


def _fingerprint(coco: Coco) -> str:
    images = [(image["file_name"], image["width"], image["height"]) for image in coco["images"]]
    content = repr((images, len(coco.get("annotations", ()))))
    return hashlib.sha256(content.encode("utf-8", "backslashreplace")).hexdigest()


def _register(cleaned: CleanedSet, folder: Path, metadata: dict[str, Any]) -> None:
    source = cleaned.source
    name = source.spec.name
    json_file = source.spec.path
    if not source.verbatim or cleaned.coco != source.coco or _has_broken_sizes(source.coco):
        json_file = write_json(cleaned.coco, folder / f"{safe_name(name)}.json")
    for catalog in (DatasetCatalog, MetadataCatalog):
        if name in catalog:
            catalog.remove(name)
    register_coco_instances(name, metadata, str(json_file), str(source.image_root))
    DatasetCatalog.get(name)  # fills in the class names


def _has_broken_sizes(coco: Coco) -> bool:
    """Whether a size is 640.0, say: equal to that of the image, but masks need whole numbers."""
    sizes = (image.get(side) for image in coco["images"] for side in ("width", "height"))
    return not all(isinstance(size, int) for size in sizes)


def safe_name(name: str) -> str:
    """The name of a data set, or its specification, as that of a file; each has its own."""
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9.-]+', '_', name)[-80:].strip('_.')}-{digest}"
