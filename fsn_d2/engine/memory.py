"""The training's peak of memory, as a metric."""

from __future__ import annotations

import resource
import sys

import torch
from detectron2.engine import HookBase

__all__ = ["PeakMemory", "peak_memory_mib"]


def peak_memory_mib() -> float:
    """The largest amount of memory so far, in MiB.

    On a GPU what PyTorch allocated there; else the resident memory of this process, without data
    loader workers.
    """
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # bytes there, KiB on Linux


class PeakMemory(HookBase):
    """Puts ``peak_memory_mib`` of the main process among the metrics."""

    def after_step(self) -> None:
        self.trainer.storage.put_scalar("peak_memory_mib", peak_memory_mib(), smoothing_hint=False)
