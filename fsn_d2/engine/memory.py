"""How much memory the program holds: its peak as a metric of training, and the amount now."""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
from pathlib import Path

import torch
from detectron2.engine import HookBase

__all__ = ["PeakMemory", "limit_convolution_caches", "peak_memory_mib", "resident_memory_mib"]

# On Linux. There ru_maxrss begins with what the program held that started this one.
STATUS = Path("/proc/self/status")
# Enough for an image of faster_rcnn_R50 or fsn_R50, which need about 50 (counted by
# ONEDNN_VERBOSE=2). fsaf_R50_joint needs 88 and so compiles them for every image, in 0.02 of its
# 6 seconds on one core.
KEPT_KERNELS = 64


def peak_memory_mib() -> float:
    """The largest amount of memory so far, in MiB.

    On a GPU what PyTorch allocated there; else the resident memory of this process, without data
    loader workers.
    """
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    if STATUS.exists():
        return _kib(STATUS, "VmHWM:") / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # bytes there, KiB elsewhere


def limit_convolution_caches() -> None:
    """Has oneDNN, which convolves on the CPU, keep fewer of the kernels that it compiles.

    It compiles one for every layer and every size of input, and keeps 1024. Where images come in
    many sizes they fill the memory, and their places between the feature maps break it up:
    docs/training.md.

    It has an effect before the first convolution of the program, and where the environment does
    not say otherwise.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):  # the second: ideep's
        os.environ.setdefault(name, str(KEPT_KERNELS))


def resident_memory_mib() -> float:
    """What this process and its children, such as data loader workers, hold now, in MiB.

    Pages that they share count once. Pages of files, libraries above all, do not count: how much of
    them is in memory depends on other programs.

    Raises:
        FileNotFoundError: this is not Linux.
    """
    children = [child.pid for child in multiprocessing.active_children() if child.pid]
    return _held_kib(os.getpid()) / 2**10 + sum(map(_held_kib_if_alive, children)) / 2**10


def _held_kib(process: int) -> int:
    return _kib(Path(f"/proc/{process}/smaps_rollup"), "Pss_Anon:", "Pss_Shmem:")


def _held_kib_if_alive(process: int) -> int:
    try:
        return _held_kib(process)
    except (FileNotFoundError, ProcessLookupError):  # ended since it was listed
        return 0


def _kib(path: Path, *names: str) -> int:
    """Sum of the lines of these names in a file of /proc."""
    lines = map(str.split, path.read_text().splitlines())
    return sum(int(words[1]) for words in lines if words[0] in names)


class PeakMemory(HookBase):
    """Puts ``peak_memory_mib`` of the main process among the metrics."""

    def after_step(self) -> None:
        self.trainer.storage.put_scalar("peak_memory_mib", peak_memory_mib(), smoothing_hint=False)
