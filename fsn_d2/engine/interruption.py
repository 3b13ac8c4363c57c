"""SIGTERM: the running iteration is finished and saved, then the training ends.

Schedulers send it some time before they kill. It may reach one process or all of a group, and
several times at once; only one that comes later is taken for impatience.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from detectron2.engine import HookBase
from torch.multiprocessing import ProcessExitedException

__all__ = ["EXIT_CODE", "StopSignal", "obey_parent_alone", "passing_on_sigterm"]

EXIT_CODE = 128 + signal.SIGTERM  # 143: what a shell reports for a process that SIGTERM ended
REPEATED_S = 1.0  # seconds after which a further signal is a second one

NOTICE = b"SIGTERM: finishing this iteration and saving; a second signal ends at once.\n"


class StopSignal(HookBase):
    """While training runs, takes note of SIGTERM. To be the first of the hooks.

    Attributes:
        requested: whether it came.
    """

    def __init__(self) -> None:
        self.requested = False
        self._came = 0.0
        self._before: dict[int, Any] = {}

    def before_train(self) -> None:
        if threading.current_thread() is threading.main_thread():  # Python allows no other
            self._handle(signal.SIGTERM)

    def after_train(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _handle(self, number: int) -> None:
        self._before[number] = signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if not self.requested:
            self.requested, self._came = True, time.monotonic()
            self._handle(signal.SIGINT)
            os.write(2, NOTICE)  # a logger may be writing a line just now
        elif time.monotonic() - self._came > REPEATED_S:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


def obey_parent_alone(worker: int = 0) -> None:
    """For data loader workers: SIGTERM ends one only if its training process sent it.

    Where the whole group gets it, the training goes on for a while and needs its workers.
    """
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    started_by = multiprocessing.parent_process()  # not always that of the system: forkserver's
    parent = started_by.pid if started_by else os.getppid()
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


@contextmanager
def passing_on_sigterm() -> Iterator[None]:
    """For the process that launches several training processes: hands SIGTERM to them.

    Where one of them exits, after SIGTERM or after an error of one line, it has said why, and this
    process ends with the same code.
    """

    def pass_on(number: int, frame: FrameType | None) -> None:
        for child in multiprocessing.active_children():
            if child.pid:
                os.kill(child.pid, number)

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        yield
    except ProcessExitedException as error:
        if error.exit_code > 0:  # else a signal's number, negative
            sys.exit(error.exit_code)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
