"""Pictures of a grid: accuracy against the cost of the stage behind the pyramid, and channels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib

from .grid import Run
from .report import done, read_cost, scores
from .results import Results
from .settings import config_of_run
from .statistics import mean_of

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Cost = Mapping[str, Any]


def channels_after_pooling(run: Run) -> int | None:
    """Of the feature that the head gets of every bin; None where bins are votes, or no RoIs."""
    cfg = config_of_run(run)
    if cfg.MODEL.META_ARCHITECTURE != "GeneralizedRCNN":
        return None
    if cfg.MODEL.ROI_HEADS.NAME == "FSNROIHeads":
        return cfg.MODEL.FSN.CHANNELS
    is_plain = cfg.MODEL.ROI_HEADS.NAME in ("StandardROIHeads", "FastPoolingROIHeads")
    return cfg.MODEL.FPN.OUT_CHANNELS if is_plain else None


MARKERS = "os^vDP*X"  # after every ten methods another one, with the same colours
AXES: dict[str, Callable[[Run, Cost], float | None]] = {
    "parameters of the stage, millions": lambda run, cost: cost["parameters"] / 1e6,
    "arithmetic of the stage, GMAC per image": lambda run, cost: cost["gmac"],
    "channels after pooling": lambda run, cost: channels_after_pooling(run),
}


def save_plots(results: Results, folder: Path) -> list[Path]:
    """One picture per data set with runs and measured costs: AP against each of `AXES`."""
    methods = results.grid.methods
    return [
        _plot(results, data, cost["methods"], folder / f"{data}.png")
        for data in results.grid.data
        if (cost := read_cost(results, data)) is not None
        and any(done(results, data, name) for name in methods)
    ]


def _plot(results: Results, data: str, costs: Mapping[str, Cost], path: Path) -> Path:
    figure, axes = plt.subplots(1, len(AXES), figsize=(15, 4.5), sharey=True, layout="constrained")
    for axis, (label, place) in zip(axes, AXES.items(), strict=True):
        for number, name in enumerate(results.grid.methods):
            values = list(scores(results, data, name, "AP").values())
            if not values or name not in costs:
                continue
            x = place(results.grid.seed_runs(data, name, None)[0], costs[name])
            if x is not None:
                mean = mean_of(values)
                marker = MARKERS[number // 10 % len(MARKERS)]
                style = {"fmt": marker, "color": f"C{number % 10}", "capsize": 3}
                axis.errorbar(x, mean.mean, mean.deviation, label=name, **style)
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.margins(x=0.15)
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(f"AP on {data}")
    names, handles = axes[0].get_legend_handles_labels()[::-1]
    figure.legend(handles, names, loc="outside right center", frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
