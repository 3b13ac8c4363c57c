"""What a LazyConfig file of this project holds, and how it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from detectron2.config import LazyConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

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
        ValueError: it lacks one of the names, or an override is malformed or names a key below
            `train` that is not there.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"--config-file: {path} does not exist.")
    cfg = LazyConfig.load(path)
    if missing := [name for name in LazyParts._fields if name not in cfg]:
        raise ValueError(f"{path} lacks {missing}; configs/lazy has files to start from.")
    if wrong := [word for word in overrides if "=" not in word]:
        raise ValueError(f"overrides are given as key=value, got {wrong}")
    for word in overrides:
        _require_setting(cfg, word.partition("=")[0])
    try:
        return LazyConfig.apply_overrides(cfg, overrides)
    except (HydraException, OmegaConfBaseException, KeyError, NotImplementedError) as error:
        raise ValueError(
            f"{overrides}: {error}. Quote a value that has any of ?=()[]{{}}: in it, as "
            "key='\"value\"'."
        ) from error


def _require_setting(cfg: DictConfig, key: str) -> None:
    """Calls below the other names take arguments that the file need not name; settings do not."""
    section, _, name = key.rpartition(".")
    if section.split(".")[0] != "train":
        return
    found = OmegaConf.select(cfg, section)
    if not OmegaConf.is_config(found) or name not in found:
        raise ValueError(f"{key} is no setting of the file. To add it, write +{key}=value.")
