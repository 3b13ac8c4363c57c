"""Carries runs out: each an ordinary `train_net.py` in its own process, several side by side."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from .grid import ROOT, Run
from .results import RunFailed, note_start
from .settings import fingerprint, settings_of

POLL_SECONDS = 0.5
DIVERGED = "FloatingPointError: "  # as train_net.py ends when loss or weights are not finite


@dataclass(frozen=True)
class Slots:
    """What the runs may use.

    Attributes:
        jobs: runs side by side.
        threads: CPU threads of each.
        gpus_per_job: GPUs of each; 0 on the CPU.
    """

    jobs: int
    threads: int
    gpus_per_job: int


@dataclass
class _Job:
    run: Run
    output: Path
    slot: int
    process: subprocess.Popen
    start: float


class Runner:
    """Runs that are under way; to be used as a context, which ends them when it is left."""

    def __init__(self, slots: Slots, work: Path, *, keep: bool = False) -> None:
        """
        Args:
            slots: what they may use.
            work: folder for their output folders.
            keep: keep their checkpoints.
        """
        self.slots = slots
        self.work = work
        self.keep = keep
        self.jobs: list[_Job] = []

    def __enter__(self) -> Runner:
        self._on_sigterm = signal.signal(signal.SIGTERM, _leave)
        return self

    def __exit__(self, *error: Any) -> None:
        signal.signal(signal.SIGTERM, self._on_sigterm)
        for job in self.jobs:
            _signal(job, signal.SIGTERM)
        for job in self.jobs:
            job.process.wait()

    @property
    def has_room(self) -> bool:
        return len(self.jobs) < self.slots.jobs

    def start(self, run: Run) -> None:
        """Starts a run, or goes on with one that was interrupted."""
        slot = min(set(range(self.slots.jobs)) - {job.slot for job in self.jobs})
        # What another rate or config left must not be gone on with.
        output = self.work / f"{run.name}-{fingerprint(settings_of(run))}"
        output.mkdir(parents=True, exist_ok=True)
        note_start(run, output, self.slots.threads)
        gpus = self.slots.gpus_per_job
        command = [sys.executable, "train_net.py", "--config-file", str(run.config), "--resume"]
        command += ["--num-gpus", str(gpus)] if gpus else []
        command += [*run.opts, "OUTPUT_DIR", str(output)]
        command += [] if gpus else ["MODEL.DEVICE", "cpu"]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(self.slots.threads),
            "CUDA_VISIBLE_DEVICES": ",".join(_visible_gpus(slot * gpus, gpus)),
        }
        with (output / "stdout.txt").open("a") as log:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self.jobs.append(_Job(run, output, slot, process, time.monotonic()))

    def wait(self) -> tuple[Run, Path, dict[str, Any]]:
        """Waits for the next run to end: the run, its output folder, and how it was run.

        A learning rate may be too high: then `diverged` is true of how it was run.

        Raises:
            RunFailed: it ended with an error; says where its messages are.
        """
        while True:
            for job in self.jobs:
                if job.process.poll() is not None:
                    self.jobs.remove(job)
                    return self._finish(job)
            time.sleep(POLL_SECONDS)

    def _finish(self, job: _Job) -> tuple[Run, Path, dict[str, Any]]:
        diverged = False
        if job.process.returncode:
            log = job.output / "stdout.txt"
            last = " ".join(log.read_text(errors="replace").strip().splitlines()[-1:])
            diverged = last.startswith(DIVERGED)
            if not diverged:
                raise RunFailed(f"{job.run.name} failed: {last} (all of it: {log})")
        process = {
            "diverged": diverged,
            "seconds": time.monotonic() - job.start,
            "threads": self.slots.threads,
            "jobs": self.slots.jobs,
        }
        return job.run, job.output, process

    def clean(self, output: Path) -> None:
        """Removes the checkpoints of a run that is collected."""
        if not self.keep:
            shutil.rmtree(output)


def _visible_gpus(first: int, count: int) -> list[str]:
    """What CUDA calls `count` GPUs from number `first` on, of those that this process may use.

    CUDA counts from 0 what the variable shows, which need not begin with the machine's first.
    """
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    if shown is None:
        return [str(number) for number in range(first, first + count)]
    return shown.split(",")[first : first + count]


def _leave(number: int, frame: FrameType | None) -> None:
    """Leaves the context as Ctrl-C does; by itself SIGTERM would end this process alone."""
    sys.exit(128 + number)


def _signal(job: _Job, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(job.process.pid, number)  # its data loader's workers too


def slots_for(jobs: int, gpus: int, gpus_per_job: int, cores: int) -> Slots:
    """Divides the machine.

    Args:
        jobs: runs side by side; 0: one per `gpus_per_job` GPUs, or one per two cores.
        gpus: GPUs of the machine.
        gpus_per_job: GPUs of each run.
        cores: CPU cores of the machine.

    Raises:
        ValueError: the machine has less, or a number is too small.
    """
    if jobs < 0 or gpus_per_job < 1:
        raise ValueError(
            f"--jobs must be 0 or more and --gpus-per-job 1 or more, got {jobs} and {gpus_per_job}"
        )
    if not gpus:
        jobs = jobs or max(cores // 2, 1)
        return Slots(jobs, max(cores // jobs, 1), 0)
    jobs = jobs or max(gpus // gpus_per_job, 1)
    if jobs * gpus_per_job > gpus:
        raise ValueError(
            f"--jobs {jobs} with --gpus-per-job {gpus_per_job} need {jobs * gpus_per_job} GPUs, "
            f"this machine has {gpus}"
        )
    return Slots(jobs, max(cores // jobs, 1), gpus_per_job)
