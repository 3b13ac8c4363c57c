"""What a run's config says: kept with its results, so that those of other settings do not count."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode, get_cfg

from fsn_d2 import add_fsn_config
from fsn_d2.engine import load_config

from .grid import Grid, Run

PLACE = {"OUTPUT_DIR", "MODEL.DEVICE"}  # where a run writes and on what it runs
# Sections that some RoI heads read, those whose names begin so, and nothing else does.
READ_BY = {"MODEL.FSN.": "FSN", "MODEL.RFCN.": "RFCN", "MODEL.LIGHT_HEAD.": "LightHead"}
Settings = Mapping[str, str]  # key -> value as JSON


def config_of_run(run: Run, output: Path | None = None) -> CfgNode:
    opts = run.opts if output is None else [*run.opts, "OUTPUT_DIR", str(output)]
    return load_config(str(run.config), opts)


def check_runs(grid: Grid) -> None:
    """Raises ValueError, or what reading a config raises, for runs that could not be judged."""
    for data in grid.data:
        for method in grid.methods:
            tuning = grid.tuning_runs(data, method)
            for run in (*tuning[:1], *grid.seed_runs(data, method, None)[:1]):
                test = json.loads(settings_of(run).get("DATASETS.TEST", "[]"))
                if len(test) != 1:
                    raise ValueError(
                        f"{data}/{method}: DATASETS.TEST must be one set for one AP, got {test}"
                    )


def settings_of_config(cfg: CfgNode) -> dict[str, str]:
    """What is not Detectron2's default: this project's keys are all there."""
    theirs = dict(_flat(get_cfg()))
    ours = _flat(cfg)
    return {key: value for key, value in ours if key not in PLACE and theirs.get(key) != value}


def settings_of(run: Run) -> Settings:
    """Those of a run's config."""
    return _settings(run.config, tuple(run.opts))


@functools.cache
def _settings(config: Path, opts: tuple[str, ...]) -> Settings:
    return settings_of_config(load_config(str(config), list(opts)))


def fingerprint(settings: Settings) -> str:
    """Equal for equal settings.

    A key that they do not have counts as at its default: Detectron2's, whose versions have more
    keys or fewer, or that of a key which this project did not have when the settings were kept.
    Keys that the model does not read do not count.
    """
    complete = {**_defaults(), **settings}
    heads = json.loads(complete["MODEL.ROI_HEADS.NAME"])
    unread = tuple(section for section, name in READ_BY.items() if not heads.startswith(name))
    read = {key: value for key, value in complete.items() if not key.startswith(unread)}
    return hashlib.sha256(json.dumps(read, sort_keys=True).encode()).hexdigest()[:16]


@functools.cache
def _defaults() -> Settings:
    cfg = get_cfg()
    add_fsn_config(cfg)
    return dict(_flat(cfg))


def _flat(cfg: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for key, value in cfg.items():
        if isinstance(value, CfgNode):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield above + key, json.dumps(value)
