"""Pickles to read: what Python 2 wrote for the model zoos, byte by byte, and what attacks write."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np


class Calls:
    """Pickled, it asks for a call; a plain `pickle.load` makes it."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


def payload(mark: Path) -> Calls:
    """Would make the folder `mark`."""
    return Calls(os.mkdir, str(mark))


def _text(value: bytes) -> bytes:
    """Python 2's `str`: bytes, with their number in one byte or in four."""
    if len(value) < 256:
        return b"U" + bytes([len(value)]) + value
    return b"T" + struct.pack("<i", len(value)) + value


def _array(value: np.ndarray) -> bytes:
    """What Python 2 wrote for an array of 1 or more dimensions in C order, memos left out."""
    sizes = b"".join(b"M" + struct.pack("<H", size) for size in value.shape)
    close = {1: b"\x85", 2: b"\x86", 3: b"\x87"}.get(value.ndim)
    shape = sizes + close if close else b"(" + sizes + b"t"
    dtype = (
        b"cnumpy\ndtype\n" + _text(value.dtype.str[1:].encode()) + b"K\x00K\x01\x87R"
        b"(K\x03" + _text(value.dtype.str[:1].encode()) + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff"
        b"K\x00tb"
    )
    return (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01" + shape + dtype + b"\x89" + _text(value.tobytes()) + b"tb"
    )


def _items(content: dict[str, Any]) -> bytes:
    pairs = (_text(name.encode()) + _value(value) for name, value in content.items())
    return b"}(" + b"".join(pairs) + b"u"


def _value(value: Any) -> bytes:
    if isinstance(value, dict):
        return _items(value)
    return _array(value) if isinstance(value, np.ndarray) else _text(value.encode())


def python2_pickle(content: dict[str, Any]) -> bytes:
    """A dict of names with arrays, text or such dicts, as Python 2's protocol 2 has it."""
    return b"\x80\x02" + _items(content) + b"."
