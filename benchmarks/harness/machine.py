"""Where and with what the numbers were taken, and what that machine can do at most."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import torchvision

from fsn_d2.layers import op_library_path

from .timing import Clock, Contender, clock_of, spread, take_turns

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"cache": 8 * 2**20, "big": 256 * 2**20}  # bytes of a buffer; a copy touches two


def _git(*arguments: str) -> str | None:
    try:
        run = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return run.stdout.strip()


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def has_compiled_kernel(device: str) -> bool:
    """Whether ours is the compiled op on this device; else it is the plain-PyTorch one."""
    name, key = "fsn_d2::selective_roi_align", device.upper()
    return op_library_path() is not None and torch._C._dispatch_has_kernel_for_dispatch_key(
        name, key
    )


def facts(device: str, threads: int) -> dict[str, Any]:
    """What a reader needs to judge the numbers or to take them again."""
    library = op_library_path()
    # Results are written as work goes on; they change nothing that is measured.
    of_code = [".", ":!benchmarks/results"]
    changes = _git("status", "--porcelain", "--untracked-files=no", "--", *of_code)
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join([Path(sys.executable).name, *sys.argv]),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": None if changes is None else bool(changes),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "cpu": cpu_name(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "device": device,
        "threads": threads,
        "op_library": library.name if library else None,
        "compiled_kernel": has_compiled_kernel(device),
        "huge_pages": os.environ.get("THP_MEM_ALLOC_ENABLE", "0") == "1",
    }


def _copy(size: int, device: str, threads: int, clock: Clock) -> float:
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    contender = Contender(lambda: target.copy_(source), threads)
    for _ in range(3):
        contender.call()
    seconds = take_turns({"copy": contender}, clock, 1.0, (5, 30))["copy"]
    return 2 * source.nbytes / spread(seconds).median


def copy_bandwidth(device: str, threads: list[int]) -> dict[str, dict[str, float]]:
    """Bytes read and written per second by a copy: {"1": {"cache": ..., "big": ...}, ...}."""
    clock = clock_of(device)
    return {
        str(count): {name: _copy(size, device, count, clock) for name, size in SIZES.items()}
        for count in threads
    }


def arithmetic_speedup(device: str, threads: int) -> float:
    """How many times as fast as one thread `threads` are at arithmetic that stays in the cache.

    The most that any kernel can gain from them on this machine; 1 on a GPU.
    """
    if device != "cpu" or threads == 1:
        return 1.0
    x = torch.linspace(-0.9, 0.9, 64 * 1024)

    def work() -> None:
        for _ in range(6):
            torch.erfinv(x)

    contenders = {"one": Contender(work, 1), "all": Contender(work, threads)}
    seconds = take_turns(contenders, clock_of(device), 1.0, (5, 60))
    return spread(seconds["one"]).median / spread(seconds["all"]).median
