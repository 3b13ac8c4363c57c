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
        ValueError: a file is broken, or holds something other than arrays and plain containers.
    """
    if not cfg.MODEL.LOAD_PROPOSALS:
        return
    train, test = cfg.DATASETS.PROPOSAL_FILES_TRAIN, cfg.DATASETS.PROPOSAL_FILES_TEST
    for path in test if eval_only else (*train, *test):
        read_plain_pickle(PathManager.get_local_path(path))
