"""Names of files that OpenCV's videos can have."""

from __future__ import annotations

from pathlib import Path


def name_for_opencv(path: Path) -> str:
    """The path as OpenCV takes it.

    Raises:
        OSError: it is not UTF-8, which ends the process in OpenCV.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise OSError("its name, or that of a folder, is not UTF-8: rename it") from error
    return str(path)
