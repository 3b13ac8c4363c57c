"""The comparison: its grids are what they say, nothing is run twice, and its figures are right."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from detectron2.config import CfgNode
from PIL import Image

ROOT = Path(__file__).parents[2]
GRIDS = sorted((ROOT / "benchmarks" / "grids").glob("*.yaml"))
REPORTS = sorted((ROOT / "benchmarks" / "results").glob("*/README.md"))


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The modules of the comparison, found as `python benchmarks/compare.py` finds them."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import compare
    from comparison import grid, plots, report, results, runner, settings, statistics

    return SimpleNamespace(
        compare=compare,
        grid=grid,
        plots=plots,
        report=report,
        results=results,
        runner=runner,
        settings=settings,
        statistics=statistics,
    )


def small_grid() -> dict[str, Any]:
    return {
        "seeds": [3, 4],
        "rates": [0.01, 0.02],
        "data": {
            "bccd": {
                "configs": "Lite0_BCCD",
                "tuning": {"DATASETS.TRAIN": "('a',)", "DATASETS.TEST": "('b',)"},
            }
        },
        "options": {"SOLVER.MAX_ITER": 10},
        "methods": {
            "plain": {"system": "fsn", "options": {"MODEL.FSN.RATIOS": []}},
            "fsn": {"system": "fsn", "against": ["plain"]},
        },
    }


def results_of(content: dict[str, Any], modules: SimpleNamespace, folder: Path) -> Any:
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return modules.results.Results(modules.grid.read_grid(path), folder / "results")


@pytest.fixture
def results(modules: SimpleNamespace, tmp_path: Path) -> Any:
    return results_of(small_grid(), modules, tmp_path)


def pretend(results: Any, modules: SimpleNamespace, run: Any, ap: float, **metrics: float) -> None:
    """Writes what the run would have left."""
    content = {
        "run": {"seed": run.seed, "options": dict(run.options)},
        "settings": modules.settings.settings_of(run),
        "facts": {"commit": "1" * 40, "gpu": None, "cpu": "a CPU", "torch": "2.0"},
        "metrics": {"AP": ap, "AP50": ap + 30, **metrics},
        "peak_memory_mib": 1000.0,
    }
    results.write(run, content)


# ---------------------------------------------------------------------------- grids


@pytest.mark.parametrize("path", GRIDS, ids=[path.stem for path in GRIDS])
def test_the_grids_of_the_repository_make_configs(path: Path, modules: SimpleNamespace) -> None:
    grid = modules.grid.read_grid(path)
    prints = set()
    for data in grid.data:
        for method in grid.methods:
            (run, *_) = grid.seed_runs(data, method, 0.5)
            cfg = modules.settings.config_of_run(run)
            assert cfg.SOLVER.BASE_LR == 0.5
            assert grid.seeds[0] == cfg.SEED
            prints.add(modules.settings.fingerprint(modules.settings.settings_of(run)))
            for tuning in grid.tuning_runs(data, method):
                tuned = modules.settings.config_of_run(tuning)
                assert not set(tuned.DATASETS.TEST) & set(cfg.DATASETS.TEST)
                assert not set(tuned.DATASETS.TRAIN) & set(cfg.DATASETS.TEST)
    assert len(prints) == len(grid.data) * len(grid.methods), "two methods are the same"


def test_options_of_grid_data_method_and_tuning_reach_the_config(
    results: Any, modules: SimpleNamespace
) -> None:
    low, high = results.grid.tuning_runs("bccd", "plain")
    cfg = modules.settings.config_of_run(high)
    assert cfg.SOLVER.MAX_ITER == 10 and cfg.MODEL.FSN.RATIOS == [] and cfg.SEED == 3
    assert cfg.SOLVER.BASE_LR == 0.02 and cfg.DATASETS.TRAIN == ("a",)
    assert low.name == "bccd/plain/rate0.01"
    of_seeds = results.grid.seed_runs("bccd", "plain", 0.01)
    assert [run.name for run in of_seeds] == ["bccd/plain/seed3", "bccd/plain/seed4"]


def test_a_method_may_have_rates_of_its_own(modules: SimpleNamespace, tmp_path: Path) -> None:
    content = small_grid()
    content["methods"]["fsn"]["rates"] = ["5e-3"]
    results = results_of(content, modules, tmp_path)
    rates = {m: [r.rate for r in results.grid.tuning_runs("bccd", m)] for m in ("plain", "fsn")}
    assert rates == {"plain": [0.01, 0.02], "fsn": [0.005]}
    for method in rates:
        for run in results.grid.tuning_runs("bccd", method):
            pretend(results, modules, run, 40.0 + run.rate)
    table = modules.report.markdown(results)
    assert "0.02 (highest tried)" in table and "0.005 (highest tried)" in table


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": []}, "seeds is empty"),
        ({"methods": {"a": {"system": "fsn", "rates": ["fast"]}}}, "'fast'"),
        ({"seeds": None}, "a grid has seeds"),
        ({"wrong": 1}, r"unknown keys \['wrong'\]"),
        ({"methods": {"a": {"system": "fsn", "against": ["b"]}}}, r"against \['b'\]"),
        ({"methods": {"a": {"sistem": "fsn"}}}, "sistem"),
        ({"methods": {"a": {"system": "fsn", "against": "fsn"}}}, "a: against must be a list"),
        ({"methods": {"a": {"against": []}}}, "a: .*'system'"),
        ({"methods": {"a/b": {"system": "fsn"}}}, "a/b: a name must be a word"),
        ({"data": {"bccd": {"configs": "Lite0_BCCD"}}}, "bccd needs tuning"),
        ({"data": {"bccd": {"configs": "Lite0_BCCD", "tuning": ["a"]}}}, "bccd: tuning must be a"),
        ({"seeds": [0.5]}, "whole numbers from 0 on, got 0.5"),
        ({"seeds": [1, 1]}, r"seeds must differ, got \[1, 1\]"),
    ],
)
def test_a_wrong_grid_is_refused(
    change: dict, message: str, modules: SimpleNamespace, tmp_path: Path
) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump({**small_grid(), **change}))
    with pytest.raises(ValueError, match=message):
        modules.grid.read_grid(path)


def test_a_key_without_a_value_is_left_out(modules: SimpleNamespace, tmp_path: Path) -> None:
    content = small_grid()
    content["methods"]["fsn"] |= {"options": None, "against": None, "rates": None}
    grid = results_of(content, modules, tmp_path).grid
    assert grid.methods["fsn"] == modules.grid.Method("fsn", "fsn")
    assert len(grid.tuning_runs("bccd", "fsn")) == 2


def test_runs_with_several_test_sets_are_refused(results: Any, modules: SimpleNamespace) -> None:
    modules.settings.check_runs(results.grid)
    options = {**results.grid.options, "DATASETS.TEST": "('a', 'b')"}
    with pytest.raises(ValueError, match=r"bccd/plain: DATASETS.TEST .* got \['a', 'b'\]"):
        modules.settings.check_runs(replace(results.grid, options=options))


def test_a_grid_of_configs_that_do_not_exist_is_refused(
    modules: SimpleNamespace, tmp_path: Path
) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump({**small_grid(), "methods": {"a": {"system": "frcnn"}}}))
    with pytest.raises(FileNotFoundError, match=r"frcnn_Lite0_BCCD\.yaml"):
        modules.grid.read_grid(path)
    with pytest.raises(FileNotFoundError, match=r"none\.yaml"):
        modules.grid.read_grid(tmp_path / "none.yaml")


# ---------------------------------------------------------------------------- what is left


def test_rates_are_chosen_first_and_seeds_follow_with_the_best(
    results: Any, modules: SimpleNamespace
) -> None:
    plan = modules.compare.Plan(results, ["bccd"], ["plain", "fsn"])
    names = [run.name for run in plan.left()]
    assert names == [f"bccd/{m}/rate{r}" for m in ("plain", "fsn") for r in (0.01, 0.02)]
    for run, ap in zip(results.grid.tuning_runs("bccd", "plain"), (40.0, 30.0), strict=True):
        pretend(results, modules, run, ap)
    assert [run.name for run in plan.left()] == [
        *(f"bccd/fsn/rate{r}" for r in (0.01, 0.02)),
        *(f"bccd/plain/seed{s}" for s in (3, 4)),
    ]
    for run, ap in zip(results.grid.tuning_runs("bccd", "fsn"), (40.0, 41.0), strict=True):
        pretend(results, modules, run, ap)
    left = plan.left()
    assert [run.name for run in left] == [
        f"bccd/{m}/seed{s}" for s in (3, 4) for m in ("plain", "fsn")
    ]
    assert [run.rate for run in left] == [0.01, 0.02, 0.01, 0.02]


def test_the_seeds_that_are_named_are_run_alone(results: Any, modules: SimpleNamespace) -> None:
    for run in results.grid.tuning_runs("bccd", "fsn"):
        pretend(results, modules, run, 40.0)
    plan = modules.compare.Plan(results, ["bccd"], ["fsn"], [4])
    assert [run.name for run in plan.left()] == ["bccd/fsn/seed4"]
    pretend(results, modules, plan.left()[0], 40.0)
    assert plan.left() == []
    assert modules.compare.Plan(results, ["bccd"], ["fsn"]).next().name == "bccd/fsn/seed3"


def test_methods_are_timed_together_with_those_that_were(
    results: Any, modules: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = []

    def cost_of(runs: dict[str, Any], rounds: int) -> dict[str, Any]:
        timed.append(list(runs))
        settings = {name: modules.settings.settings_of(run) for name, run in runs.items()}
        return {"methods": {name: {"settings": value} for name, value in settings.items()}}

    monkeypatch.setattr(modules.compare, "measure_costs", cost_of)
    for methods, anew in ((["fsn"], False), (["fsn"], False), (["plain"], False), (["fsn"], True)):
        plan = modules.compare.Plan(results, ["bccd"], methods)
        modules.compare.measure_missing_costs(plan, 2, anew=anew)
    assert timed == [["fsn"], ["plain", "fsn"], ["plain", "fsn"]]


def test_a_result_of_other_settings_does_not_count(results: Any, modules: SimpleNamespace) -> None:
    run, other = results.grid.tuning_runs("bccd", "fsn")
    pretend(results, modules, run, 40.0)
    assert results.read(run)["metrics"]["AP"] == 40
    stored = json.loads(results.path_of(run).read_text())
    results.write(other, stored)  # what another rate found
    assert results.read(other) is None


def test_a_result_without_its_settings_is_refused(results: Any, modules: SimpleNamespace) -> None:
    run = results.grid.tuning_runs("bccd", "fsn")[0]
    results.write(run, {"fingerprint": "0" * 16, "metrics": {"AP": 40.0}})
    with pytest.raises(ValueError, match=r"rate0\.01\.json does not say which settings"):
        results.read(run)
    with pytest.raises(ValueError, match=r"rate0\.01\.json"):
        modules.results.Results(results.grid, results.folder, others=results.folder.parent)


def test_mixed_precision_counts_and_the_machine_does_not(
    results: Any, modules: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = results.grid.seed_runs("bccd", "fsn", None)[0]
    mixed = replace(run, options={**run.options, "SOLVER.AMP.ENABLED": True})
    on_cpu = modules.settings.settings_of(run)
    modules.settings._settings.cache_clear()
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert modules.settings.settings_of(run) == on_cpu
    assert modules.settings.settings_of(mixed) == {**on_cpu, "SOLVER.AMP.ENABLED": "true"}
    modules.settings._settings.cache_clear()


@pytest.fixture
def later_defaults(modules: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Gives other defaults to the configs that are read: `later_defaults(theirs, ours)`, key ->
    value, keys that are new or not, of Detectron2's and of this project."""
    caches = (modules.settings._settings, modules.settings._defaults)
    d2_defaults, add_ours = modules.settings.get_cfg, modules.settings.add_fsn_config

    def change(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
        def get_cfg() -> CfgNode:
            return with_keys(d2_defaults(), theirs)

        def add_fsn_config(cfg: CfgNode) -> None:
            add_ours(cfg)
            with_keys(cfg, ours)

        for module in ("comparison.settings", "fsn_d2.engine.setup"):
            monkeypatch.setattr(sys.modules[module], "get_cfg", get_cfg)
            monkeypatch.setattr(sys.modules[module], "add_fsn_config", add_fsn_config)
        for cache in caches:
            cache.cache_clear()

    yield change
    for cache in caches:
        cache.cache_clear()


def with_keys(cfg: CfgNode, keys: dict[str, Any]) -> CfgNode:
    for key, value in keys.items():
        *above, last = key.split(".")
        node = cfg
        for name in above:
            node = node[name]
        node[last] = value
    return cfg


@pytest.mark.parametrize(
    ("theirs", "ours", "counts"),
    [
        ({"FLOAT32_PRECISION": "", "SOLVER.NUM_DECAYS": 3}, {}, True),  # Detectron2's main has them
        ({}, {"MODEL.FSN.NEW": "as before"}, True),
        ({}, {"MODEL.FSN.GRID": 4}, False),  # another default, which the run would have
    ],
)
def test_keys_that_came_later_leave_results_alone_and_other_defaults_do_not(
    theirs: dict[str, Any],
    ours: dict[str, Any],
    counts: bool,
    results: Any,
    modules: SimpleNamespace,
    later_defaults: Any,
) -> None:
    run, other = results.grid.seed_runs("bccd", "fsn", 0.01)
    pretend(results, modules, run, 40.0)
    later_defaults(theirs, ours)
    assert (results.read(run) is not None) == counts
    assert results.read(other) is None
    again = modules.results.Results(results.grid, results.folder, others=results.folder.parent)
    assert (again.read(run) is not None) == counts


@pytest.mark.parametrize(
    ("key", "value", "counts"),
    [
        ("MODEL.FSN.MERGE", "multiply", True),  # Faster R-CNN reads neither
        ("MODEL.RFCN.K", 3, True),
        ("MODEL.ROI_BOX_HEAD.NUM_FC", 3, False),
    ],
)
def test_a_key_that_the_model_does_not_read_leaves_its_results_alone(
    key: str, value: Any, counts: bool, results: Any, modules: SimpleNamespace
) -> None:
    run = results.grid.seed_runs("bccd", "fsn", 0.01)[0]
    run = replace(run, config=run.config.with_name("faster_rcnn_Lite0_BCCD.yaml"))
    pretend(results, modules, run, 40.0)
    changed = replace(run, options={**run.options, key: value})
    assert (results.read(changed) is not None) == counts


def test_a_later_key_counts_at_another_value(
    results: Any, modules: SimpleNamespace, later_defaults: Any
) -> None:
    run = results.grid.seed_runs("bccd", "fsn", 0.01)[0]
    pretend(results, modules, run, 40.0)
    later_defaults({}, {"MODEL.FSN.NEW": "as before"})
    changed = replace(run, options={**run.options, "MODEL.FSN.NEW": "otherwise"})
    assert results.read(changed) is None


@pytest.mark.parametrize("path", REPORTS, ids=[path.parent.stem for path in REPORTS])
def test_the_tables_of_the_repository_are_what_its_results_say(
    path: Path, modules: SimpleNamespace
) -> None:
    name = path.parent.stem
    results = modules.compare.results_of(modules.compare.grid_of(name), name, None)
    assert path.read_text() == modules.report.markdown(results)


@pytest.mark.parametrize(
    ("threads", "slots", "hours"),
    [
        (2, (2, 1, 0), 300 / 3600),  # 10 * (4 * 3 + 3 * 6) s; runs share what was timed with
        (1, (2, 1, 0), 150 / 3600),
        (2, (8, 4, 1), 37.5 / 3600),  # each on a GPU of its own
    ],
)
def test_the_time_that_is_left_by_hand(
    threads: int,
    slots: tuple[int, int, int],
    hours: float,
    results: Any,
    modules: SimpleNamespace,
) -> None:
    # Two rates and two seeds of either method, 10 iterations each; one of the 8 runs is done.
    costs = {
        name: {
            "settings": modules.settings.settings_of(results.grid.seed_runs("bccd", name, None)[0]),
            "seconds_per_iteration": {"median": seconds},
        }
        for name, seconds in (("plain", 3.0), ("fsn", 6.0))
    }
    facts = {"cpu": "a CPU", "gpu": None, "threads": threads}
    modules.results.write_json(
        modules.report.cost_path(results, "bccd"), {"facts": facts, "methods": costs}
    )
    pretend(results, modules, results.grid.tuning_runs("bccd", "fsn")[1], 40.0)
    plan = modules.compare.Plan(results, ["bccd"], ["plain", "fsn"])
    slots = modules.runner.Slots(*slots)
    assert plan.hours(slots) == (7, pytest.approx(hours))
    assert "by steps timed on a CPU" in plan.describe(slots)


def test_what_another_grid_has_done_is_not_repeated(
    results: Any, modules: SimpleNamespace, tmp_path: Path
) -> None:
    run, other = results.grid.tuning_runs("bccd", "fsn")
    pretend(results, modules, run, 40.0)
    grid, folder = results.grid, tmp_path / "grids" / "second"
    second = modules.results.Results(grid, folder, others=tmp_path)
    assert second.read(run)["metrics"]["AP"] == 40
    assert second.read(other) is None
    pretend(second, modules, run, 41.0)  # its own comes first
    assert second.read(run)["metrics"]["AP"] == 41
    assert modules.results.Results(grid, tmp_path / "alone").read(run) is None


def test_a_diverged_run_is_the_same_to_every_grid(
    results: Any, modules: SimpleNamespace, tmp_path: Path
) -> None:
    low, high = results.grid.tuning_runs("bccd", "fsn")
    pretend(results, modules, low, 0.0)  # learnt nothing
    diverged = json.loads(results.path_of(low).read_text())
    diverged |= {**modules.results.NOTHING, "process": {"diverged": True}}
    results.write(high, {**diverged, "settings": modules.settings.settings_of(high)})
    assert results.rate_of("bccd", "fsn") == 0.01
    results.write(low, {**diverged, "settings": modules.settings.settings_of(low)})
    pretend(results, modules, high, 0.0)
    assert results.rate_of("bccd", "fsn") == 0.02
    # To a grid without rates the first is a seed.
    extra = {**results.grid.data["bccd"].tuning, "SOLVER.BASE_LR": 0.01}
    grid = replace(results.grid, rates=(), options={**results.grid.options, **extra})
    again = modules.results.Results(grid, tmp_path / "grids" / "second", others=tmp_path)
    assert modules.report.scores(again, "bccd", "fsn", "AP") == {3: 0.0}
    assert modules.report.scores(again, "bccd", "fsn", "AP50") == {3: 0.0}


# ---------------------------------------------------------------------------- figures


def test_the_interval_by_hand(modules: SimpleNamespace) -> None:
    # Differences 1 and 3; their resamples have the means 1, 2, 2, 3, and two values say so little
    # that the bounds are the outermost: the normal percentile of -sqrt(2) * 12.7 is 0.
    interval = modules.statistics.paired_interval([5.0, 9.0], [4.0, 6.0])
    assert interval == (2.0, pytest.approx(1.0), pytest.approx(3.0), 2)
    assert modules.statistics.paired_interval([5.0], [4.0]) == (1.0, -math.inf, math.inf, 1)


@pytest.mark.parametrize(("seeds", "share"), [(5, 0.92), (3, 0.75), (2, 0.5)])
def test_the_interval_holds_the_true_difference_as_often_as_is_said(
    seeds: int, share: float, modules: SimpleNamespace
) -> None:
    rng = np.random.default_rng(0)
    found = [
        modules.statistics.paired_interval(list(rng.normal(1.0, 0.5, seeds)), [0.0] * seeds)
        for _ in range(2000)
    ]
    assert np.mean([it.low <= 1.0 <= it.high for it in found]) == pytest.approx(share, abs=0.03)


def test_equal_differences_leave_no_doubt_and_many_pairs_are_drawn(
    modules: SimpleNamespace,
) -> None:
    assert modules.statistics.paired_interval([1.0] * 4, [0.5] * 4)[:3] == (0.5, 0.5, 0.5)
    values = [float(i % 5) for i in range(200)]
    interval = modules.statistics.paired_interval(values, [0.0] * 200)
    # The normal approximation: 1.96 * sqrt(2 / 200).
    assert interval.high - interval.mean == pytest.approx(0.196, abs=0.01)
    with pytest.raises(ValueError, match="2 and 1"):
        modules.statistics.paired_interval([1, 2], [1])


def test_the_tables_hold_means_and_paired_differences(
    results: Any, modules: SimpleNamespace
) -> None:
    for name, aps in (("plain", (50.0, 54.0)), ("fsn", (51.0, 57.0))):
        for run in results.grid.tuning_runs("bccd", name):
            pretend(results, modules, run, 1.0)
        for run, ap in zip(results.grid.seed_runs("bccd", name, 0.01), aps, strict=True):
            pretend(results, modules, run, ap)
    text = modules.report.markdown(results)
    assert "| fsn | 54.0 ± 4.2 | 84.0 ± 4.2 |" in text  # sqrt(18)
    (difference,) = [line for line in text.splitlines() if line.startswith("| fsn - plain |")]
    assert "| +2.0 [+1.0, +3.0] |" in difference and difference.endswith("| 2 |")
    assert "| 0.01 (lowest tried) |" in text
    (row,) = [line for line in text.splitlines() if line.startswith("| fsn |")]
    assert row.endswith("| 1111111 |") and "Runs: 4" in text


def test_a_metric_without_objects_leaves_its_cells_empty(
    results: Any, modules: SimpleNamespace
) -> None:
    for name in ("plain", "fsn"):
        for run in results.grid.tuning_runs("bccd", name):
            pretend(results, modules, run, 1.0)
        for run in results.grid.seed_runs("bccd", name, 0.01):
            pretend(results, modules, run, 50.0, **{"AP-wide": math.nan, "AP-square": 40.0})
    lines = modules.report.markdown(results).splitlines()
    (head,) = [line.split(" | ") for line in lines if line.startswith("| method")]
    cells = next(line.split(" | ") for line in lines if line.startswith("| fsn |"))
    assert cells[head.index("AP-wide")] == "-"
    assert cells[head.index("AP-square")] == "40.0 ± 0.0"
    same = "+0.0 [+0.0, +0.0]"
    assert f"| fsn - plain | {same} | {same} | - | {same} | - | 2 |" in lines


def test_the_report_says_what_its_figures_rest_on(results: Any, modules: SimpleNamespace) -> None:
    for run in results.grid.tuning_runs("bccd", "fsn"):
        pretend(results, modules, run, 1.0)
    first, second = results.grid.seed_runs("bccd", "fsn", 0.01)
    pretend(results, modules, first, 50.0)
    pretend(results, modules, second, 0.0)
    lost = json.loads(results.path_of(second).read_text())
    lost["process"] = {"diverged": True}
    lost["resumed"] = [{**lost["facts"], "commit": "2" * 40, "uncommitted_changes": True}]
    lost["fewest_objects"] = {"APs": 7, "AP-wide": 1}
    results.write(second, lost)
    text = modules.report.markdown(results)
    assert "Runs: 2; a CPU, torch 2.0." in text and "| 1111111, 2222222 with changes |" in text
    assert "fewest: APs 7, AP-wide 1." in text and "| 2 (1 diverged) |" in text


def test_every_data_set_with_runs_and_costs_has_a_picture(
    modules: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = small_grid()
    content["rates"] = []
    rates = [0.001 * number for number in range(1, 12)]  # more methods than colours
    content["methods"] = {
        f"m{number}": {"system": "fsn", "options": {"SOLVER.BASE_LR": rate}}
        for number, rate in enumerate(rates)
    }
    monkeypatch.setattr(modules.plots, "MARKERS", "o")
    results = results_of(content, modules, tmp_path)
    assert modules.plots.save_plots(results, tmp_path) == []
    costs = {}
    for name in results.grid.methods:
        run = results.grid.seed_runs("bccd", name, None)[0]
        pretend(results, modules, run, 40.0)
        costs[name] = {"settings": modules.settings.settings_of(run), "parameters": 1, "gmac": 0.5}
    modules.results.write_json(modules.report.cost_path(results, "bccd"), {"methods": costs})
    (picture,) = modules.plots.save_plots(results, tmp_path)
    assert Image.open(picture).size[0] > 1000


def test_the_channels_that_a_head_gets(modules: SimpleNamespace) -> None:
    grid = modules.compare.grid_of("main")
    found = {
        name: modules.plots.channels_after_pooling(grid.seed_runs("bccd", name, None)[0])
        for name in ("faster_rcnn", "faster_rcnn_256", "plain_512", "fsn", "rfcn", "fsaf")
    }
    assert list(found.values()) == [96, 256, 512, 40, None, None]


def test_a_half_done_grid_has_a_table_of_what_is_done(
    results: Any, modules: SimpleNamespace
) -> None:
    assert "No run is done." in modules.report.markdown(results)


# ---------------------------------------------------------------------------- processes

FAKE = """
import sys, time, pathlib
folder = pathlib.Path(sys.argv[sys.argv.index("OUTPUT_DIR") + 1])
name = folder.name.partition("-")[0]
if name == "seed3":
    print("started", flush=True)
    time.sleep(60)
if name == "rate0.02":
    sys.exit("error: no such thing")
(folder / "arguments").write_text(" ".join(sys.argv))
(folder / "metrics.json").write_text('{"bbox/AP": 40.0}')
"""


@pytest.fixture
def runner(modules: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    (tmp_path / "train_net.py").write_text(FAKE)
    monkeypatch.setattr(modules.runner, "ROOT", tmp_path)
    return modules.runner.Runner(modules.runner.Slots(2, 1, 0), tmp_path / "work")


def test_a_run_is_train_net_with_the_options(runner: Any, results: Any, tmp_path: Path) -> None:
    run = results.grid.tuning_runs("bccd", "plain")[0]
    with runner:
        runner.start(run)
        found, output, process = runner.wait()
    assert found is run and process["seconds"] > 0
    words = (output / "arguments").read_text()
    assert f"--config-file {ROOT}/configs/fsn_Lite0_BCCD.yaml --resume" in words
    assert "MODEL.FSN.RATIOS [] DATASETS.TRAIN ('a',)" in words and "SEED 3" in words
    runner.clean(output)
    assert not output.exists()


def test_what_other_settings_left_is_not_gone_on_with(runner: Any, results: Any) -> None:
    with runner:
        outputs = set()
        for run in (results.grid.seed_runs("bccd", "plain", rate)[1] for rate in (0.01, 0.02)):
            runner.start(run)
            outputs.add(runner.wait()[1])
    assert len(outputs) == 2


def test_what_a_training_left_is_collected(
    results: Any, modules: SimpleNamespace, tmp_path: Path
) -> None:
    run = results.grid.seed_runs("bccd", "plain", 0.01)[1]
    lines = [
        {"iteration": 0, "time": 9.0, "peak_memory_mib": 500.0},
        {"iteration": 4, "time": 2.0, "peak_memory_mib": 800.0},
        {"iteration": 0, "time": 4.0, "peak_memory_mib": 700.0},  # resumed, in a new process
        {"iteration": 9, "bbox/AP": 41.5, "bbox/AP50": 80.0},
    ]
    cut_off = '{"iteration": 9, "ti'  # by a kill
    (tmp_path / "metrics.json").write_text("\n".join([*map(json.dumps, lines[:2]), cut_off, ""]))
    with (tmp_path / "metrics.json").open("a") as file:
        file.write("\n".join(map(json.dumps, lines[2:])))
    process = {"seconds": 60.0, "threads": 1, "jobs": 2, "diverged": False}
    modules.results.note_start(run, tmp_path, 1)
    found = modules.results.collect(run, tmp_path, process)
    assert found["metrics"] == {"AP": 41.5, "AP50": 80.0}
    assert found["seconds_per_iteration"] == 3.0 and found["iterations"] == 10
    assert found["peak_memory_mib"] == 800.0 and found["process"] == process
    assert found["run"]["seed"] == 4 and found["facts"]["threads"] == 1


def test_a_training_without_an_evaluation_is_no_result(
    results: Any, modules: SimpleNamespace, tmp_path: Path
) -> None:
    run = results.grid.seed_runs("bccd", "plain", 0.01)[0]
    (tmp_path / "metrics.json").write_text('{"a_set/bbox/AP": 40.0}')
    modules.results.note_start(run, tmp_path, 1)
    process = {"seconds": 60.0, "threads": 1, "jobs": 2, "diverged": False}
    with pytest.raises(modules.results.RunFailed, match="neither detections nor bbox/AP"):
        modules.results.collect(run, tmp_path, process)


def test_detections_are_judged_in_parts_with_what_these_rest_on(
    modules: SimpleNamespace, tmp_path: Path
) -> None:
    boxes = [(1, [0, 0, 40, 40]), (1, [50, 0, 40, 40]), (2, [0, 50, 90, 40])]
    truth = {
        "images": [{"id": 1, "file_name": "1.png", "width": 100, "height": 100}],
        "categories": [{"id": 1, "name": "RBC"}, {"id": 2, "name": "WBC"}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": label, "bbox": box, "area": 1600, "iscrowd": 0}
            for i, (label, box) in enumerate(boxes, start=1)
        ],
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    Image.new("RGB", (100, 100)).save(tmp_path / "1.png")
    test_set = f"('coco://{tmp_path}/truth.json:{tmp_path}',)"
    content = {**small_grid(), "options": {"DATASETS.TEST": test_set}}
    results = results_of(content, modules, tmp_path)
    run = results.grid.seed_runs("bccd", "plain", 0.01)[0]
    found = [{"image_id": 1, "category_id": 1, "bbox": box, "score": 0.9} for _, box in boxes[:2]]
    (tmp_path / "inference").mkdir()
    (tmp_path / "inference" / "coco_instances_results.json").write_text(json.dumps(found))
    (tmp_path / "metrics.json").write_text("")
    modules.results.note_start(run, tmp_path, 1)
    process = {"seconds": 1.0, "threads": 1, "jobs": 1, "diverged": False}
    result = modules.results.collect(run, tmp_path, process)
    parts = {name: result["metrics"][name] for name in ("AP", "AP-square", "AP-wide")}
    assert parts == pytest.approx({"AP": 50, "AP-square": 100, "AP-wide": 0})
    counts = {"APs": 0, "APm": 1, "APl": 0, "AP-wide": 1, "AP-square": 2, "AP-tall": 0}
    assert result["fewest_objects"] == counts


def test_a_result_has_the_code_it_was_started_and_resumed_with(
    runner: Any, results: Any, modules: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = results.grid.seed_runs("bccd", "plain", 0.01)[1]
    commits = iter("abc")  # of the start, of going on, and of the end

    def facts(device: str, threads: int) -> dict[str, Any]:
        about = {"date": "today", "uncommitted_changes": False, "torch": "2", "cpu": "c"}
        return {**about, "commit": next(commits), "gpu": None}

    monkeypatch.setattr(modules.results, "facts", facts)
    with runner:
        for _ in range(2):
            runner.start(run)
            _, output, process = runner.wait()
    (output / "metrics.json").write_text('{"bbox/AP": 40.0}')
    found = modules.results.collect(run, output, process)
    assert found["facts"]["commit"] == "a"
    assert [start["commit"] for start in found["resumed"]] == ["b"]


def test_a_failure_names_the_run_and_its_last_line(
    runner: Any, results: Any, modules: SimpleNamespace
) -> None:
    with runner:
        runner.start(results.grid.tuning_runs("bccd", "plain")[1])
        with pytest.raises(modules.runner.RunFailed, match=r"rate0\.02 failed: error: no such"):
            runner.wait()


@pytest.mark.parametrize(
    "message", ["Loss is not finite at iteration 3: loss_cls nan.", "Weights are no longer finite."]
)
def test_a_rate_at_which_training_diverges_is_the_worst_and_a_seed_detects_nothing(
    message: str, runner: Any, results: Any, modules: SimpleNamespace, tmp_path: Path
) -> None:
    (tmp_path / "train_net.py").write_text(f"raise FloatingPointError({message!r})")
    low, high = results.grid.tuning_runs("bccd", "plain")
    with runner:
        runner.start(high)
        run, output, process = runner.wait()
        (output / "metrics.json").write_text("")
        results.write(run, modules.results.collect(run, output, process))
        pretend(results, modules, low, 0.0)
        assert results.rate_of("bccd", "plain") == 0.01
        runner.start(results.grid.seed_runs("bccd", "plain", 0.02)[0])
        run, output, process = runner.wait()
        (output / "metrics.json").write_text("")
        found = modules.results.collect(run, output, process)
    assert found["process"]["diverged"]
    assert found["metrics"] == dict.fromkeys(modules.report.MEASURES, 0.0)


def start_a_long_run(runner: Any, results: Any) -> Any:
    """The job, once it trains."""
    runner.start(results.grid.seed_runs("bccd", "plain", 0.01)[0])
    (job,) = runner.jobs
    log = job.output / "stdout.txt"
    deadline = time.monotonic() + 30
    while "started" not in log.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    return job


def test_leaving_ends_what_is_under_way(runner: Any, results: Any) -> None:
    with runner:
        job = start_a_long_run(runner, results)
        assert runner.has_room
    assert job.process.returncode == -signal.SIGTERM


def test_sigterm_ends_what_is_under_way(runner: Any, results: Any) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit), runner:
        job = start_a_long_run(runner, results)
        os.kill(os.getpid(), signal.SIGTERM)
    assert job.process.returncode == -signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (None, ["0,1", "2,3"]),
        ("4,5,6,7", ["4,5", "6,7"]),
        ("GPU-a,3,GPU-b,1,0", ["GPU-a,3", "GPU-b,1"]),
    ],
)
def test_runs_get_gpus_of_those_that_are_shown(
    shown: str | None,
    expected: list[str],
    modules: SimpleNamespace,
    results: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    if shown is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    given: list[str] = []

    def popen(command: list[str], *, env: dict[str, str], **options: Any) -> SimpleNamespace:
        given.append(env["CUDA_VISIBLE_DEVICES"])
        return SimpleNamespace()

    monkeypatch.setattr(modules.runner, "note_start", lambda *arguments: None)  # asks git
    monkeypatch.setattr(modules.runner.subprocess, "Popen", popen)
    runner = modules.runner.Runner(modules.runner.Slots(2, 1, 2), tmp_path / "work")
    for run in results.grid.tuning_runs("bccd", "plain"):
        runner.start(run)
    assert given == expected


def test_the_machine_is_divided(modules: SimpleNamespace) -> None:
    divide, slots = modules.runner.slots_for, modules.runner.Slots
    assert divide(0, 0, 1, 2) == slots(1, 2, 0)
    assert divide(2, 0, 1, 2) == slots(2, 1, 0)
    assert divide(0, 8, 2, 64) == slots(4, 16, 2)
    with pytest.raises(ValueError, match="this machine has 1"):
        divide(2, 1, 1, 16)
    for jobs, gpus in ((-1, 1), (0, 0)):
        with pytest.raises(ValueError, match=rf"--jobs .* got {jobs} and {gpus}"):
            divide(jobs, 2, gpus, 2)


def test_results_of_the_repository_are_replaced_by_its_own_grids_alone(
    modules: SimpleNamespace, tmp_path: Path
) -> None:
    mine = tmp_path / "main.yaml"
    mine.write_text(yaml.safe_dump(small_grid()))
    grid = modules.compare.grid_of(str(mine))
    with pytest.raises(ValueError, match="name a folder by --results"):
        modules.compare.results_of(grid, str(mine), None)
    assert modules.compare.results_of(grid, str(mine), tmp_path).folder == tmp_path
    for name in ("main", str(ROOT / "benchmarks" / "grids" / "main.yaml")):
        theirs = modules.compare.results_of(modules.compare.grid_of(name), name, None)
        assert theirs.folder == ROOT / "benchmarks" / "results" / "main"


def test_what_is_left_is_carried_out_and_kept(
    runner: Any, modules: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = {**small_grid(), "rates": [0.01], "seeds": [4, 5]}
    results = results_of(content, modules, tmp_path)
    monkeypatch.setattr(modules.compare.Plan, "hours", lambda plan, slots: (6, 0.1))
    monkeypatch.setattr(modules.compare.Plan, "describe", lambda plan, slots: "6 runs")
    plan = modules.compare.Plan(results, ["bccd"], list(results.grid.methods))
    work = tmp_path / "work"
    modules.compare.carry_out(plan, runner.slots, work, keep=False)
    kept = sorted(str(path.relative_to(results.folder)) for path in results.folder.rglob("*.json"))
    of_method = ["rate0.01.json", "seed4.json", "seed5.json"]
    assert kept == [f"bccd/{name}/{file}" for name in ("fsn", "plain") for file in of_method]
    assert not [path for path in work.rglob("*") if path.is_file()]
    assert plan.left() == [] and modules.compare.Plan(results, ["bccd"], ["fsn"]).next() is None


def test_paths_are_taken_from_where_the_command_is_given(
    modules: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    grid = tmp_path / "mine.yaml"
    grid.write_text(yaml.safe_dump({**small_grid(), "seeds": []}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["compare.py", "mine.yaml", "--results", "found"])
    args = modules.compare.parse_args()
    assert (args.grid, args.results, args.work) == (str(grid), tmp_path / "found", None)
    monkeypatch.chdir(ROOT)
    folder = os.path.relpath(tmp_path, ROOT)
    assert modules.compare.report_command(args.grid, args.results) == (
        f"python benchmarks/compare.py {folder}/mine.yaml --report --results {folder}/found"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=rf"error: {grid}: seeds is empty"):
        modules.compare.main()


def test_no_round_of_timing_is_refused(
    modules: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["compare.py", "main", "--cost-rounds", "0"])
    with pytest.raises(SystemExit):
        modules.compare.parse_args()
    assert "must be 1 or more, got 0" in capsys.readouterr().err


def test_an_unknown_method_is_one_line(
    modules: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["compare.py", "main", "--methods", "fns"])
    with pytest.raises(SystemExit, match=r"--methods: \['fns'\] not in the grid"):
        modules.compare.main()
