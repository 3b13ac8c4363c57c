"""Files that are whole or absent: written aside, flushed to the disk, then renamed into place."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

__all__ = ["WholeFiles", "disk_is_full", "remove_leftovers", "whole_file"]

PARTIAL = ".partial"  # ends the name of a file that is being written


@contextmanager
def whole_file(path: str | Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Opens a file for writing that appears under its name only when all of it is on the disk.

    Until then, and after an error or a kill, a file that was there before stays as it was.

    Args:
        path: a local file, new or to be replaced; its folder exists.
        mode: "wb" or "w".

    Yields:
        a file object; what is written goes to ``path`` + ".partial" in the same folder.

    Raises:
        OSError: as `open`, writing, flushing and renaming do.
    """
    partial = f"{path}{PARTIAL}"
    try:
        with open(partial, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        _flush_folder(os.path.dirname(partial))
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def _flush_folder(folder: str) -> None:
    """Makes a rename survive a power cut too, where the file system can."""
    descriptor = os.open(folder or ".", os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems refuse; the file is in place already
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: str | Path) -> list[str]:
    """Removes what killed writes left in a folder; nobody else may be writing there.

    Returns:
        the names of the removed files.
    """
    names = (f"*.pth{PARTIAL}", f"last_checkpoint{PARTIAL}")  # and nobody else's
    leftovers = [path for name in names for path in Path(folder).glob(name) if path.is_file()]
    for path in leftovers:
        path.unlink()
    return sorted(path.name for path in leftovers)


def disk_is_full(error: BaseException | None) -> bool:
    """Tells whether an error, or one that it followed from, is about lack of disk space.

    torch.save raises a RuntimeError about file positions in place of the system's error.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


class WholeFiles:
    """A path manager (iopath's, as Detectron2 uses it) that writes by `whole_file`."""

    def __init__(self, path_manager: Any) -> None:
        self._path_manager = path_manager

    def open(self, path: str, mode: str = "r", **kwargs: Any) -> Any:
        if "w" in mode:
            return whole_file(path, mode)
        return self._path_manager.open(path, mode, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._path_manager, name)
