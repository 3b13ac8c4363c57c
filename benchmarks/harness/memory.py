"""Peak memory of one call: bytes that PyTorch's allocator held at once beyond those before it."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile


class Memory(NamedTuple):
    """Bytes.

    Attributes:
        peak: the most that was live at once, results included.
        results: what was still live at the end, while the results were held.
    """

    peak: int
    results: int

    @property
    def beyond_results(self) -> int:
        return self.peak - self.results


def replay(allocations: Iterable[int]) -> Memory:
    """Memory of a list of allocations (positive) and releases (negative), in order of time."""
    live = list(accumulate(allocations, initial=0))
    return Memory(max(live), live[-1])


@contextmanager
def _stderr_aside() -> Iterator[None]:
    """The profiler's library reports every start and stop on file descriptor 2."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def cpu_memory(call: Callable[[], Any]) -> Memory:
    """Replays what the profiler saw; buffers that kernels hold outside of tensors are not seen."""
    profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True)
    with _stderr_aside():
        profiler.start()
        results = call()
        profiler.stop()
    del results
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    seen = [event for event in events if event.get("name") == "[memory]"]
    seen.sort(key=lambda event: event["ts"])
    return replay(event["args"]["Bytes"] for event in seen)


def cuda_memory(call: Callable[[], Any]) -> Memory:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    results = call()
    torch.cuda.synchronize()
    memory = Memory(
        torch.cuda.max_memory_allocated() - before, torch.cuda.memory_allocated() - before
    )
    del results
    return memory


def memory_of(call: Callable[[], Any], device: str) -> Memory:
    return cuda_memory(call) if device == "cuda" else cpu_memory(call)
