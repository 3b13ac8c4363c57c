"""The tables: what every method reached, and by how much it differs from its counterparts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from fsn_d2.evaluation.slices import MEASURES

from .results import Results, has_diverged
from .settings import config_of_run, fingerprint, settings_of
from .statistics import Interval, Mean, mean_of, paired_interval

DIFFERENCES = ("AP", "AP50", "AP-wide", "AP-square", "AP-tall")
INTRO = """\
Mean and standard deviation over the seeds. Intervals are of the seeds, the test images stay the
same; nominally of 95 %, they hold the true mean of five seeds in 92 % of cases, of three in 75 %,
of two in half, and less often where a seed now and then comes to grief. Stage: the RoI heads, or a
dense detector's head; the RPN is in neither. Its arithmetic is for one image{proposals}, pooling
not counted. Times are medians of turns taken in one process. Seconds per image leave out the
suppression of final detections, for no score passes the threshold. Peak memory is of the runs, so
compares between runs of one commit. Commits are those at which runs were started or gone on with,
"with changes" where some code was not committed."""


def markdown(results: Results, command: str | None = None) -> str:
    """The report of a grid, as far as its runs are done.

    Args:
        results: of the grid.
        command: which makes it; None: that of the repository's grids.
    """
    grid = results.grid
    command = command or f"python benchmarks/compare.py {grid.name} --report"
    parts = [f"# {grid.name}", f"Made by `{command}`."]
    for data in grid.data:
        parts += [f"## {data}", _provenance(results, data)]
        parts += [_accuracy_table(results, data), _difference_table(results, data)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _provenance(results: Results, data: str) -> str:
    runs = [result for name in results.grid.methods for result in done(results, data, name)]
    found = _facts(runs)
    machines = sorted(set(map(machine_of, found)))
    versions = sorted({f"torch {facts['torch']}" for facts in found})
    where = f"Runs: {len(runs)}; {', '.join(machines + versions)}."
    cost = read_cost(results, data)
    times = f" Times: {_times(cost['facts'])}." if cost else ""
    proposals = f" with {cost['proposals']} proposals" if cost else ""
    intro = INTRO.format(proposals=proposals)
    return f"{where if runs else 'No run is done.'}{times}{_fewest(runs)}\n\n{intro}"


def machine_of(facts: dict[str, Any]) -> str:
    return facts["gpu"] or facts["cpu"]


def _times(facts: dict[str, Any]) -> str:
    return f"commit {_commits([facts])}, {facts['threads']} threads of {machine_of(facts)}"


def _fewest(runs: list[dict[str, Any]]) -> str:
    """What the columns by size and aspect ratio rest on."""
    counts = next((run["fewest_objects"] for run in runs if "fewest_objects" in run), None)
    if counts is None:
        return ""
    listed = ", ".join(f"{name} {count}" for name, count in counts.items())
    return f" Test objects of the class that has the fewest: {listed}."


def _facts(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of all starts of all runs."""
    return [facts for run in runs for facts in (run["facts"], *run.get("resumed", ()))]


def _commits(found: list[dict[str, Any]]) -> str:
    names = {
        str(facts["commit"])[:7] + (" with changes" if facts.get("uncommitted_changes") else "")
        for facts in found
    }
    return ", ".join(sorted(names))


def done(results: Results, data: str, method: str) -> list[dict[str, Any]]:
    return [result for result in results.of_seeds(data, method) if result is not None]


def read_cost(results: Results, data: str) -> dict[str, Any] | None:
    """What was measured, of the methods whose settings are today's; None: nothing."""
    path = cost_path(results, data)
    if not path.is_file():
        return None
    cost = json.loads(path.read_text())
    cost["methods"] = {
        name: of_method
        for name, of_method in cost["methods"].items()
        if name in results.grid.methods
        and fingerprint(of_method["settings"])
        == fingerprint(settings_of(results.grid.seed_runs(data, name, None)[0]))
    }
    return cost


def cost_path(results: Results, data: str) -> Path:
    return results.folder / data / "cost.json"


