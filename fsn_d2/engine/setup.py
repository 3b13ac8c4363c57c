"""From a command line to a config that can run here, checked before anything is built."""

from __future__ import annotations

import logging
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger

from ..config import add_fsn_config
from ..data import check_proposal_files, register_datasets, register_digits
from ..data.classes import num_classes_key
from ..modeling.backbone import adopt_input_statistics
from .config_files import merge_config_file
from .determinism import apply_determinism

logger = logging.getLogger(__name__)

FILE_ERRORS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


def load_config(config_file: str, opts: list[str] | None = None) -> CfgNode:
    """Reads a config file of this project and applies overrides.

    The device becomes the CPU where no GPU is at hand, and the input statistics of a timm or
    GoogLeNet backbone are adopted where the config does not state its own.

    Args:
        config_file: path of a YAML file.
        opts: alternating keys and values.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an unknown key, a value of another type, or no class.
    """
    cfg = get_cfg()
    add_fsn_config(cfg)
    if config_file and not PathManager.isfile(config_file):
        raise FileNotFoundError(f"--config-file: {config_file} does not exist.")
    try:
        if config_file:
            merge_config_file(cfg, config_file)
        cfg.merge_from_list(opts or [])
    except (AssertionError, KeyError) as error:  # what yacs raises for unknown keys
        raise ValueError(
            f"{error.args[0]} (in {config_file} or on the command line; fsn_d2/config.py lists the "
            "keys that this project adds)"
        ) from error
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    _require_classes(cfg)
    adopt_input_statistics(cfg)
    return cfg


def _require_classes(cfg: CfgNode) -> None:
    key = num_classes_key(cfg)
    if key is not None and cfg.MODEL[key].NUM_CLASSES < 1:
        raise ValueError(
            f"MODEL.{key}.NUM_CLASSES: expected 1 or more, got {cfg.MODEL[key].NUM_CLASSES}. Set "
            "it to the number of classes of the data, without background."
        )


def setup(args: Namespace) -> CfgNode:
    """Loads and freezes the config, starts logging, registers and checks the data sets.

    Args:
        args: as from `argument_parser`, or Detectron2's `default_argument_parser`.

    Raises:
        FileNotFoundError, ValueError: naming the path or key to change.
    """
    on_cpu = ["MODEL.DEVICE", "cpu"] if getattr(args, "num_processes", 0) else []
    cfg = load_config(args.config_file, [*args.opts, *on_cpu])
    cfg.freeze()
    apply_determinism(cfg)
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, comm.get_rank(), name="fsn_d2")
    if cfg.MODEL.DEVICE == "cpu":
        logger.info("Running on the CPU: no GPU was found, or MODEL.DEVICE says so.")
    register_digits()
    register_datasets(cfg, eval_only=args.eval_only)
    check_proposal_files(cfg, eval_only=args.eval_only)
    return cfg


@contextmanager
def one_line_errors() -> Iterator[None]:
    """For command lines: ends the program with `error: ...` where the user has something to change.

    To be put around set-up and the loading of weights, where such errors name a path or key; what
    fails later is worth a traceback.
    """
    try:
        yield
    except (*FILE_ERRORS, ImportError, ValueError) as error:
        sys.exit(f"error: {error}")
