"""The peak of memory among the metrics."""

from __future__ import annotations

import json
import mmap
import multiprocessing
import os
import resource
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
import torch

import train_net
from fsn_d2.engine.memory import peak_memory_mib, resident_memory_mib

ON_LINUX = pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="Linux's /proc")


@pytest.fixture
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def memory(mib: int) -> mmap.mmap:
    """Pages of its own that are in use: a large array may lie in what others gave back."""
    kept = mmap.mmap(-1, mib * 2**20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    kept[:: mmap.PAGESIZE] = b"1" * (len(kept) // mmap.PAGESIZE)
    return kept


@ON_LINUX
def test_without_a_gpu_it_is_the_largest_resident_size(without_gpu: None) -> None:
    before = resident_mib()
    extra = peak_memory_mib() - before + 200
    memory(int(extra)).close()
    assert peak_memory_mib() == pytest.approx(before + extra, abs=40)
    assert resident_mib() < before + 40


@ON_LINUX
def test_what_the_starting_program_held_does_not_count() -> None:
    kept = memory(2000)
    code = "from fsn_d2.engine.memory import peak_memory_mib; print(peak_memory_mib())"
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    said = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True)
    assert 50 < float(said) < 2000
    kept.close()


def keep_and_wait(mib: int, ready: Event, done: Event) -> None:
    kept = memory(mib)
    ready.set()
    done.wait(60)
    kept.close()


@ON_LINUX
def test_what_is_held_now_counts_this_process_and_its_children_once() -> None:
    before = resident_memory_mib()
    kept = memory(40)
    assert resident_memory_mib() - before == pytest.approx(40, abs=4)
    fork = multiprocessing.get_context("fork")
    ready, done = fork.Event(), fork.Event()
    child = fork.Process(target=keep_and_wait, args=(60, ready, done))
    child.start()  # it shares what this process holds
    assert ready.wait(60)
    assert resident_memory_mib() - before == pytest.approx(100, abs=20)
    done.set()
    child.join()
    kept.close()
    assert resident_memory_mib() - before < 10


def test_on_a_gpu_it_is_what_pytorch_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 3 * 2**20)
    assert peak_memory_mib() == 3.0


def test_it_is_among_the_metrics(tiny_args: Callable[..., Namespace], tmp_path: Path) -> None:
    train_net.main(tiny_args("fsn_R50.yaml", small=True, DATASETS__TEST=(), SOLVER__MAX_ITER=1))
    lines = (tmp_path / "output" / "metrics.json").read_text().splitlines()
    assert 50 < json.loads(lines[-1])["peak_memory_mib"] <= peak_memory_mib()
