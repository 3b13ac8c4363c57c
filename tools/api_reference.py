#!/usr/bin/env python
"""Writes docs/api.md: signature and docstring of every public name of the package.

Public is what the `__all__` of a package lists. The sources are parsed, not imported, so that the
page is the same on every machine; a test compares it with today's sources.
"""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import griffe
from griffe import (
    Attribute,
    Class,
    Docstring,
    DocstringElement,
    DocstringSection,
    Function,
    GoogleOptions,
    Module,
    Object,
)

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 100  # characters of a signature's line
HEAD = """\
# API reference

Every public name with its docstring. `make docs` writes this page from the sources: edit those.
"""
TITLES = {
    "parameters": "Arguments",
    "attributes": "Attributes",
    "raises": "Raises",
}
RETURNS = re.compile(r"^Returns:\n((?: {4}.*\n?)+)", re.MULTILINE)
QUIET: GoogleOptions = {"warn_unknown_params": False, "warn_missing_types": False}


def load_package(source: Path = ROOT) -> Module:
    package = griffe.load(
        "fsn_d2",
        search_paths=[source],
        docstring_parser="google",
        docstring_options=QUIET,
        allow_inspection=False,
        try_relative_path=False,
    )
    assert isinstance(package, Module)
    return package


def public_packages(package: Module) -> Iterator[Module]:
    """The package and those below it, depth first."""
    yield package
    for _, module in sorted(package.modules.items()):
        if module.is_init_module:
            yield from public_packages(module)


def public_objects(package: Module) -> Iterator[tuple[str, Object]]:
    """What `__all__` lists, under its public path."""
    for name in map(str, package.exports or []):
        # Not members[name]: a module hides the function that has its name.
        path = package.imports.get(name, f"{package.path}.{name}")
        yield f"{package.path}.{name}", package.modules_collection[path]


def public_methods(object: Object) -> list[Function]:
    """Those that say what they do; the others do what the framework says."""
    members = object.members.items() if isinstance(object, Class) else []
    named = [member for name, member in members if not name.startswith("_")]
    return [member for member in named if isinstance(member, Function) and member.docstring]


def docstrings(object: Object) -> list[Docstring]:
    """Its own, and its constructor's, which may be a base class's."""
    constructor = object.all_members.get("__init__") if isinstance(object, Class) else None
    found = [object.docstring, constructor.docstring if constructor else None]
    return [docstring for docstring in found if docstring]


def signature(object: Object) -> str:
    if isinstance(object, Class):
        bases = ", ".join(map(str, object.bases))
        head = f"class {object.name}({bases})" if bases else f"class {object.name}"
        call = object.signature() if object.parameters else ""
        return "\n".join(filter(None, [head, wrap(call)]))
    if isinstance(object, Function):
        return wrap(object.signature())
    assert isinstance(object, Attribute)
    return f"{object.name} = {object.value}"


def wrap(call: str) -> str:
    """A call that is too long for a line, with one parameter per line."""
    if len(call) <= WIDTH:
        return call
    depth, start, parameters = 0, call.index("(") + 1, []
    for place, character in enumerate(call):
        depth += (character in "([{") - (character in ")]}")
        if (depth, character) in ((1, ","), (0, ")")):
            parameters.append(call[start:place].strip())
            start = place + 1
        if depth == 0 and character == ")":
            break
    lines = "".join(f"    {parameter},\n" for parameter in parameters)
    return f"{call[: call.index('(')]}(\n{lines}){call[start:]}"


def render_docstring(docstring: Docstring) -> str:
    return "\n\n".join(render_section(section, docstring) for section in docstring.parsed)


def render_section(section: DocstringSection, docstring: Docstring) -> str:
    if section.kind.value == "text":
        return section.value
    if section.kind.value == "returns":  # as written: griffe takes words before a colon for a type
        [text] = RETURNS.findall(docstring.value)
        return f"Returns:\n\n{textwrap.dedent(text).strip()}"
    return "\n".join([f"{TITLES[section.kind.value]}:", "", *map(render_item, section.value)])


def render_item(item: DocstringElement) -> str:
    """A parameter or attribute by its name, an error by its type."""
    name = getattr(item, "name", str(item.annotation).strip("()"))
    return textwrap.indent(f"`{name}`: {item.description}", "  ").replace("  ", "* ", 1)


def render_object(path: str, object: Object) -> str:
    parts = [f"### {path}", f"```text\n{signature(object)}\n```"]
    parts += map(render_docstring, docstrings(object))
    for method in public_methods(object):
        call = wrap(method.signature()).removeprefix(method.name)
        parts += [f"#### {object.name}.{method.name}", f"```text\n{method.name}{call}\n```"]
        parts += map(render_docstring, docstrings(method))
    return "\n\n".join(parts)


def render_package(package: Module) -> str:
    parts = [f"## {package.path}", *map(render_docstring, docstrings(package))]
    parts += [render_object(path, object) for path, object in public_objects(package)]
    return "\n\n".join(parts)


def anchor(heading: str) -> str:
    """As GitHub names a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def contents(packages: list[Module]) -> str:
    """A line per package, with a link to each of its names."""
    lines = []
    for package in packages:
        names = [f"[{object.name}](#{anchor(path)})" for path, object in public_objects(package)]
        lines.append(f"* [{package.path}](#{anchor(package.path)}): {', '.join(names)}")
    return "\n".join(lines)


def render_page(package: Module) -> str:
    packages = list(public_packages(package))
    return "\n\n".join([HEAD.strip(), contents(packages), *map(render_package, packages)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "api.md")
    args = parser.parse_args()
    args.output.write_text(render_page(load_package()), encoding="utf-8")


if __name__ == "__main__":
    main()
