"""SIGTERM: what is running is finished and saved, in one process and in several."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.engine import HookBase

import train_net
from fsn_d2.engine import Trainer, interruption
from fsn_d2.engine.interruption import StopSignal, obey_parent_alone

ROOT = Path(__file__).parents[2]
Args = Callable[..., Namespace]
ENVIRONMENT = os.environ | {
    "CUDA_VISIBLE_DEVICES": "",
    "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
}


STARTED: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def nothing_goes_on() -> Iterator[None]:
    """Ends what a failed test would leave running."""
    yield
    for process in STARTED:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    STARTED.clear()


def start(*command: str) -> subprocess.Popen[str]:
    """Starts Python as the first process of a group of its own."""
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    STARTED.append(process)
    return process


def wait_for(process: subprocess.Popen[str], text: str) -> str:
    """Reads output up to the line that holds a text."""
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if text in line:
            return "".join(seen)
    pytest.fail(f"{text!r} did not come: {''.join(seen)}")


# ---------------------------------------------------------------------------- a training


def test_sigterm_to_the_whole_group_saves_and_ends_with_143(
    tiny_args: Args, tmp_path: Path
) -> None:
    """As schedulers and `timeout` send it: data loader workers get it too."""
    run = {"small": True, "SOLVER__MAX_ITER": 10_000, "DATALOADER__NUM_WORKERS": 2}
    args = tiny_args("fsn_R50.yaml", **run)
    process = start("train_net.py", "--config-file", args.config_file, *args.opts)
    wait_for(process, "iter: 19 ")
    os.killpg(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 143
    assert "finishing this iteration and saving" in output
    assert "Traceback" not in output
    name = (tmp_path / "output" / "last_checkpoint").read_text()
    saved = torch.load(tmp_path / "output" / name, weights_only=True)
    assert name == f"model_{saved['iteration']:07d}.pth"
    assert saved["iteration"] >= 19
    assert f"after iteration {saved['iteration'] + 1} of 10000" in output
    assert name in output and "--resume" in output

    done = saved["iteration"] + 1
    more = {**run, "SOLVER__MAX_ITER": done + 1, "DATASETS__TEST": ()}
    train_net.main(tiny_args("fsn_R50.yaml", "--resume", **more))
    final = torch.load(tmp_path / "output" / "model_final.pth", weights_only=True)
    assert final["iteration"] == done
    assert final["data"]["position"] == done + 1


class Signal(HookBase):
    """Sends SIGTERM to its own training."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def before_step(self) -> None:
        if self.trainer.iter == self.iteration:
            os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_in_the_last_iteration_leaves_the_evaluation_to_a_resume(
    tiny_args: Args, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated: list[int] = []
    test, build = Trainer.test.__func__, Trainer.build_hooks  # type: ignore[attr-defined]
    monkeypatch.setattr(
        Trainer, "test", classmethod(lambda *args: (evaluated.append(1), test(*args))[1])
    )
    monkeypatch.setattr(Trainer, "build_hooks", lambda trainer: [*build(trainer), Signal(1)])
    with pytest.raises(SystemExit) as ended:
        train_net.main(tiny_args("fsn_R50.yaml", small=True))
    assert ended.value.code == 143 and evaluated == []
    assert (tmp_path / "output" / "model_final.pth").is_file()
    train_net.main(tiny_args("fsn_R50.yaml", "--resume", small=True))
    assert evaluated == [1]


# ---------------------------------------------------------------------------- the signal


@pytest.fixture
def stop() -> Iterator[StopSignal]:
    hook = StopSignal()
    hook.before_train()
    yield hook
    hook.after_train()


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def test_the_first_signal_is_noted_and_the_same_one_sent_twice_is_one(stop: StopSignal) -> None:
    assert not stop.requested
    send(signal.SIGTERM)
    assert stop.requested
    send(signal.SIGTERM)
    send(signal.SIGINT)


def test_after_training_signals_do_what_they_did_before() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    hook = StopSignal()
    hook.before_train()
    send(signal.SIGTERM)
    hook.after_train()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


@pytest.fixture
def foreground() -> Iterator[None]:
    """What Python does with Ctrl-C, also where a shell started the tests in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_until_sigterm_comes_ctrl_c_is_pythons_own(foreground: None, stop: StopSignal) -> None:
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT)


def test_in_another_thread_training_runs_without_it() -> None:
    hook = StopSignal()
    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=hook.before_train)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before
    hook.after_train()


@pytest.fixture
def in_child() -> Iterator[Callable[[Callable[[], None]], int]]:
    """Runs a function in a forked process, once it is ready; gives the process id."""
    children = []

    def run(function: Callable[[], None]) -> int:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            function()
            os.write(writing, b"x")
            time.sleep(60)
            os._exit(0)
        children.append(child)
        assert os.read(reading, 1) == b"x"
        os.close(reading)
        os.close(writing)
        return child

    yield run
    for child in children:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


def ended_by(child: int, within: float = 0.5) -> int | None:
    """The signal that ended a process; None if it still runs after so many seconds."""
    for _ in range(int(within / 0.01)):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.WTERMSIG(status)  # 0: it ended by itself
        time.sleep(0.01)
    return None


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once(
    second: signal.Signals, in_child: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interruption, "REPEATED_S", 0.0)
    child = in_child(lambda: StopSignal().before_train())
    os.kill(child, signal.SIGTERM)
    assert ended_by(child) is None
    os.kill(child, second)
    assert ended_by(child, within=10) == second


def test_the_same_signal_sent_twice_counts_once(
    in_child: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interruption, "REPEATED_S", 60.0)
    child = in_child(lambda: StopSignal().before_train())
    for _ in range(2):
        os.kill(child, signal.SIGTERM)
        assert ended_by(child) is None


def test_a_data_loader_worker_ends_when_its_training_says_so_and_at_nobody_elses_word(
    in_child: Callable,
) -> None:
    child = in_child(obey_parent_alone)
    for _ in range(2):
        subprocess.run(["kill", "-TERM", str(child)], check=True)  # its sender is no parent
        assert ended_by(child) is None
    os.kill(child, signal.SIGTERM)
    assert ended_by(child, within=10) == 0


def obey_and_wait(ready: Any) -> None:
    obey_parent_alone()
    ready.set()
    time.sleep(60)


def test_a_worker_of_a_fork_server_ends_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its parent by the system's account is the server: the default of Python 3.14 on Linux."""
    for library in ("OMP", "OPENBLAS", "MKL"):  # whose threads would let any SIGTERM end it
        monkeypatch.setenv(f"{library}_NUM_THREADS", "1")
    context = multiprocessing.get_context("forkserver")
    ready = context.Event()
    worker = context.Process(target=obey_and_wait, args=(ready,), daemon=True)
    worker.start()
    assert ready.wait(60)
    worker.terminate()
    worker.join(10)
    ended = worker.exitcode
    worker.kill()
    assert ended in (0, -signal.SIGTERM)


# ---------------------------------------------------------------------------- several processes

SEVERAL = """
import sys
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.engine import TrainerBase
from torch import nn

from fsn_d2.checkpoint import Checkpointer
from fsn_d2.engine.interruption import StopSignal, passing_on_sigterm
from fsn_d2.engine.saving import Checkpoint


class Steps(TrainerBase):
    def run_step(self):
        torch.rand(1)
        time.sleep(0.05)
        if dist.get_rank() == 0 and self.iter == 2:
            print("running", flush=True)


def train(rank, folder):
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    trainer, stop = Steps(), StopSignal()
    checkpointer = Checkpointer(nn.Linear(1, 1), folder, trainer=trainer)
    trainer.register_hooks([stop, Checkpoint(checkpointer, 100_000, 0, stop)])
    torch.manual_seed(rank)
    trainer.train(0, 10_000)


if __name__ == "__main__":
    with passing_on_sigterm():
        # Detectron2's launch spawns; forked processes need not import everything again.
        mp.start_processes(train, nprocs=2, args=(sys.argv[1],), start_method="fork")
"""


@pytest.mark.parametrize("group", [pytest.param(False, marks=pytest.mark.slow), True])
def test_all_processes_save_together_and_the_launcher_ends_with_143(
    group: bool, tmp_path: Path
) -> None:
    script = tmp_path / "several.py"
    script.write_text(SEVERAL)
    process = start(str(script), str(tmp_path))
    wait_for(process, "running")
    if group:
        os.killpg(process.pid, signal.SIGTERM)
    else:
        process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 143, output
    assert "Traceback" not in output
    name = (tmp_path / "last_checkpoint").read_text()
    saved = torch.load(tmp_path / name, weights_only=True)
    assert saved["iteration"] == saved["trainer"]["iteration"] >= 2
    assert len(saved["random_states"]) == 2
    for rank, state in enumerate(saved["random_states"]):
        generator = torch.Generator().manual_seed(rank)
        for _ in range(saved["iteration"] + 1):  # every process had ended the same iteration
            torch.rand(1, generator=generator)
        assert state["torch"].equal(generator.get_state())


@pytest.mark.slow
def test_a_training_in_several_processes_ends_as_without_the_signal(
    tiny_args: Args, tmp_path: Path
) -> None:
    run = {"small": True, "SOLVER__MAX_ITER": 24, "DATALOADER__NUM_WORKERS": 2}
    run |= {"DATASETS__TEST": (), "SOLVER__BASE_LR": 0.001}

    def begin(output: str) -> subprocess.Popen[str]:
        args = tiny_args("fsn_R50.yaml", **run, OUTPUT_DIR=tmp_path / output)
        options = ["--config-file", args.config_file, "--num-processes", "2", "--resume"]
        return start("train_net.py", *options, *args.opts)

    whole = begin("whole")
    assert whole.communicate(timeout=900) and whole.returncode == 0
    stopped = begin("stopped")
    wait_for(stopped, "iter: 19 ")
    stopped.send_signal(signal.SIGTERM)  # the launcher alone
    output, _ = stopped.communicate(timeout=200)
    assert stopped.returncode == 143, output
    resumed = begin("stopped")
    assert resumed.communicate(timeout=900) and resumed.returncode == 0
    expected, found = (
        torch.load(tmp_path / name / "model_final.pth", weights_only=True)
        for name in ("whole", "stopped")
    )
    assert all(found["model"][name].equal(value) for name, value in expected["model"].items())