def scores(results: Results, data: str, method: str, metric: str) -> dict[int, float]:
    """Seed -> value, of the runs that are done; a test set without such objects has none."""
    values = {
        result["run"]["seed"]: result["metrics"].get(metric, math.nan)
        for result in done(results, data, method)
    }
    return {seed: value for seed, value in values.items() if not math.isnan(value)}


def _accuracy_table(results: Results, data: str) -> str:
    cost = (read_cost(results, data) or {"methods": {}})["methods"]
    columns: dict[str, Callable[[str], str]] = {"method": str}
    columns |= {metric: partial(_score, results, data, metric) for metric in MEASURES}
    columns["seeds"] = lambda name: _seeds(done(results, data, name))
    columns["rate"] = lambda name: _rate(results, data, name)
    columns["s / iteration"] = lambda name: _time(cost.get(name), "seconds_per_iteration")
    columns["s / image"] = lambda name: _time(cost.get(name), "seconds_per_image")
    columns["stage, 10^6 parameters"] = lambda name: _number(cost.get(name), "parameters", 1e-6)
    columns["stage, GMAC"] = lambda name: _number(cost.get(name), "gmac", 1)
    columns["peak memory, MiB"] = lambda name: _memory(done(results, data, name))
    columns["commits"] = lambda name: _commits(_facts(done(results, data, name))) or "-"
    names = list(results.grid.methods)
    return table(list(columns), [[column(name) for column in columns.values()] for name in names])


def _difference_table(results: Results, data: str) -> str:
    rows = []
    for method in results.grid.methods.values():
        for other in method.against:
            found = [difference(results, data, method.name, other, m) for m in DIFFERENCES]
            pairs = str(found[0].size if found[0] else 0)
            rows.append([f"{method.name} - {other}", *map(show_interval, found), pairs])
    if not rows:
        return ""
    return table(["difference, paired by seed [interval]", *DIFFERENCES, "pairs"], rows)


def difference(
    results: Results, data: str, method: str, other: str, metric: str
) -> Interval | None:
    """Over the seeds that both have; None without any."""
    ours = scores(results, data, method, metric)
    theirs = scores(results, data, other, metric)
    seeds = sorted(set(ours) & set(theirs))
    if not seeds:
        return None
    return paired_interval([ours[seed] for seed in seeds], [theirs[seed] for seed in seeds])


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def show_mean(values: list[float]) -> str:
    if not values:
        return "-"
    mean: Mean = mean_of(values)
    return f"{mean.mean:.1f} ± {mean.deviation:.1f}" if mean.size > 1 else f"{mean.mean:.1f}"


def show_interval(interval: Interval | None) -> str:
    if interval is None:
        return "-"
    if interval.size == 1:
        return f"{interval.mean:+.1f}"
    return f"{interval.mean:+.1f} [{interval.low:+.1f}, {interval.high:+.1f}]"


def _score(results: Results, data: str, metric: str, method: str) -> str:
    return show_mean(list(scores(results, data, method, metric).values()))


def _seeds(found: list[dict[str, Any]]) -> str:
    diverged = sum(map(has_diverged, found))
    return f"{len(found)} ({diverged} diverged)" if diverged else str(len(found))


def _rate(results: Results, data: str, method: str) -> str:
    try:
        chosen = results.rate_of(data, method)
    except LookupError:
        return "-"
    rate = config_of_run(results.grid.seed_runs(data, method, chosen)[0]).SOLVER.BASE_LR
    tried = results.grid.rates_of(method)
    notes = {min(tried): " (lowest tried)", max(tried): " (highest tried)"} if tried else {}
    return f"{rate}{notes.get(rate, '')}"


def _time(cost: dict[str, Any] | None, key: str) -> str:
    return f"{cost[key]['median']:.3f}" if cost else "-"


def _number(cost: dict[str, Any] | None, key: str, factor: float) -> str:
    return f"{cost[key] * factor:.2f}" if cost else "-"


def _memory(found: list[dict[str, Any]]) -> str:
    values = [value for result in found if (value := result["peak_memory_mib"])]
    return f"{max(values):.0f}" if values else "-"
