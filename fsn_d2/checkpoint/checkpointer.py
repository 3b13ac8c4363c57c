"""Detectron2's checkpointer, reading files that may come from anywhere, writing them whole."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs

from detectron2.checkpoint import DetectionCheckpointer

from .reading import read_weights
from .writing import WholeFiles, disk_is_full

__all__ = ["Checkpointer"]


class Checkpointer(DetectionCheckpointer):
    """`DetectionCheckpointer` that loads tensors and plain containers only; see `read_weights`.

    A checkpoint, and the file ``last_checkpoint`` that names one, is written aside and renamed when
    it is whole, so that the last one can always be loaded.

    Args:
        args, kwargs: as for `DetectionCheckpointer`.

    Attributes:
        last_checkpoint: path of the one that this training wrote or resumed from last; "" if none.
    """

    last_checkpoint = ""
    _tags = True
    _parsed_url_during_load: Any = None  # set by `load` of Detectron2 after v0.6

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.path_manager: Any = WholeFiles(self.path_manager)

    def save(self, name: str, **kwargs: Any) -> None:
        """Saves as Detectron2 does.

        Raises:
            OSError: the file cannot be written; the last checkpoint is still there.
        """
        try:
            super().save(name, **kwargs)
        except Exception as error:
            if disk_is_full(error):
                raise OSError(errno.ENOSPC, self.full_disk_message()) from error
            raise

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What is saved inside it does not become the last checkpoint."""
        self._tags = False
        try:
            yield
        finally:
            self._tags = True

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        if not self._tags:
            return
        super().tag_last_checkpoint(last_filename_basename)
        self.last_checkpoint = os.path.join(self.save_dir, last_filename_basename)

    def full_disk_message(self) -> str:
        """What to say when the disk of the output folder has no space left."""
        return (
            f"The disk of OUTPUT_DIR {self.save_dir} is full. Last whole checkpoint: "
            f"{self.last_checkpoint or 'none'}. Free some space, then give the same command with "
            "--resume."
        )

    def _load_file(self, filename: str) -> dict[str, Any]:
        # Taken and reset at once: a load that is refused must not stand in the way of the next.
        url, self._parsed_url_during_load = self._parsed_url_during_load, None
        loaded = read_weights(filename)
        queries = parse_qs(url.query) if url else {}
        if queries.pop("matching_heuristics", ["False"]) == ["True"]:
            loaded["matching_heuristics"] = True
        if queries:
            raise ValueError(
                f"MODEL.WEIGHTS: {filename} has the query {queries}; only matching_heuristics=True "
                "is known. Take the rest out."
            )
        return loaded
