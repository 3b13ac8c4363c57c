"""Whether a path that a data set names stays in the data set's folder."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["leaves"]


def leaves(folder: Path, name: str) -> bool:
    """Whether a file name leads out of the folder: as an absolute path, by ``..`` or by a link.

    What counts is the place that it leads to, so an absolute path into the folder stays. The folder
    itself may be a link. Whether the file exists does not matter.

    Args:
        folder: the folder that the name is relative to.
        name: as the data set gives it.
    """
    parts = Path(name).parts
    ways = (os.path.join(folder, *parts[: i + 1]) for i in range(len(parts)))
    simple = ".." not in parts and not os.path.isabs(name)
    if simple and not any(map(os.path.islink, ways)):
        return False  # nearly every name, without resolving the whole path for each image
    root = os.path.realpath(folder)
    return os.path.commonpath([root, os.path.realpath(os.path.join(root, name))]) != root
