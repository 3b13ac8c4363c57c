"""Reading weights that may come from anywhere: tensors and plain containers, no code."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import safe_open

from .plain_pickle import STAND_INS, named_globals, read_pickle

__all__ = ["read_plain_pickle", "read_weights"]


def read_weights(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint or a weights file, and runs nothing that it may hold.

    By its suffix: ``.pkl`` (Detectron2's and Detectron's model zoos; numpy arrays), ``.pyth``
    (pycls), ``.safetensors``, and anything else as written by ``torch.save``. The results for
    files that load are those of Detectron2's `DetectionCheckpointer`.

    Args:
        path: a local file.

    Returns:
        "model" (name to tensor or array) and what else the file holds beside it: the state of a
        training, or "__author__" and "matching_heuristics", by which Detectron2 matches names.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is broken, or holds something other than tensors, numbers, text and
            plain containers; names the file and what it asked for.
    """
    reader = _READERS.get(Path(path).suffix, _read_torch)
    with _refusals(path):
        loaded = reader(path)
        _mapping(loaded["model"])
        return loaded


def read_plain_pickle(path: str | Path) -> Any:
    """Reads a pickle of arrays, numbers, text and plain containers, such as proposals.

    Args:
        path: of the file.

    Raises:
        FileNotFoundError, ValueError: as `read_weights`.
    """
    with _refusals(path):
        return read_pickle(path)


@contextmanager
def _refusals(path: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # a broken or a hostile pickle raises nearly any type
        raise ValueError(
            f"{path} was not loaded: {_reason(error, path)}. Only tensors, arrays of numbers, text "
            "and plain containers are read from files. Ask for weights as .safetensors; if you "
            "trust the file, docs/security.md says how to convert it yourself."
        ) from error


def _reason(error: Exception, path: str | Path) -> str:
    if found := re.search(r"GLOBAL (.+?) (?:is|was|whose)\b", str(error)):
        return f"it asks for {found[1]}, which could run code"
    message = str(error).partition(". ")[0].rstrip(".")
    reason = f"{type(error).__name__}: {message}" if message else type(error).__name__
    names = list(dict.fromkeys(_named_globals(path)))[:5]
    return f"{reason}; it asks for {', '.join(names)}" if names else reason


def _named_globals(path: str | Path) -> list[str]:
    names: list[str] = []
    try:
        with _open_pickle(path) as file:
            names.extend(named_globals(file))
    except Exception:  # no pickle, or a broken one: the names up to there
        pass
    return names


@contextmanager
def _open_pickle(path: str | Path) -> Iterator[IO[bytes]]:
    """The pickle inside a file of torch.save, which since torch 1.6 is a zip archive."""
    if not zipfile.is_zipfile(path):
        with open(path, "rb") as file:
            yield file
        return
    with zipfile.ZipFile(path) as archive:
        name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
        with archive.open(name) as file:
            yield file


def _read_torch(path: str | Path) -> dict[str, Any]:
    loaded = _torch_load(path)
    return loaded if "model" in loaded else {"model": loaded}


def _torch_load(path: str | Path) -> dict[str, Any]:
    admitted: list[Any] = [(function, name) for name, function in STAND_INS.items()]
    with torch.serialization.safe_globals(admitted), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the errors that follow say it
        return _mapping(torch.load(path, map_location="cpu", weights_only=True))


def _read_pycls(path: str | Path) -> dict[str, Any]:
    loaded = _torch_load(path)
    if "model_state" not in loaded:
        raise ValueError(f"pycls files hold 'model_state', this one {sorted(map(str, loaded))}")
    state = _mapping(loaded["model_state"])
    model = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    return {"model": model, "__author__": "pycls", "matching_heuristics": True}


def _read_zoo(path: str | Path) -> dict[str, Any]:
    loaded = _mapping(read_pickle(path))
    if "model" in loaded and "__author__" in loaded:
        return loaded
    blobs = _mapping(loaded.get("blobs", loaded))  # Detectron's; ImageNet models are bare
    model = {k: v for k, v in blobs.items() if not k.endswith("_momentum")}
    return {"model": model, "__author__": "Caffe2", "matching_heuristics": True}


def _read_safetensors(path: str | Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        notes = file.metadata() or {}
        names = file.keys()
        loaded: dict[str, Any] = {"model": {name: file.get_tensor(name) for name in names}}
    if "__author__" in notes:
        loaded["__author__"] = notes["__author__"]
    if notes.get("matching_heuristics") == "True":
        loaded["matching_heuristics"] = True
    return loaded


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"a {type(value).__name__} where a dict of names and tensors is expected")
    return value


_READERS: dict[str, Callable[[str | Path], dict[str, Any]]] = {
    ".pkl": _read_zoo,
    ".pyth": _read_pycls,
    ".safetensors": _read_safetensors,
}
