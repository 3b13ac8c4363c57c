"""From a row to its numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from harness.memory import memory_of
from harness.timing import Contender, clock_of, ratio, spread, take_turns

from .rows import AnyRow, Row, Scaling, pass_name
from .scene import Setting
from .work import OURS, Task

Bandwidth = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Effort:
    """How long a row is measured.

    Attributes:
        seconds: no round begins later.
        rounds: at least and at most so many, whatever the seconds.
    """

    seconds: float = 2.0
    rounds: tuple[int, int] = (3, 20)


def measure(row: AnyRow, effort: Effort, bandwidth: Bandwidth) -> dict[str, Any]:
    """The row's part of the report; see `benchmarks/op.py` for its fields.

    Raises:
        RuntimeError: a peer's results differ from ours.
    """
    return _scaling(row, effort) if isinstance(row, Scaling) else _row(row, effort, bandwidth)


def _row(row: Row, effort: Effort, bandwidth: Bandwidth) -> dict[str, Any]:
    torch.set_num_threads(row.setting.threads)
    comparison = row.build()
    try:
        comparison.check(row.backward)
    except RuntimeError as error:
        raise RuntimeError(f"{row.name}: {error}") from error
    tasks = {name: (row.setting, task) for name, task in comparison.tasks.items()}
    report = _timed(row.name, row.backward, tasks, effort)
    moved = comparison.moved_bytes(row.backward)
    report["moved_bytes"] = moved
    report["contenders"][OURS] |= _share(moved, report, row.setting, bandwidth)
    return report


def _scaling(row: Scaling, effort: Effort) -> dict[str, Any]:
    tasks = {label: (setting, build()) for label, (setting, build) in row.tasks.items()}
    for setting, task in tasks.values():
        torch.set_num_threads(setting.threads)
        task.call(row.backward)()
    return _timed(row.name, row.backward, tasks, effort)


def _timed(
    name: str, backward: bool, tasks: dict[str, tuple[Setting, Task]], effort: Effort
) -> dict[str, Any]:
    baseline, device = next(iter(tasks)), next(iter(tasks.values()))[0].device
    contenders = {
        label: Contender(task.call(backward), setting.threads)
        for label, (setting, task) in tasks.items()
    }
    times = take_turns(contenders, clock_of(device), effort.seconds, effort.rounds)
    memories = {label: memory_of(it.call, device) for label, it in contenders.items()}
    return {
        "name": name,
        "pass": pass_name(backward),
        "setting": asdict(tasks[baseline][0]),
        "baseline": baseline,
        "rounds": len(times[baseline]),
        "contenders": {
            label: {
                "threads": contenders[label].threads,
                "milliseconds": spread([1000 * t for t in times[label]])._asdict(),
                "peak_bytes": memories[label].peak,
                "peak_bytes_without_results": memories[label].beyond_results,
            }
            for label in tasks
        },
        "ratios": {
            label: ratio(times[label], times[baseline])._asdict()
            for label in tasks
            if label != baseline
        },
    }


def _share(
    moved: int, report: dict[str, Any], setting: Setting, bandwidth: Bandwidth
) -> dict[str, Any]:
    per_second = moved / report["contenders"][OURS]["milliseconds"]["median"] * 1000
    copies = bandwidth[str(setting.threads)]
    return {
        "bytes_per_second": per_second,
        "share_of_copy_bandwidth": {size: per_second / copy for size, copy in copies.items()},
    }
