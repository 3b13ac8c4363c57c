"""docs/api.md is what today's docstrings say, and they say what every parameter is."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
from griffe import Docstring, Object

from .markdown import ROOT

TOOL = SimpleNamespace(**runpy.run_path(str(ROOT / "tools" / "api_reference.py")))
PACKAGE = TOOL.load_package()
PUBLIC = dict(
    pair for module in TOOL.public_packages(PACKAGE) for pair in TOOL.public_objects(module)
)
SOURCE = '''\
"""A package."""
from .numbers import Pair, add
__all__ = ["Pair", "add"]
'''
MODULE = '''\
class Pair(Base):
    """Two."""
    def __init__(self, first: int) -> None:
        """
        Args:
            first: one.
        """
    def undocumented(self): ...
def add(a: int, b: int = 2) -> int:
    """Adds.

    Args:
        a, b: numbers,
            small ones.

    Returns:
        In numbers: the sum.

    Raises:
        OSError, ValueError: never.
    """
'''
PAGE = """\
## fsn_d2

A package.

### fsn_d2.Pair

```text
class Pair(Base)
Pair(first: int)
```

Two.

Arguments:

* `first`: one.

### fsn_d2.add

```text
add(a: int, b: int = 2) -> int
```

Adds.

Arguments:

* `a, b`: numbers,
  small ones.

Returns:

In numbers: the sum.

Raises:

* `OSError, ValueError`: never.
"""


def described(docstring: Docstring) -> set[str]:
    """Parameters and fields that a docstring lists; several may share a line."""
    sections = [s for s in docstring.parsed if s.kind.value in ("parameters", "attributes")]
    names = [item.name for section in sections for item in section.value]
    return {name.strip() for each in names for name in each.split(",")}


def test_the_page_is_what_the_sources_say() -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    assert page == TOOL.render_page(PACKAGE), "docs/api.md is out of date: run `make docs`"


def test_a_small_package_is_rendered_as_worked_by_hand(tmp_path: Path) -> None:
    (tmp_path / "fsn_d2").mkdir()
    (tmp_path / "fsn_d2" / "__init__.py").write_text(SOURCE)
    (tmp_path / "fsn_d2" / "numbers.py").write_text(MODULE)
    page = TOOL.render_page(TOOL.load_package(tmp_path))
    assert "* [fsn_d2](#fsn_d2): [Pair](#fsn_d2pair), [add](#fsn_d2add)\n" in page
    assert page.endswith(f"\n\n{PAGE}")


def test_a_long_signature_has_a_line_per_parameter() -> None:
    call = f"f(a: tuple[int, str], *, {'b' * 100}: Callable[[], int] = g(1, 2)) -> tuple[int, int]"
    lines = ["f(", "    a: tuple[int, str],", "    *,"]
    lines += [f"    {'b' * 100}: Callable[[], int] = g(1, 2),", ") -> tuple[int, int]"]
    assert TOOL.wrap(call).splitlines() == lines


@pytest.mark.parametrize("path", PUBLIC)
def test_a_public_name_says_what_it_is_and_what_it_takes(path: str) -> None:
    found: Object = PUBLIC[path]
    assert found.docstring, "no docstring"
    parameters = {each.name for each in getattr(found, "parameters", [])} - {"self"}
    names = set().union(*map(described, TOOL.docstrings(found)))
    assert parameters <= names, f"not in the docstring: {sorted(parameters - names)}"


def test_every_package_with_public_names_is_on_the_page() -> None:
    listed = {path.rpartition(".")[0] for path in PUBLIC}
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "fsn_d2").rglob("__init__.py")}
    assert listed == {".".join(folder.parts) for folder in folders}
