"""Small files written by several processes at once: each sees a whole one."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

__all__ = ["write_json", "write_text"]


def write_text(text: str, path: Path) -> Path:
    """Writes UTF-8 under a name of its own in the same folder, then renames; makes the folder.

    What UTF-8 cannot hold (half of a surrogate pair, which a json may) is written as an escape.

    Raises:
        OSError: the folder cannot be written; a file of that name is then left as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, partial = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with open(descriptor, "wb") as file:
            file.write(text.encode("utf-8", "backslashreplace"))
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
    return path


def write_json(content: Any, path: Path) -> Path:
    """Writes a json as `write_text` does; equal content gives equal bytes."""
    return write_text(json.dumps(content, sort_keys=True), path)
