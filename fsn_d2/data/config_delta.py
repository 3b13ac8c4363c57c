"""Config files written for a reader: few keys on a base, each with the reason for its value."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

__all__ = ["Setting", "to_yaml"]

WIDTH = 98  # characters of a comment line
LINE_ENDS = set("\x85\u2028\u2029")


@dataclass(frozen=True)
class Setting:
    """One key of a config.

    Attributes:
        key: with dots.
        value: of plain YAML, or with tuples, which are written as lists.
        why: the reason, for a comment; empty where the key speaks for itself.
    """

    key: str
    value: Any
    why: str = ""


def to_yaml(settings: Iterable[Setting], base: Path, path: Path, heading: str) -> str:
    """Renders a config file.

    Args:
        settings: in any order; keys of one node come together, and of a key that is set twice the
            last value counts.
        base: the config they are set on.
        path: where the file will lie; the base is named relative to its folder.
        heading: text of the comment at the top.
    """
    tree: dict[str, Any] = {}
    for setting in settings:
        node = tree
        *nodes, leaf = setting.key.split(".")
        for name in nodes:
            node = node.setdefault(name, {})
        node[leaf] = setting
    relative = os.path.relpath(base.resolve(), path.resolve().parent)
    lines = [*_comment(heading, ""), f"_BASE_: {_in_one_line(relative)}", *_render(tree, "")]
    return "\n".join(lines) + "\n"


def _render(tree: dict[str, Any], indent: str) -> Iterable[str]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield f"{indent}{name}:"
            yield from _render(value, f"{indent}  ")
        else:
            yield from _comment(value.why, indent)
            yield f"{indent}{name}: {_in_one_line(value.value)}"


def _comment(text: str, indent: str) -> list[str]:
    sentence = text and f"{text[0].upper()}{text[1:]}."
    return [f"{indent}# {line}" for line in textwrap.wrap(sentence, WIDTH - len(indent))]


class _Dumper(yaml.SafeDumper):
    """Writes tuples as lists; YAML's own are Python objects, which no safe reader takes.

    Unicode's line ends are escaped, which between single quotes would be read back as blanks.
    """

    def represent_text(self, text: str) -> yaml.ScalarNode:
        style = '"' if LINE_ENDS & set(text) else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(tuple, _Dumper.represent_list)
_Dumper.add_representer(str, _Dumper.represent_text)


def _in_one_line(value: Any) -> str:
    """A value as flow-style YAML, whatever characters it holds."""
    text = yaml.dump(
        [value], Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=math.inf
    )
    return text.strip()[1:-1]
