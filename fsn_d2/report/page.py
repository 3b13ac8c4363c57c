"""The facts as one HTML file: page.html, page.css and page.js of this folder, put together.

No text of the facts reaches the page as markup: it lies in a block of JSON, and page.js writes it
as text. Should one get through, the page's content security policy would not run it, nor load
anything: it admits page.js by its hash, and pictures that lie in the page.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from importlib import resources
from string import Template
from typing import Any

__all__ = ["render_page"]


def render_page(facts: dict[str, Any]) -> str:
    """Renders what `build_facts` gathered.

    Args:
        facts: from `build_facts`.

    Returns:
        The HTML page, which loads nothing.

    Raises:
        ValueError: a number is infinite or nan, which json cannot hold.
    """
    script = _read("page.js")
    title = html.escape(f"Evaluation: {facts['name']}").encode("ascii", "xmlcharrefreplace")
    return Template(_read("page.html")).substitute(
        title=title.decode(),
        policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{_digest(script)}'",
        style=_read("page.css"),
        script=script,
        facts=_embed(facts),
    )


def _read(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _embed(facts: dict[str, Any]) -> str:
    """JSON in ASCII without the characters that could end the block it lies in."""
    text = json.dumps(facts, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
