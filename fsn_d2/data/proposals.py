"""Files of precomputed proposals, looked at before Detectron2 loads them as pickles."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager

from ..checkpoint import read_plain_pickle

__all__ = ["check_proposal_files"]


def check_proposal_files(cfg: CfgNode, *, eval_only: bool = False) -> None:
    """Reads every file of proposals that the data loaders will load, without running code of it.

    Args:
        cfg: reads ``MODEL.LOAD_PROPOSALS`` and ``DATASETS.PROPOSAL_FILES_TRAIN`` and ``_TEST``.
        eval_only: the files of the training sets are not loaded.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a data set has none, or a file is broken, or holds something other than arrays
            and plain containers.
    """
    if not cfg.MODEL.LOAD_PROPOSALS:
        return
    for split in ("TEST",) if eval_only else ("TRAIN", "TEST"):
        sets, paths = cfg.DATASETS[split], cfg.DATASETS[f"PROPOSAL_FILES_{split}"]
        if len(paths) != len(sets):
            raise ValueError(
                f"DATASETS.PROPOSAL_FILES_{split}: MODEL.LOAD_PROPOSALS is True, so expected one "
                f"file for each of the {len(sets)} sets of DATASETS.{split}, got {len(paths)}."
            )
        for path in paths:
            read_plain_pickle(PathManager.get_local_path(path))
