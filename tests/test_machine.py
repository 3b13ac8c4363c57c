"""What a machine offers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from fsn_d2.machine import Machine, usable_cores


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(3))
    monkeypatch.setattr("fsn_d2.machine.CPU_QUOTA", Path("/no/such/file"))
    machine = Machine.here()
    assert (machine.gpus, machine.gpu_memory, machine.cores) == (0, 0, 3)
    assert str(Machine(cores=2)) == "no GPU, 2 CPU cores"


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("150000 100000", 2), ("max 100000", 64), ("6400000 100000", 64), ("", 64), (None, 64)],
)
def test_a_containers_share_of_the_cores_counts(
    quota: str | None, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(64))
    monkeypatch.setattr("fsn_d2.machine.CPU_QUOTA", tmp_path / "cpu.max")
    if quota is not None:
        (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert usable_cores() == cores


def test_the_smallest_of_several_gpus_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        def __init__(self, index: int) -> None:
            self.total_memory = (24 - 13 * index) * 2**30

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", Properties)
    machine = Machine.here()
    assert (machine.gpus, machine.gpu_memory) == (2, 11)
    assert str(machine) == "2 GPUs of 11 GiB"
