#!/usr/bin/env python
"""Trains the methods of a grid side by side and makes the tables.

Every run is an ordinary train_net.py with the same budget. Where the grid has learning rates, each
method's is chosen on the data set's tuning split with the first seed. A run that is done with
today's settings, for this grid or another, is not repeated, one that was interrupted goes on; so
the command can be stopped and given again at any time. Settings are those of the config: after a
change of the code, remove the files of the runs that it concerns. Results, one JSON per run, tables
(README.md) and pictures are kept in benchmarks/results/<grid>. Those of this repository are there
already: to make them again, or to begin on another machine, name a folder by --results.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from comparison.cost import measure_costs
from comparison.grid import ROOT, Grid, Run, read_grid
from comparison.plots import save_plots
from comparison.report import cost_path, machine_of, markdown, read_cost
from comparison.results import Results, RunFailed, collect, write_json
from comparison.runner import Runner, Slots, slots_for
from comparison.settings import check_runs, config_of_run
from tqdm import tqdm

from fsn_d2.engine import one_line_errors
from fsn_d2.machine import usable_cores

Choice = TypeVar("Choice", str, int)

GRIDS = ROOT / "benchmarks" / "grids"
RESULTS = ROOT / "benchmarks" / "results"
EXAMPLE = """examples:
  python benchmarks/compare.py main                      all of it, or what is left of it
  python benchmarks/compare.py main --data bccd --plan   how long it would take
  python benchmarks/compare.py main --report             tables and pictures of what is done
  python benchmarks/compare.py main --results mine/main  all of it anew
  python benchmarks/compare.py ablation --results mine/again --data bccd --methods image --seeds 2
                                                         a single run anew"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("grid", help="its name in benchmarks/grids, or the path of a YAML file")
    parser.add_argument("--data", nargs="+", metavar="NAME", help="these data sets alone")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="these methods alone")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N", help="these seeds alone")
    parser.add_argument("--jobs", type=int, default=0, help="runs side by side (default: suited)")
    parser.add_argument("--gpus-per-job", type=int, default=1, help="where there are GPUs")
    parser.add_argument("--cost-rounds", type=_rounds, default=7, help="of timing (default 7)")
    parser.add_argument("--keep", action="store_true", help="keep checkpoints and detections")
    parser.add_argument("--plan", action="store_true", help="say how long it takes, and end")
    parser.add_argument("--cost", action="store_true", help="measure costs anew, and end")
    parser.add_argument("--report", action="store_true", help="make the tables, and end")
    parser.add_argument("--results", type=Path, help="folder (default benchmarks/results/<grid>)")
    parser.add_argument(
        "--work",
        type=Path,
        help="folder of the runs (default output/<grid>; with --results the folder work in it)",
    )
    args = parser.parse_args()
    # The program works in the project's folder.
    for name in ("results", "work"):
        if (path := getattr(args, name)) is not None:
            setattr(args, name, path.absolute())
    if _is_file(args.grid):
        args.grid = str(Path(args.grid).absolute())
    return args


def _rounds(word: str) -> int:
    if (number := int(word)) < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {number}")
    return number


def _is_file(grid: str) -> bool:
    return grid.endswith((".yaml", ".yml"))


def chosen(names: list[Choice] | None, known: Collection[Choice], what: str) -> list[Choice]:
    """Raises ValueError for a name, or seed, that the grid lacks."""
    if unknown := set(names or ()) - set(known):
        raise ValueError(f"--{what}: {list(unknown)} not in the grid, which has {list(known)}")
    return [name for name in known if not names or name in names]


class Plan:
    """What of a grid is to be done, and what is left."""

    def __init__(
        self,
        results: Results,
        data: Sequence[str],
        methods: Sequence[str],
        seeds: Sequence[int] | None = None,
    ) -> None:
        self.results = results
        self.grid = results.grid
        self.data = data
        self.methods = methods
        self.seeds = seeds
        self.started: set[str] = set()

    def wanted(self) -> Iterator[Run]:
        """All runs whose settings are known by now: rates are chosen before seeds are run."""
        for data in self.data:
            for method in self.methods:
                yield from self.grid.tuning_runs(data, method)
            seeds: list[list[Run]] = []
            for method in self.methods:
                try:
                    rate = self.results.rate_of(data, method)
                except LookupError:
                    continue
                seeds.append(self.grid.seed_runs(data, method, rate, self.seeds))
            for runs in zip(*seeds, strict=True):  # seed by seed: a part of the table soon
                yield from runs

    def left(self) -> list[Run]:
        return [run for run in self.wanted() if self.results.read(run) is None]

    def next(self) -> Run | None:
        """The next run that nobody has started."""
        return next((run for run in self.left() if run.name not in self.started), None)

    def hours(self, slots: Slots) -> tuple[int, float]:
        """Runs that are left, and how long they take, by the steps that were measured before."""
        seconds, count = 0.0, 0
        for data in self.data:
            cost = read_cost(self.results, data) or {"methods": {}}
            for method in self.methods:
                tuning = self.grid.tuning_runs(data, method)
                runs = [*tuning, *self.grid.seed_runs(data, method, None, self.seeds)]
                seeds = self.results.of_seeds(data, method, self.seeds)
                results = [*map(self.results.read, tuning), *seeds]
                step = cost["methods"][method]["seconds_per_iteration"]["median"]
                # On a CPU runs share the threads with which a step was timed.
                shared = not slots.gpus_per_job and cost["facts"]["threads"] > 1
                for run, result in zip(runs, results, strict=True):
                    if result is None:
                        count += 1
                        iterations = config_of_run(run).SOLVER.MAX_ITER
                        seconds += step * iterations / (1 if shared else slots.jobs)
        return count, seconds / 3600

    def describe(self, slots: Slots) -> str:
        """In a line, with the machines that the steps were timed on."""
        count, hours = self.hours(slots)
        costs = [cost for data in self.data if (cost := read_cost(self.results, data))]
        machines = ", ".join(sorted({machine_of(cost["facts"]) for cost in costs}))
        return f"{count} runs, about {hours:.1f} hours by steps timed on {machines}; {slots}"


