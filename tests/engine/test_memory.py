"""The peak of memory among the metrics."""

from __future__ import annotations

import json
import re
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import train_net
from fsn_d2.engine.memory import peak_memory_mib


def test_without_a_gpu_it_is_the_largest_resident_size(monkeypatch: pytest.MonkeyPatch) -> None:
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("the oracle is Linux's /proc")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    kib = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
    assert kib is not None
    assert peak_memory_mib() == pytest.approx(int(kib[1]) / 1024, rel=0.02)


def test_on_a_gpu_it_is_what_pytorch_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 3 * 2**20)
    assert peak_memory_mib() == 3.0


def test_it_is_among_the_metrics(tiny_args: Callable[..., Namespace], tmp_path: Path) -> None:
    train_net.main(tiny_args("fsn_R50.yaml", small=True, DATASETS__TEST=(), SOLVER__MAX_ITER=1))
    lines = (tmp_path / "output" / "metrics.json").read_text().splitlines()
    assert 50 < json.loads(lines[-1])["peak_memory_mib"] <= peak_memory_mib()
