"""YAML config files and the `_BASE_` files they start from, read as data only.

Detectron2 falls back to a loader that runs what a YAML file asks for (`!!python/object/apply`),
unless told not to. Here it is told, and the chain is looked through first, for errors that say
which file to change.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager
from fvcore.common.config import BASE_KEY

__all__ = ["merge_config_file"]


def merge_config_file(cfg: CfgNode, path: str) -> None:
    """Merges a YAML file, and what its `_BASE_` names, into a config.

    Args:
        cfg: changed in place.
        path: of the file; a `_BASE_` is relative to the file that names it, unless it starts
            with ``/``, ``~``, ``http://`` or ``https://``.

    Raises:
        FileNotFoundError: the file or a base does not exist.
        ValueError: a file is not YAML, asks for a Python object, is not a mapping, or is its own
            base.
        AssertionError, KeyError: from Detectron2, for unknown keys and values of another type.
    """
    _check_chain(path, ())
    cfg.merge_from_file(path, allow_unsafe=False)


def _check_chain(path: str, above: tuple[str, ...]) -> None:
    """Raises for the first file of the chain that cannot be read as data; `above` leads to it."""
    if os.path.realpath(path) in map(os.path.realpath, above):
        raise ValueError(
            f"{path}: {BASE_KEY} leads back to the file itself ({' -> '.join((*above, path))}). "
            f"Take one {BASE_KEY} out."
        )
    content = _read_mapping(path, above)
    for base in _bases(content, path):
        _check_chain(_beside(path, base), (*above, path))


def _read_mapping(path: str, above: tuple[str, ...]) -> dict[str, Any]:
    try:
        with PathManager.open(path, "r") as file:
            content = yaml.safe_load(file)
        if not isinstance(content, dict):
            kind = type(content).__name__
            raise ValueError(f"a {kind} at the top, expected keys with their values")
    except OSError as error:
        named_by = f" ({BASE_KEY} of {above[-1]})" if above else ""
        raise FileNotFoundError(f"{path}{named_by} cannot be opened: {error}.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} cannot be read as plain YAML: {_describe(error)}. Write numbers, text, lists "
            "and keys. Tags that build Python objects, and LazyConfig files (.py), are code and "
            "are not run."
        ) from error
    return content


def _describe(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"{error.problem}, line {error.problem_mark.line + 1}"
    return str(error).partition("\n")[0]


def _bases(content: dict[str, Any], path: str) -> Iterator[str]:
    named = content.get(BASE_KEY, [])
    for base in named if isinstance(named, list) else [named]:
        if not isinstance(base, str):
            raise ValueError(f"{path}: {BASE_KEY} is {base!r}, expected the path of a file.")
        yield base


def _beside(path: str, base: str) -> str:
    """The place where Detectron2 looks for a base."""
    base = os.path.expanduser(base) if base.startswith("~") else base
    if base.startswith(("/", "https://", "http://")):
        return base
    return os.path.join(os.path.dirname(path), base)
