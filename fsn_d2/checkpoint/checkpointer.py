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


class DoesNotFit(Exception):
    """Weights of another model; continues the name of their file."""


class Checkpointer(DetectionCheckpointer):
    """`DetectionCheckpointer` that loads tensors and plain containers only; see `read_weights`.

    A checkpoint, and the file ``last_checkpoint`` that names one, is written aside and renamed when
    it is whole, so that the last one can always be loaded.

    Args:
        args, kwargs: as for `DetectionCheckpointer`.

    Attributes:
        last_checkpoint: path of the one that this training wrote or resumed from last; "" if none.
        strict: refuse a file that leaves any of the model's weights as they are, or that has one
            in another shape. Else this is logged, as Detectron2 does.
    """

    last_checkpoint = ""
    strict = False
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
        try:
            return super().load(plain, *args, **kwargs)
        except DoesNotFit as error:
            raise ValueError(f"{path} {error}") from error

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
        if self._tags:  # in every process, though one alone writes
            self.last_checkpoint = os.path.join(self.save_dir, f"{name}.pth")

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What is saved inside it does not become the last checkpoint."""
        self._tags = False
        try:
            yield
        finally:
            self._tags = True

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        if self._tags:
            super().tag_last_checkpoint(last_filename_basename)

    def full_disk_message(self) -> str:
        """What to say when the disk of the output folder has no space left."""
        return (
            f"The disk of OUTPUT_DIR {self.save_dir} is full. Last whole checkpoint: "
            f"{self.last_checkpoint or 'none'}. Free some space, then give the same command with "
            "--resume."
        )

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        super()._log_incompatible_keys(incompatible)
        if not self.strict:
            return
        shapes = {name: f"has {tuple(had)}" for name, had, _ in incompatible.incorrect_shapes}
        missing = dict.fromkeys(incompatible.missing_keys, "is absent")
        tensors = self.model.state_dict()
        wrong = {
            name: f"{name} {fault}, expected {tuple(tensors[name].shape)}"
            for name, fault in {**missing, **shapes}.items()
            if name in tensors and not name.endswith("num_batches_tracked")
        }
        if wrong:
            raise DoesNotFit(
                f"does not fit the model: {len(wrong)} of its {len(tensors)} tensors are not in "
                f"it ({'; '.join(list(wrong.values())[:3])}). Use the config of the training, "
                "with its NUM_CLASSES, or weights of this model."
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
