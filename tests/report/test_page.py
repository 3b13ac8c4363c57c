"""The file as text: what lies in it, and that no text of the facts becomes markup."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser

import pytest

from fsn_d2.report import Evaluated, build_facts, render_page

HOSTILE = (
    "</script><script>pwned=1</script>",
    "<img src=x onerror=pwned=1>",
    "<!-- <script x=",
    "</script x='",
    "$facts ${script} $$",
    "\u2028 \ud800 \N{GREEK SMALL LETTER ALPHA}",
)


class Elements(HTMLParser):
    """Tags with their attributes, and the text of scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[int, str] = {}
        self.open: int | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open = len(self.tags)
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        self.open = None

    def handle_data(self, data: str) -> None:
        if self.open is not None:
            self.text[self.open] = self.text.get(self.open, "") + data

    def of(self, tag: str) -> list[tuple[dict[str, str | None], str]]:
        return [(a, self.text.get(i, "")) for i, (t, a) in enumerate(self.tags) if t == tag]


@pytest.fixture
def facts(build: Callable[..., Evaluated]) -> dict:
    box = [10.0, 10, 40, 40]
    evaluated = build([(1, 0, box)], [(1, 0, box, 0.9)], classes=HOSTILE)
    evaluated.images[0]["file_name"] = HOSTILE[0]
    return {**build_facts(evaluated), "name": HOSTILE[1]}


def test_the_facts_come_back_and_nothing_else_is_markup(facts: dict) -> None:
    page = Elements(render_page(facts))
    (data, embedded), (script, code) = page.of("script")
    assert data == {"type": "application/json", "id": "facts"}
    assert json.loads(embedded) == facts
    assert not set(embedded) & set("<>&\u2028")
    assert script == {}
    assert "</" not in code and "pwned" not in code
    assert page.of("img") == []
    ((_, title),) = page.of("title")
    assert title == f"Evaluation: {HOSTILE[1]}"
    plain = Elements(render_page({**facts, "name": "a set", "classes": ["a"], "pictures": []}))
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]


def test_the_page_can_be_written_as_utf_8(facts: dict) -> None:
    assert render_page({**facts, "name": HOSTILE[-1]}).encode("utf-8")


def test_the_policy_admits_the_script_alone(facts: dict) -> None:
    page = Elements(render_page(facts))
    (policy,) = [a["content"] for a, _ in page.of("meta") if "http-equiv" in a]
    (_, code) = page.of("script")[1]
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    assert policy is not None
    assert policy.split("; ") == [
        "default-src 'none'",
        "img-src data:",
        "style-src 'unsafe-inline'",
        f"script-src 'sha256-{digest}'",
    ]


def test_nothing_is_loaded_from_elsewhere(facts: dict) -> None:
    page = render_page(facts)
    assert set(re.findall(r"\w+://[\w./]+", page)) == {"http://www.w3.org/2000/svg"}
    sources = [v for _, a in Elements(page).tags for k, v in a.items() if k in ("src", "href")]
    assert all(value and value.startswith(("#", "data:")) for value in sources)


def test_what_json_has_no_word_for_is_refused(facts: dict) -> None:
    with pytest.raises(ValueError, match="JSON"):
        render_page({**facts, "ap": [float("nan")]})
