"""What a run found: one JSON file each, read back to see what is left to do."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from harness.machine import facts

from fsn_d2.data import register_datasets, register_digits
from fsn_d2.evaluation import average_precisions, evaluation_folder, fewest_objects
from fsn_d2.evaluation.slices import MEASURES
from fsn_d2.visualization.curves import read_lines

from .grid import ROOT, Grid, Run
from .settings import config_of_run, fingerprint, settings_of

WARMUP_LINES = 1  # of metrics.json, whose times hold the first iterations
STARTS = "starts.json"
NOTHING = {"metrics": dict.fromkeys(MEASURES, 0.0)}  # what a diverged training detects
PROVENANCE = ("commit", "uncommitted_changes", "torch", "cpu", "gpu")  # of the facts


class RunFailed(RuntimeError):
    """A training ended with an error, or without what is needed of it."""


class Results:
    """The results of a grid, in a folder."""

    def __init__(self, grid: Grid, folder: Path, others: Path | None = None) -> None:
        """
        Args:
            grid: whose runs these are.
            folder: where their files are kept.
            others: a folder of other grids' folders; a run with the same settings that is done
                there is not repeated.
        """
        self.grid = grid
        self.folder = folder
        self.elsewhere = {} if others is None else _done_in(others)

    def path_of(self, run: Run) -> Path:
        return self.folder / f"{run.name}.json"

    def read(self, run: Run) -> dict[str, Any] | None:
        """What the run found; None where it is not done with today's settings.

        Raises:
            ValueError: a result of an earlier version, without its settings, is in its place.
        """
        wanted, path = fingerprint(settings_of(run)), self.path_of(run)
        if path.is_file():
            found, result = _read(path)
            if found == wanted:
                return result
        return self.elsewhere.get(wanted)

    def write(self, run: Run, result: dict[str, Any]) -> None:
        write_json(self.path_of(run), result)

    def rate_of(self, data: str, method: str) -> float | None:
        """The learning rate of the highest AP, by the tuning runs; None: the config's own.

        Every other is better than one at which training diverged.

        Raises:
            LookupError: some of these are not done.
        """
        found = {run.rate: self.read(run) for run in self.grid.tuning_runs(data, method)}
        done = {rate: result for rate, result in found.items() if result is not None}
        if len(done) < len(found):
            raise LookupError(f"{data}/{method}: its learning rate is not chosen yet")
        return max(done, key=lambda rate: _merit(done[rate]), default=None)

    def of_seeds(
        self, data: str, method: str, seeds: Sequence[int] | None = None
    ) -> list[dict[str, Any] | None]:
        """What the runs of these, or all, seeds found; None for those that are not done."""
        try:
            rate = self.rate_of(data, method)
        except LookupError:
            return [None] * len(self.grid.seeds if seeds is None else seeds)
        return [self.read(run) for run in self.grid.seed_runs(data, method, rate, seeds)]


def has_diverged(result: dict[str, Any]) -> bool:
    return result.get("process", {}).get("diverged", False)


def _merit(result: dict[str, Any]) -> float:
    return -1.0 if has_diverged(result) else result["metrics"]["AP"]


def _done_in(folder: Path) -> dict[str, dict[str, Any]]:
    """Fingerprint -> what the run found, of all grids that keep their results in the folder."""
    return dict(map(_read, sorted(folder.glob("*/*/*/*.json"))))


def _read(path: Path) -> tuple[str, dict[str, Any]]:
    """The settings' fingerprint, and what the run found."""
    result = json.loads(path.read_text())
    if "settings" not in result:
        raise ValueError(
            f"{path} does not say which settings it was made with, as results of earlier versions "
            "do not: move it away, or name another folder by --results"
        )
    return fingerprint(result["settings"]), result


def write_json(path: Path, content: dict[str, Any] | list[dict[str, Any]]) -> None:
    """Writes so that no reader sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(part, path)


def note_start(run: Run, output: Path, threads: int) -> None:
    """Keeps what the code and the machine are when a training starts, or goes on.

    When it ends is too late: both may be others by then.
    """
    device = config_of_run(run, output).MODEL.DEVICE
    starts = [*_starts(output), facts("cuda" if device.startswith("cuda") else "cpu", threads)]
    write_json(output / STARTS, starts)


def _starts(output: Path) -> list[dict[str, Any]]:
    path = output / STARTS
    return json.loads(path.read_text()) if path.is_file() else []


def collect(run: Run, output: Path, process: dict[str, Any]) -> dict[str, Any]:
    """Reads what a finished training left in its output folder.

    Args:
        run: which it was.
        output: its OUTPUT_DIR, with what `note_start` wrote.
        process: how it was run: seconds since it was last started, threads, jobs side by side, and
            whether it diverged: then it detects nothing.

    Raises:
        FileNotFoundError: it left no metrics.
        RunFailed: these have no AP.
    """
    cfg = config_of_run(run, output)
    first, *later = _starts(output)
    lines = read_lines(output / "metrics.json")
    times = [line["time"] for line in lines if "time" in line][WARMUP_LINES:]
    peaks = [line["peak_memory_mib"] for line in lines if "peak_memory_mib" in line]
    return {
        "run": {
            "data": run.data,
            "method": run.method,
            "seed": run.seed,
            "tuning": run.tuning,
            "config": str(run.config.relative_to(ROOT)),
            "options": dict(run.options),
        },
        "settings": settings_of(run),
        "facts": first,
        "resumed": [{key: start[key] for key in ("date", *PROVENANCE)} for start in later],
        **(NOTHING if process["diverged"] else _evaluation(cfg, output, lines)),
        "iterations": cfg.SOLVER.MAX_ITER,
        "seconds_per_iteration": statistics.median(times) if times else None,
        "peak_memory_mib": max(peaks, default=None),
        "process": process,
    }


def _evaluation(cfg: CfgNode, output: Path, lines: list[dict[str, Any]]) -> dict[str, Any]:
    """By COCO's measures from the detections; else what the data set's evaluator said."""
    folder = Path(evaluation_folder(cfg, cfg.DATASETS.TEST[0]))
    detections = folder / "coco_instances_results.json"
    if not detections.is_file():
        said = [item for line in lines for item in line.items() if item[0].startswith("bbox/")]
        metrics = {key.removeprefix("bbox/"): value for key, value in said}
        if "AP" not in metrics:
            raise RunFailed(
                f"{output} has neither detections nor bbox/AP in metrics.json: the evaluator of "
                f"{cfg.DATASETS.TEST[0]} must give one of them"
            )
        return {"metrics": metrics}
    register_digits()
    register_datasets(cfg, eval_only=True)
    annotations = Path(MetadataCatalog.get(cfg.DATASETS.TEST[0]).json_file)
    return {
        "metrics": average_precisions(annotations, json.loads(detections.read_text())),
        "fewest_objects": fewest_objects(annotations),
    }
