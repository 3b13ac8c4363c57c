"""A grid: which methods are trained on which data, with which seeds and learning rates.

It is a YAML file; benchmarks/grids/main.yaml shows every key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

ROOT = Path(__file__).resolve().parents[2]
Options = Mapping[str, Any]


@dataclass(frozen=True)
class DataSet:
    """What is trained on.

    Attributes:
        name: as in tables and paths.
        configs: the ending of its config files: configs/<system>_<configs>.yaml.
        options: config keys for every run on it.
        tuning: config keys for the runs that choose a learning rate: other sets to train and to
            test on, disjoint from the test set.
    """

    name: str
    configs: str
    options: Options = field(default_factory=dict)
    tuning: Options = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """What is trained.

    Attributes:
        name: as in tables and paths.
        system: the beginning of its config files.
        options: config keys that make it of the system.
        against: methods that it is compared with.
        rates: learning rates to choose from; None: the grid's.
    """

    name: str
    system: str
    options: Options = field(default_factory=dict)
    against: Sequence[str] = ()
    rates: Sequence[float] | None = None


@dataclass(frozen=True)
class Run:
    """One training and evaluation.

    Attributes:
        data, method: names.
        seed: of everything random.
        rate: the learning rate; None: the config's.
        tuning: it serves to choose the rate.
        config: path of the config file.
        options: config keys on top of it, the rate and the seed among them.
    """

    data: str
    method: str
    seed: int
    rate: float | None
    tuning: bool
    config: Path
    options: Options

    @property
    def name(self) -> str:
        """Unique in the grid; a relative path without suffix."""
        last = f"rate{self.rate}" if self.tuning else f"seed{self.seed}"
        return f"{self.data}/{self.method}/{last}"

    @property
    def opts(self) -> list[str]:
        """The options as on a command line."""
        pairs = [
            (key, value if isinstance(value, str) else repr(value))
            for key, value in self.options.items()
        ]
        return [word for pair in pairs for word in pair]


@dataclass(frozen=True)
class Grid:
    """A grid as read from its file.

    Attributes:
        name: the file's, without suffix.
        seeds: of the runs that are reported.
        rates: learning rates to choose from, by the first seed, for methods without their own;
            empty: the configs' own.
        options: config keys for every run.
        data, methods: by name, in the order of the tables.
    """

    name: str
    seeds: Sequence[int]
    rates: Sequence[float]
    options: Options
    data: Mapping[str, DataSet]
    methods: Mapping[str, Method]

    def rates_of(self, method: str) -> Sequence[float]:
        """The learning rates that a method chooses from."""
        own = self.methods[method].rates
        return self.rates if own is None else own

    def tuning_runs(self, data: str, method: str) -> list[Run]:
        """A run per learning rate to choose from."""
        extra, rates = self.data[data].tuning, self.rates_of(method)
        return [self._run(data, method, self.seeds[0], rate, extra) for rate in rates]

    def seed_runs(
        self, data: str, method: str, rate: float | None, seeds: Sequence[int] | None = None
    ) -> list[Run]:
        """A run per seed.

        Args:
            data, method: names.
            rate: the learning rate that was chosen; None: the config's.
            seeds: None: all of the grid's.
        """
        chosen = self.seeds if seeds is None else seeds
        return [self._run(data, method, seed, rate, None) for seed in chosen]

    def _run(
        self, data: str, method: str, seed: int, rate: float | None, tuning: Options | None
    ) -> Run:
        of_data, of_method = self.data[data], self.methods[method]
        options = {**self.options, **of_data.options, **of_method.options, **(tuning or {})}
        if rate is not None:
            options["SOLVER.BASE_LR"] = rate
        options["SEED"] = seed
        config = config_of(of_method, of_data)
        return Run(data, method, seed, rate, tuning is not None, config, options)


def config_of(method: Method, data: DataSet) -> Path:
    return ROOT / "configs" / f"{method.system}_{data.configs}.yaml"


def read_grid(path: Path) -> Grid:
    """Reads and checks a grid.

    Raises:
        FileNotFoundError: there is no such file, or none of the configs it leads to.
        ValueError: a key is missing, unknown or of the wrong kind.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; the grids are in {ROOT}/benchmarks/grids.")
    try:
        content = yaml.safe_load(path.read_text())
        grid = Grid(
            name=path.stem,
            seeds=tuple(map(_seed, content.pop("seeds"))),
            rates=_numbers(content.pop("rates", ())),
            options=content.pop("options", None) or {},
            data={key: _entry(DataSet, key, value) for key, value in content.pop("data").items()},
            methods={
                key: _entry(Method, key, value) for key, value in content.pop("methods").items()
            },
        )
    except (AttributeError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        raise ValueError(
            f"{path}: {error} (a grid has seeds, data and methods, and may have rates and options; "
            "see benchmarks/grids/main.yaml)"
        ) from error
    _check(path, grid, set(content))
    return grid


Entry = TypeVar("Entry", DataSet, Method)
KINDS: Mapping[str, type] = {
    "configs": str,
    "system": str,
    "options": dict,
    "tuning": dict,
    "against": list,
    "rates": list,
}


def _entry(kind: type[Entry], name: Any, keys: Mapping[str, Any]) -> Entry:
    """A data set or method; a key without a value is left out."""
    given = {key: value for key, value in keys.items() if value is not None}
    try:
        for key, value in given.items():
            if key in KINDS and not isinstance(value, KINDS[key]):
                raise TypeError(f"{key} must be a {KINDS[key].__name__}, got {value!r}")
        if "rates" in given:
            given["rates"] = _numbers(given["rates"])
        return kind(_name(name), **given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from error


def _name(name: Any) -> str:
    """Names are parts of paths."""
    if not isinstance(name, str) or not name or "/" in name:
        raise ValueError(f"a name must be a word without '/', got {name!r}")
    return name


def _seed(seed: Any) -> int:
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ValueError(f"seeds must be whole numbers from 0 on, got {seed!r}")
    return seed


def _numbers(rates: Sequence[Any]) -> tuple[float, ...]:
    return tuple(float(rate) for rate in rates)  # YAML takes 1e-2 for a word


def _check(path: Path, grid: Grid, unknown: set[str]) -> None:
    if unknown:
        raise ValueError(f"{path}: unknown keys {sorted(unknown)}")
    if not grid.seeds:
        raise ValueError(f"{path}: seeds is empty, give at least one number")
    if len(set(grid.seeds)) < len(grid.seeds):
        raise ValueError(f"{path}: seeds must differ, got {list(grid.seeds)}")
    for method in grid.methods.values():
        if strange := set(method.against) - set(grid.methods):
            raise ValueError(f"{path}: {method.name} is against {sorted(strange)}, no such method")
        for data in grid.data.values():
            if not (config := config_of(method, data)).is_file():
                raise FileNotFoundError(
                    f"{path}: {method.name} on {data.name} needs {config}, which does not exist"
                )
    chooses = any(map(grid.rates_of, grid.methods))
    for data in grid.data.values():
        if chooses and not {"DATASETS.TRAIN", "DATASETS.TEST"} <= set(data.tuning):
            raise ValueError(
                f"{path}: rates are to be chosen, so {data.name} needs tuning: with DATASETS.TRAIN "
                "and DATASETS.TEST, without any image of the test set"
            )
