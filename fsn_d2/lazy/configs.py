"""What a LazyConfig file of this project holds, and how it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from detectron2.config import LazyConfig
from omegaconf import DictConfig, OmegaConf

from ..engine.setup import load_config
from .models import lazy_model
from .training import lazy_data, lazy_optimizer, lazy_run, lazy_schedule


class LazyParts(NamedTuple):
    """The names that Detectron2's LazyConfig files have, in its configs/common."""

    model: Any
    dataloader: DictConfig
    optimizer: Any
    lr_multiplier: Any
    train: DictConfig


def lazy_config(yaml_file: str | Path) -> LazyParts:
    """The LazyConfig version of a YAML config.

    Args:
        yaml_file: path; its values, those of its bases, and Detectron2's defaults are taken over,
            but for further sets of `DATASETS.TEST` and the key `WATCH`, which Detectron2's plain
            trainer has no place for.

    Raises:
        FileNotFoundError: as `load_config`.
        ValueError: as `load_config`, or a value that the trees cannot hold; the message names it.
    """
    cfg = load_config(str(yaml_file))
    return LazyParts(
        lazy_model(cfg),
        lazy_data(cfg),
        lazy_optimizer(cfg),
        lazy_schedule(cfg),
        OmegaConf.create(lazy_run(cfg)),
    )


def load_lazy_config(path: str, overrides: list[str]) -> DictConfig:
    """Runs a LazyConfig file, which is code, and applies overrides.

    Args:
        path: of a .py file.
        overrides: as on a command line, "train.max_iter=100".

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it lacks one of the names, or an override is malformed.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"--config-file: {path} does not exist.")
    cfg = LazyConfig.load(path)
    if missing := [name for name in LazyParts._fields if name not in cfg]:
        raise ValueError(f"{path} lacks {missing}; configs/lazy has files to start from.")
    if wrong := [word for word in overrides if "=" not in word]:
        raise ValueError(f"overrides are given as key=value, got {wrong}")
    return LazyConfig.apply_overrides(cfg, overrides)
