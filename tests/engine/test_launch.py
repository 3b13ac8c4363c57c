"""Several training processes on one CPU: they agree, and none waits for one that is gone."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from detectron2.engine import defaults

from fsn_d2.engine import argument_parser, launch
from fsn_d2.engine.launch import _free_address, _prepare_cpu

PROGRAM = Path(__file__).with_name("data_parallel_main.py")
ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The program's functions, with one thread as its processes have: two round otherwise, and
    other proposals may be sampled.
    """
    monkeypatch.syspath_prepend(PROGRAM.parent)
    import data_parallel_main

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield data_parallel_main
    torch.set_num_threads(threads)


def run(mode: str, folder: Path, *prefix: str) -> tuple[int, str]:
    """Exit status and what was said; in two processes unless a prefix starts them."""
    options = () if prefix else ("--num-processes", "2")
    command = [*(prefix or (sys.executable,)), str(PROGRAM), mode, str(folder), *options]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=240)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def worked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left that worked together."""
    folder = tmp_path_factory.mktemp("worked")
    status, said = run("work", folder)
    assert status == 0, said
    return folder


def test_the_gradient_is_the_mean_of_the_shards(program: ModuleType, worked: Path) -> None:
    alone = []
    for rank in range(2):
        model = program.tiny_model()
        program.backward(model, rank)
        alone.append(program.gradients_of(model))
    together = [torch.load(worked / f"gradients{rank}.pt") for rank in range(2)]
    assert together[0].keys() == alone[0].keys() and len(alone[0]) > 50
    for name, gradient in together[0].items():
        assert torch.equal(gradient, together[1][name])
        mean = (alone[0][name] + alone[1][name]) / 2
        difference = (gradient - mean).norm() / mean.norm().clamp(min=1e-12)
        assert difference < 1e-6, name
    assert any(not torch.equal(alone[0][name], alone[1][name]) for name in alone[0])


def test_all_processes_keep_the_same_weights(program: ModuleType, worked: Path) -> None:
    one, other = (torch.load(worked / f"weights{rank}.pt") for rank in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    start = program.tiny_model().state_dict()
    assert any(not torch.equal(one[name], start[name]) for name in one)


def test_a_process_without_proposals_holds_nobody_up(worked: Path) -> None:
    assert [(worked / f"without{rank}.txt").read_text() for rank in range(2)] == ["", ""]


def test_a_killed_process_ends_the_others_and_is_named(tmp_path: Path) -> None:
    start = time.monotonic()
    status, said = run("killed", tmp_path)
    assert status != 0 and time.monotonic() - start < 60 + 30  # 30 for the start
    assert "process 1 terminated with signal SIGKILL" in said


def test_an_error_ends_the_others_and_is_shown(tmp_path: Path) -> None:
    status, said = run("failed", tmp_path)
    assert status != 0 and "rank 1 has had enough" in said and "Process 1" in said


PLACES = repr([(0, 2, 0, 2), (1, 2, 1, 2)])


def test_every_process_knows_its_place(worked: Path) -> None:
    assert [(worked / f"places{rank}.txt").read_text() for rank in range(2)] == [PLACES] * 2


def test_torchrun_can_start_the_processes(tmp_path: Path) -> None:
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2")
    status, said = run("places", tmp_path, *torchrun)
    assert status == 0, said
    assert [(tmp_path / f"places{rank}.txt").read_text() for rank in range(2)] == [PLACES] * 2
    for rank in range(2):  # gloo's threads would abort an ending process now and then
        assert "gloo" not in (tmp_path / f"threads{rank}.txt").read_text()


def test_machines_count_on_where_the_one_before_ends(tmp_path: Path) -> None:
    of_all = ["--num-machines", "2", "--num-processes", "1", "--dist-url", _free_address()]
    command = [sys.executable, str(PROGRAM), "places", str(tmp_path), *of_all, "--machine-rank"]
    started = [subprocess.Popen([*command, rank], env=ENVIRONMENT) for rank in ("0", "1")]
    try:
        assert [process.wait(240) for process in started] == [0, 0]
    finally:
        for process in started:
            process.kill()
    places = [(tmp_path / f"places{rank}.txt").read_text() for rank in range(2)]
    assert places == [repr([(0, 2, 0, 1), (1, 2, 0, 1)])] * 2


def test_processes_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setitem(_prepare_cpu.__globals__, "usable_cores", lambda: 8)
    monkeypatch.setattr(defaults, "create_ddp_model", defaults.create_ddp_model)  # put back
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for processes in (1, 3, 4, 16):
        _prepare_cpu(processes)
    assert asked == [8, 2, 2, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    _prepare_cpu(4)
    assert len(asked) == 4


def test_one_process_is_this_one() -> None:
    args = argument_parser().parse_args([])
    assert launch(lambda given: (os.getpid(), given), args) == (os.getpid(), args)


@pytest.mark.skipif(torch.cuda.device_count() > 1, reason="is refused where there are no two GPUs")
def test_more_gpus_than_there_are_are_refused() -> None:
    with pytest.raises(ValueError, match="--num-processes"):
        launch(print, argument_parser().parse_args(["--num-gpus", "7"]))
    with pytest.raises(ValueError, match="--dist-url"):
        arguments = ["--num-processes", "2", "--num-machines", "2"]
        launch(print, argument_parser().parse_args(arguments))
