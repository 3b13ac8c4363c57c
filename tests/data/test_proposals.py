"""Files of proposals that are looked at before Detectron2 loads them."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.structures import BoxMode

from fsn_d2.data import check_proposal_files


class Payload:
    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (self.mark,)


def proposals_cfg(folder: Path, *, load: bool, **files: Any) -> CfgNode:
    cfg = get_cfg()
    cfg.MODEL.LOAD_PROPOSALS = load
    for split, content in files.items():
        path = folder / f"{split}.pkl"
        if content is not None:
            path.write_bytes(pickle.dumps(content))
        cfg.DATASETS[f"PROPOSAL_FILES_{split}"] = (str(path),)
        cfg.DATASETS[split] = (f"my_{split.lower()}",)
    return cfg


@pytest.mark.parametrize("bbox_mode", [BoxMode.XYXY_ABS, BoxMode.XYXY_ABS.value])
def test_only_files_that_will_be_loaded_are_looked_at(tmp_path: Path, bbox_mode: int) -> None:
    good = {
        "ids": [1, "two"],
        "boxes": [np.zeros((3, 4), "f4")] * 2,
        "objectness_logits": [np.zeros(3, "f4")] * 2,
        "bbox_mode": bbox_mode,
    }
    bad = {**good, "ids": Payload(tmp_path / "mark")}
    cfg = proposals_cfg(tmp_path, load=True, TRAIN=bad, TEST=good)
    check_proposal_files(cfg, eval_only=True)
    with pytest.raises(ValueError, match=r"TRAIN\.pkl was not loaded: it asks for posix\.mkdir"):
        check_proposal_files(cfg)
    check_proposal_files(proposals_cfg(tmp_path, load=False, TRAIN=bad, TEST=bad))
    with pytest.raises(ValueError, match=r"TEST\.pkl"):
        check_proposal_files(proposals_cfg(tmp_path, load=True, TEST=bad), eval_only=True)
    assert not (tmp_path / "mark").exists()


def test_a_number_that_is_no_box_mode_is_refused(tmp_path: Path) -> None:
    class Unknown(Payload):
        def __reduce__(self) -> Any:
            return BoxMode, (99,)

    bad = {"bbox_mode": Unknown(tmp_path)}
    with pytest.raises(ValueError, match="99 is not a valid BoxMode"):
        check_proposal_files(proposals_cfg(tmp_path, load=True, TRAIN=bad))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"TRAIN\.pkl"):
        check_proposal_files(proposals_cfg(tmp_path, load=True, TRAIN=None))


@pytest.mark.parametrize("paths", [(), ("TRAIN.pkl", "TRAIN.pkl")])
def test_every_set_has_a_file_of_its_own(paths: tuple[str, ...], tmp_path: Path) -> None:
    cfg = proposals_cfg(tmp_path, load=True, TRAIN={})
    cfg.DATASETS.PROPOSAL_FILES_TRAIN = tuple(str(tmp_path / path) for path in paths)
    with pytest.raises(ValueError, match=rf"PROPOSAL_FILES_TRAIN: .* the 1 sets.*got {len(paths)}"):
        check_proposal_files(cfg)
    check_proposal_files(cfg, eval_only=True)
