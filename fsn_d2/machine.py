"""What this machine offers a training."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch

__all__ = ["Machine", "usable_cores"]


def usable_cores() -> int:
    """CPU cores that this process may use, which a scheduler, `taskset` or a container limits."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux alone has it
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return min(cores, _quota(CPU_QUOTA) or cores)


def _quota(path: Path) -> int | None:
    """Cores that a container is given (`docker run --cpus`), rounded up; None: no such limit."""
    try:
        microseconds, period = path.read_text().split()
        return math.ceil(int(microseconds) / int(period))
    except (OSError, ValueError):  # not Linux, an older kernel, or "max"
        return None


CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


@dataclass(frozen=True)
class Machine:
    """GPUs and CPU cores.

    Attributes:
        gpus: how many CUDA GPUs torch sees.
        gpu_memory: of the smallest of them, in GiB.
        cores: CPU cores this process may use.
    """

    gpus: int = 0
    gpu_memory: float = 0.0
    cores: int = 1

    @classmethod
    def here(cls) -> Machine:
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        memory = [torch.cuda.get_device_properties(i).total_memory for i in range(gpus)]
        return cls(gpus, min(memory, default=0) / 2**30, usable_cores())

    def __str__(self) -> str:
        if not self.gpus:
            return f"no GPU, {self.cores} CPU cores"
        return f"{self.gpus} GPU{'s' * (self.gpus > 1)} of {self.gpu_memory:.0f} GiB"
