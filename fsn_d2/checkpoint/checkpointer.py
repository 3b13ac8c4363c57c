"""Detectron2's checkpointer, reading files that may come from anywhere, writing them whole."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer

from .reading import read_weights
from .writing import WholeFiles, disk_is_full

__all__ = ["Checkpointer"]

MATCHING_HEURISTICS = "?matching_heuristics=True"


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
    _matches_by_heuristics = False
    _parsed_url_during_load: Any = None  # set by `load` of Detectron2 after v0.6

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.path_manager: Any = WholeFiles(self.path_manager)

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Loads as Detectron2 does; with "?matching_heuristics=True" behind the path, as its main
        does, which matches names by how they end, so that weights of other code find their places.
        """
        plain = path.removesuffix(MATCHING_HEURISTICS)
        self._matches_by_heuristics = plain != path
        return super().load(plain, *args, **kwargs)

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
        if url and url.query:
            raise ValueError(
                f"MODEL.WEIGHTS: {filename} has the query {url.query!r}; only "
                f"{MATCHING_HEURISTICS!r} is known. Take it out."
            )
        loaded = read_weights(filename)
        if self._matches_by_heuristics:
            loaded["matching_heuristics"] = True
        return loaded
