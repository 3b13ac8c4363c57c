"""Fair clocks: contenders take turns in one process, so that whatever slows the machine down meets
all of them, and ratios are taken within a round.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

Clock = Callable[[Callable[[], Any]], float]


class Spread(NamedTuple):
    """A median and the quartiles around it."""

    median: float
    q1: float
    q3: float


class Contender(NamedTuple):
    """One side of a comparison.

    Attributes:
        call: does the work once and returns its results.
        threads: CPU threads that it may use.
    """

    call: Callable[[], Any]
    threads: int


def spread(values: Sequence[float]) -> Spread:
    if len(values) < 2:
        return Spread(values[0], values[0], values[0])
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, q1, q3)


def ratio(times: Sequence[float], baseline: Sequence[float]) -> Spread:
    """How many times as long as the baseline: the ratio of the medians, and the quartiles of the
    ratios of the rounds.
    """
    of_rounds = spread([t / b for t, b in zip(times, baseline, strict=True)])
    of_medians = statistics.median(times) / statistics.median(baseline)
    return Spread(of_medians, of_rounds.q1, of_rounds.q3)


def cpu_clock(call: Callable[[], Any]) -> float:
    """Seconds that the call takes; its results are given back outside of them."""
    start = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - start
    del result
    return seconds


def cuda_clock(call: Callable[[], Any]) -> float:
    """Seconds between two events on the current stream."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000


def clock_of(device: str) -> Clock:
    return cuda_clock if device == "cuda" else cpu_clock


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _one(contender: Contender, clock: Clock) -> float:
    if torch.get_num_threads() != contender.threads:
        torch.set_num_threads(contender.threads)
        contender.call()  # the other team of threads comes up outside the measurement
    return clock(contender.call)


def take_turns(
    contenders: Mapping[str, Contender], clock: Clock, seconds: float, rounds: tuple[int, int]
) -> dict[str, list[float]]:
    """Times every contender once per round; every second round goes backwards.

    Args:
        contenders: warmed up.
        clock: `cpu_clock` or `cuda_clock`.
        seconds: no round begins later than this, once there are enough.
        rounds: at least and at most so many.

    Returns:
        Seconds per contender and round.
    """
    threads = torch.get_num_threads()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    least, most = rounds
    end = time.perf_counter() + seconds
    with without_garbage_collection():
        for number in range(most):
            if number >= least and time.perf_counter() > end:
                break
            order = list(contenders.items())
            for name, contender in reversed(order) if number % 2 else order:
                times[name].append(_one(contender, clock))
    torch.set_num_threads(threads)
    return times
