"""Pictures of a grid: accuracy against the cost of the stage behind the pyramid."""

from __future__ import annotations

from pathlib import Path

import matplotlib

from .report import read_cost, scores
from .results import Results
from .statistics import mean_of

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COSTS = {
    "parameters": ("parameters of the stage, millions", 1e-6),
    "gmac": ("arithmetic of the stage, GMAC per image", 1.0),
}


def save_plots(results: Results, folder: Path) -> list[Path]:
    """One picture per data set whose costs are measured, AP against parameters and arithmetic."""
    return [
        path
        for data in results.grid.data
        if read_cost(results, data) is not None
        for path in [_plot(results, data, folder / f"{data}.png")]
    ]


def _plot(results: Results, data: str, path: Path) -> Path:
    cost = (read_cost(results, data) or {})["methods"]
    figure, axes = plt.subplots(1, len(COSTS), figsize=(11, 4.5), sharey=True)
    for axis, (key, (label, factor)) in zip(axes, COSTS.items(), strict=True):
        for name in results.grid.methods:
            values = list(scores(results, data, name, "AP").values())
            if values and name in cost:
                mean = mean_of(values)
                x = cost[name][key] * factor
                axis.errorbar(x, mean.mean, mean.deviation, fmt="o", capsize=3)
                axis.annotate(name, (x, mean.mean), xytext=(5, 4), textcoords="offset points")
        axis.set_xscale("log")
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(f"AP on {data}")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
