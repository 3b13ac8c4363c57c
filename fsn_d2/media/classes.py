"""What the classes of a model are called, without its data at hand."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..data.classes import num_classes


def class_names(cfg: CfgNode, given: Sequence[str] | None = None) -> list[str]:
    """The names in the order of the model's outputs.

    Args:
        cfg: reads DATASETS.CLASSES, else what Detectron2's catalogs know of DATASETS.TEST and
            DATASETS.TRAIN.
        given: names that come before those.

    Returns:
        As many as the model has classes; "class 0", ... where nothing knows their names.

    Raises:
        ValueError: their number is not the model's.
    """
    count = num_classes(cfg)
    found = given or cfg.DATASETS.get("CLASSES", []) or _from_catalogs(cfg)
    names = [str(name) for name in found]  # a config may hold numbers
    if not names:
        return [f"class {number}" for number in range(count)]
    if len(names) != count:
        raise ValueError(
            f"{len(names)} class names ({', '.join(names)}) for a model of {count} classes. Set "
            "DATASETS.CLASSES (for tools/demo.py --class-names will do) in the order of training."
        )
    return names


def _from_catalogs(cfg: CfgNode) -> list[str]:
    for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        if name in DatasetCatalog and (names := MetadataCatalog.get(name).get("thing_classes")):
            return list(names)
    return []
