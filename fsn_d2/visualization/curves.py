"""The curves of a training: losses, learning rate and evaluations over iterations."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

Series = tuple[list[int], list[float]]


def read_lines(metrics: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.json; one that was cut off by a kill is passed over."""
    lines = []
    for line in metrics.read_text().splitlines():
        with suppress(ValueError):
            lines.append(json.loads(line))
    return lines


def read_series(metrics: Path) -> dict[str, Series]:
    """Name -> iterations and values, from a metrics.json; of a repeated iteration the last line."""
    by_iteration: dict[int, dict[str, Any]] = {}
    for values in read_lines(metrics):
        by_iteration.setdefault(values.get("iteration", 0), {}).update(values)
    series: dict[str, Series] = {}
    for iteration in sorted(by_iteration):
        for name, value in by_iteration[iteration].items():
            if isinstance(value, int | float):
                steps, numbers = series.setdefault(name, ([], []))
                steps.append(iteration)
                numbers.append(value)
    return series


def save_curves(metrics: Path, path: Path) -> None:
    """Draws losses, learning rate and, where there are any, evaluations.

    Args:
        metrics: a metrics.json as Detectron2 writes it.
        path: PNG to write.
    """
    from matplotlib.figure import Figure

    series = read_series(metrics)
    losses = [name for name in series if "loss" in name]
    scores = [name for name in series if name.rpartition("/")[2] in ("AP", "AP50", "AP75")]
    panels = [("loss", losses), ("learning rate", ["lr"] if "lr" in series else [])]
    panels += [("evaluation, per cent", scores)] if scores else []
    figure = Figure(figsize=(5.5 * len(panels), 4.2), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, names) in zip(axes, panels, strict=True):
        _draw(axis, title, names, series)
    figure.savefig(path, dpi=100)


def _draw(axis: Any, title: str, names: Iterable[str], series: dict[str, Series]) -> None:
    for name in names:
        steps, values = series[name]
        marker = "o" if len(steps) < 30 else ""
        width = 2.0 if name in ("total_loss", "validation_loss") else 1.2
        axis.plot(steps, values, marker=marker, markersize=3, linewidth=width, label=name)
    axis.set(title=title, xlabel="iteration")
    axis.grid(alpha=0.3)
    if names:
        axis.legend(fontsize=8)
