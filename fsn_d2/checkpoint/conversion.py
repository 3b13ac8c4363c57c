"""Weights from one file format into another, to share them as safetensors or to take them back."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from .reading import read_weights
from .writing import whole_file

__all__ = ["convert_weights"]

NOTES = ("__author__", "matching_heuristics")  # by which Detectron2 matches names


def convert_weights(source: str | Path, target: str | Path) -> int:
    """Writes the tensors of one weights file into another format.

    What Detectron2 needs to match the names goes along ("__author__", "matching_heuristics"); the
    state of a training (optimizer, iteration) does not. An existing target is replaced when the new
    one is whole.

    Args:
        source: a local file that `read_weights` reads.
        target: ``.safetensors``, ``.pth`` (`torch.save`) or ``.pkl`` (Detectron2's zoo: arrays).

    Returns:
        the number of tensors.

    Raises:
        FileNotFoundError: there is no such source.
        ValueError: the source is refused, the suffix of the target is another, or a value cannot
            be written there.
    """
    writer = _WRITERS.get(Path(target).suffix)
    if writer is None:
        raise ValueError(f"{target}: the suffix has to be one of {', '.join(_WRITERS)}.")
    loaded = read_weights(source)
    tensors = {name: _tensor(value, name, source) for name, value in loaded["model"].items()}
    notes = {key: loaded[key] for key in NOTES if key in loaded}
    with whole_file(target) as file:
        writer(tensors, notes, file)
    return len(tensors)


def _tensor(value: Any, name: str, source: str | Path) -> Tensor:
    """A copy that shares no memory, which safetensors asks for."""
    if not isinstance(value, Tensor | np.ndarray | np.generic):
        raise ValueError(
            f"{source} holds a {type(value).__name__} as {name!r}, expected a tensor. Take it out "
            "or give the file that holds the model's weights."
        )
    return torch.as_tensor(value).detach().clone(memory_format=torch.contiguous_format)


def _write_safetensors(tensors: dict[str, Tensor], notes: dict[str, Any], file: IO[bytes]) -> None:
    file.write(save(tensors, {key: str(value) for key, value in notes.items()}))


def _write_torch(tensors: dict[str, Tensor], notes: dict[str, Any], file: IO[bytes]) -> None:
    torch.save({"model": tensors, **notes}, file)


def _write_pickle(tensors: dict[str, Tensor], notes: dict[str, Any], file: IO[bytes]) -> None:
    try:
        model = {name: tensor.numpy() for name, tensor in tensors.items()}
    except TypeError as error:
        raise ValueError(f"{error}: numpy lacks this type; write .safetensors or .pth.") from error
    # Without an author Detectron2 takes the names for Caffe2's.
    pickle.dump({"model": model, "__author__": "fsn_d2", **notes}, file, protocol=2)


_WRITERS: dict[str, Callable[[dict[str, Tensor], dict[str, Any], IO[bytes]], None]] = {
    ".safetensors": _write_safetensors,
    ".pth": _write_torch,
    ".pkl": _write_pickle,
}
