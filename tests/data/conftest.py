"""A small VOC set, and configs whose data sets are forgotten after the test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog

from fsn_d2.data.config import add_data_config

from .small_sets import write_voc


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    root = tmp_path / "voc"
    cat, dog = ("cat", (1, 1, 40, 30)), ("dog", (5, 6, 14, 25))
    write_voc(root, "train", {"a": [dog, cat], "b": [cat], "empty": []})
    write_voc(root, "test", {"c": [cat, dog]})
    return root


@pytest.fixture
def make_cfg(tmp_path: Path):
    """A config with the data keys; removes from the catalogs what a test registered."""
    before = set(DatasetCatalog.list()), set(MetadataCatalog.list())

    def make(
        train: tuple[str, ...] = (), test: tuple[str, ...] = (), num_classes: int = 2, **keys: Any
    ) -> CfgNode:
        cfg = get_cfg()
        add_data_config(cfg)
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = train, test
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = num_classes
        cfg.OUTPUT_DIR = str(tmp_path / "out")
        cfg.DATASETS.CLASSES = keys.get("classes", [])
        return cfg

    yield make
    for catalog, names in zip((DatasetCatalog, MetadataCatalog), before, strict=True):
        for name in set(catalog.list()) - names:
            catalog.remove(name)
