"""The folder that a training writes to: its alone, and what an earlier one left there."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from detectron2.utils import comm

from ..checkpoint import Checkpointer
from ..checkpoint.writing import remove_leftovers
from .weights import last_checkpoint

logger = logging.getLogger(__name__)


@contextmanager
def claimed(folder: str) -> Iterator[None]:
    """Keeps other processes' trainings out of the folder, where its file system has locks.

    Raises:
        ValueError: another one is in it.
    """
    if not comm.is_main_process():
        yield
        return
    with open(os.path.join(folder, ".lock"), "a") as file:
        try:
            # Of this process alone: `flock` would be held by its children, when it was killed too.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise ValueError(
                f"OUTPUT_DIR: another training writes to {os.path.abspath(folder)}. Wait for its "
                "end, or name another folder."
            ) from error
        except OSError:
            logger.info("%s has no locks: nothing keeps other trainings out of it.", folder)
        yield


def remove_what_kills_left(folder: str) -> None:
    """Removes files that were being written when a training was killed.

    Raises:
        ValueError: another training is writing.
    """
    with claimed(folder):
        if comm.is_main_process():
            for name in remove_leftovers(folder):
                logger.info("Removed %s: it was being written when a training was killed.", name)


def begin_anew(checkpointer: Checkpointer) -> None:
    """Keeps the metrics of an earlier training under another name, and warns of its checkpoint."""
    if not comm.is_main_process():
        return
    _set_aside(Path(checkpointer.save_dir, "metrics.json"))
    if last := last_checkpoint(checkpointer):
        logger.warning(
            "%s is of an earlier training: until this one has saved, --resume would go on with "
            "that one.",
            last,
        )


def _set_aside(metrics: Path) -> None:
    """Copies metrics.json to the first free metrics.N.json and empties it.

    It is not renamed, for this training's writer has it open already, to append to.
    """
    if not metrics.is_file() or not metrics.stat().st_size:
        return
    names = (metrics.with_suffix(f".{number}.json") for number in count(1))
    shutil.copyfile(metrics, next(path for path in names if not path.exists()))
    os.truncate(metrics, 0)
