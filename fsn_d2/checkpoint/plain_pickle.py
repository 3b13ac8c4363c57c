"""Pickles of numpy arrays and plain containers, read without running anything they name.

A pickle names functions and has them called, so that loading one is running a program. Here each
name is looked up in a short table, and what stands there for numpy's is ours: numpy's own
`dtype.__setstate__` and `ndarray.__setstate__` trust what they are given, and a hostile file could
have them take bytes for pointers to objects. Given a dtype of numbers, numpy checks the rest.
"""

from __future__ import annotations

import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from detectron2.structures import BoxMode

__all__ = ["STAND_INS", "named_globals", "read_pickle"]

NUMBERS = "biufc"  # numpy's kinds: bool, signed, unsigned, float, complex


def _refusal(what: str) -> pickle.UnpicklingError:
    """An error of the form in which torch names what its own unpickler refuses."""
    return pickle.UnpicklingError(f"GLOBAL {what} is not admitted")


class _DType:
    """Stands for `numpy.dtype`; numbers only."""

    def __init__(self, code: str, *_align_and_copy: Any) -> None:
        value = np.dtype(code) if isinstance(code, str) else None
        if value is None or value.kind not in NUMBERS:
            raise _refusal(f"numpy.dtype({code!r})")
        self.value = value

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, order, *fields, flags = state
        if flags or any(field not in (None, -1) for field in fields):
            # Of no use here, but a file of proposals is loaded by numpy itself after this look.
            raise _refusal(f"numpy.dtype with the state {state!r}")
        self.value = self.value.newbyteorder(order)


class _Array(np.ndarray):
    """Stands for `numpy.ndarray` while it is filled; an array like any other after that."""

    def __new__(cls) -> _Array:  # numpy's own takes a dtype and a buffer
        return np.empty(0).view(cls)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        plain: Any = (1, shape, dtype.value, bool(fortran), _bytes_of(data))
        super().__setstate__(plain)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.view(np.ndarray).__reduce_ex__(protocol)  # written as numpy's own


def _bytes_of(data: Any) -> bytes:
    """Python 2 wrote bytes as text, which latin1 gives back unchanged."""
    if isinstance(data, str):
        return data.encode("latin1")
    return data if isinstance(data, bytes) else bytes(memoryview(data))


def _reconstruct(*_type_shape_and_code: Any) -> np.ndarray:
    return _Array()


def _scalar(dtype: _DType, data: Any) -> np.generic:
    return np.frombuffer(_bytes_of(data), dtype.value, count=1)[0]


def _frombuffer(data: Any, dtype: _DType, shape: Any, order: Any) -> np.ndarray:
    return np.frombuffer(_bytes_of(data), dtype.value).reshape(shape, order=order).copy(order)


def _no_bytes() -> bytes:
    return b""


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise _refusal(f"_codecs.encode to {encoding!r}")
    return text.encode(encoding)


def _box_mode(value: int) -> int:
    return int(BoxMode(int(value)))


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "multiarray._reconstruct": _reconstruct,
    "multiarray.scalar": _scalar,
    "numeric._frombuffer": _frombuffer,
}
# What numpy's pickles name, under the modules of numpy before 2 and since.
STAND_INS: dict[str, Callable[..., Any]] = {
    "numpy.dtype": _DType,
    "numpy.ndarray": _Array,
    **dict.fromkeys(("builtins.bytes", "__builtin__.bytes"), _no_bytes),  # protocol 2's b""
    **{f"numpy.core.{name}": function for name, function in _FUNCTIONS.items()},
    **{f"numpy._core.{name}": function for name, function in _FUNCTIONS.items()},
}
OTHERS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": OrderedDict,
    **dict.fromkeys(("builtins.set", "__builtin__.set"), set),  # __builtin__: Python 2's
    **dict.fromkeys(("builtins.frozenset", "__builtin__.frozenset"), frozenset),
    "_codecs.encode": _encode,  # how protocol 2 writes bytes
    "detectron2.structures.boxes.BoxMode": _box_mode,  # of proposals
}


class _Unpickler(pickle.Unpickler):
    admitted: Mapping[str, Callable[..., Any]] = STAND_INS | OTHERS

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.admitted[f"{module}.{name}"]
        except KeyError:
            raise _refusal(f"{module}.{name}") from None


def read_pickle(path: str | Path) -> Any:
    """Reads a pickle of numbers, text, arrays of numbers and plain containers.

    A `BoxMode` of Detectron2 is read as its number.
    Text that Python 2 wrote is taken for latin1, as Detectron2 does for its model zoo.

    Args:
        path: a local file.

    Raises:
        pickle.UnpicklingError: the pickle asks for anything else; "GLOBAL" and its name.
        Exception: of nearly any type, where the file is broken.
    """
    with open(path, "rb") as file:
        return _Unpickler(file, encoding="latin1").load()


def named_globals(file: IO[bytes]) -> Iterator[str]:
    """Names, as ``module.name``, what a pickle would look up, without loading it.

    For messages alone: a file made to mislead can hide a name here, not from `read_pickle`.
    """
    texts: list[str] = []
    memo: dict[int, str] = {}
    argument: Any
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name in ("GLOBAL", "INST"):
            yield argument.replace(" ", ".")
        elif opcode.name == "STACK_GLOBAL":
            yield ".".join(texts[-2:])
        elif opcode.name == "MEMOIZE" or "PUT" in opcode.name:
            memo[len(memo) if argument is None else argument] = texts[-1] if texts else ""
        elif "GET" in opcode.name:
            texts.append(memo.get(argument, ""))
        elif isinstance(argument, str):
            texts.append(argument)