def measure_missing_costs(plan: Plan, rounds: int, *, anew: bool) -> None:
    for data in plan.data:
        known = (read_cost(plan.results, data) or {"methods": {}})["methods"]
        if anew or not set(plan.methods) <= set(known):
            # Those that are compared take turns in one process, so what is known is timed again.
            names = [name for name in plan.grid.methods if name in {*known, *plan.methods}]
            print(f"{data}: timing a step of {len(names)} methods", flush=True)
            runs = {name: plan.grid.seed_runs(data, name, None)[0] for name in names}
            write_json(cost_path(plan.results, data), measure_costs(runs, rounds))


def carry_out(plan: Plan, slots: Slots, work: Path, *, keep: bool) -> None:
    print(plan.describe(slots), flush=True)
    total, _ = plan.hours(slots)
    with Runner(slots, work, keep=keep) as runner, tqdm(total=total, unit="run") as progress:
        while True:
            while runner.has_room and (run := plan.next()):
                plan.started.add(run.name)
                runner.start(run)
            if not runner.jobs:
                return
            run, output, process = runner.wait()
            result = collect(run, output, process)
            plan.results.write(run, result)
            runner.clean(output)
            progress.update()
            minutes = process["seconds"] / 60
            tqdm.write(f"{run.name}: AP {result['metrics']['AP']:.1f}, {minutes:.1f} minutes")


def write_report(results: Results, command: str) -> None:
    path = results.folder / "README.md"
    results.folder.mkdir(parents=True, exist_ok=True)
    path.write_text(markdown(results, command))
    pictures = save_plots(results, results.folder)
    print("\n".join(f"{name} written" for name in [path, *pictures]))


def report_command(grid: str, results: Path | None) -> str:
    """What makes the report, in the project's folder."""
    folder = [] if results is None else ["--results", os.path.relpath(results)]
    name = os.path.relpath(grid) if _is_file(grid) else grid
    return shlex.join(["python", "benchmarks/compare.py", name, "--report", *folder])


def grid_of(name: str) -> Grid:
    return read_grid(Path(name) if _is_file(name) else GRIDS / f"{name}.yaml")


def results_of(grid: Grid, name: str, folder: Path | None) -> Results:
    """Where results are kept, and which count: with a folder of one's own those in it alone.

    Raises:
        ValueError: a grid of one's own would replace the results of the repository's.
    """
    if folder is not None:
        return Results(grid, folder)
    theirs = GRIDS / f"{grid.name}.yaml"
    if name != grid.name and theirs.exists() and not theirs.samefile(name):
        raise ValueError(
            f"{name} has the name of a grid of the repository, whose results it would replace: "
            "name a folder by --results, or the file otherwise"
        )
    return Results(grid, RESULTS / grid.name, others=RESULTS)


def main() -> None:
    args = parse_args()
    os.chdir(ROOT)  # paths in configs and grids are relative to the project
    with one_line_errors():
        grid = grid_of(args.grid)
        check_runs(grid)
        gpus = torch.cuda.device_count()
        slots = slots_for(args.jobs, gpus, args.gpus_per_job, usable_cores())
        data = chosen(args.data, grid.data, "data")
        methods = chosen(args.methods, grid.methods, "methods")
        seeds = chosen(args.seeds, grid.seeds, "seeds")
        results = results_of(grid, args.grid, args.results)
        plan = Plan(results, data, methods, seeds)
        plan.left()  # results of earlier versions are refused now
        if not args.report:
            measure_missing_costs(plan, args.cost_rounds, anew=args.cost)
    if args.plan:
        print(plan.describe(slots))
        return
    if not (args.report or args.cost):
        # Not what another folder's runs left: that would be gone on with.
        default = args.results / "work" if args.results else ROOT / "output" / grid.name
        try:
            carry_out(plan, slots, args.work or default, keep=args.keep)
        except RunFailed as error:
            sys.exit(f"error: {error}")
    write_report(results, report_command(args.grid, args.results))


if __name__ == "__main__":
    main()
