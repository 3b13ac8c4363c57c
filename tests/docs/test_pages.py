"""The documentation's pages: no command escapes the test that runs them, nothing points nowhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .markdown import ROOT, Page, find_pages

PAGES = {page.name: page for page in find_pages()}
LANGUAGES = {"sh", "python", "text", "bibtex"}
FEWEST_WORDS = 3  # of a reason
INDENTED_BLOCK = re.compile(r"\n\n    \S")
FOLDERS = ("benchmarks", "configs", "docs", "examples", "fsn_d2", "projects", "tests", "tools")
# A path in the repository, written as code; a library that is built there is not in a checkout.
REPOSITORY_PATH = re.compile(rf"(?:python )?((?:{'|'.join(FOLDERS)})/[\w./-]*(?<!\.so))(?: .*)?")
TARGET = re.compile(r"make ([a-z-]+)")

each_page = pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)


def test_marks_commands_and_links_are_found_in_a_page_written_by_hand() -> None:
    page = Page(
        "docs/a.md",
        "# A, b\n\n<!-- not run: why it is so -->\n```sh\na \\\n  --b\n# c\n\nd  # e\n```\n\n"
        "`f\ng`, [h\nh](i.md), `[j](k)`\n\n```text\n[l](m)\n```\n\n"
        "```python\nimport n\n\nn()\n```\n",
    )
    shell, output, python = page.blocks
    assert (shell.place, shell.language, shell.reason) == ("docs/a.md:4", "sh", "why it is so")
    assert shell.commands == ["a --b", "d  # e"]
    assert (output.commands, output.reason) == ([], None)
    assert (python.commands, python.reason) == (["import n\n\nn()"], None)
    assert (page.code_spans, page.links, page.anchors) == (["f g", "[j](k)"], ["i.md"], {"a-b"})


@each_page
def test_every_block_can_be_run_or_says_why_not(page: Page) -> None:
    assert not INDENTED_BLOCK.search(page.prose), "an indented block: fence it, with its language"
    assert {block.language for block in page.blocks} <= LANGUAGES
    reasons = [block.reason for block in page.blocks if block.reason is not None]
    assert all(len(reason.split()) >= FEWEST_WORDS for reason in reasons), reasons
    assert page.text.count("<!--") == len(reasons), "a comment that is no mark above a block"


@each_page
def test_every_link_leads_somewhere(page: Page) -> None:
    for link in page.links:
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = Path(page.name).parent / path if path else Path(page.name)
        assert (ROOT / target).exists(), link
        if anchor:
            name = (ROOT / target).resolve().relative_to(ROOT).as_posix()
            assert anchor in PAGES[name].anchors, link


@each_page
def test_every_path_and_make_target_in_the_text_exists(page: Page) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for span in page.code_spans:
        if found := REPOSITORY_PATH.fullmatch(span):
            assert (ROOT / found[1]).exists(), span
        if found := TARGET.fullmatch(span):
            assert found[1] in targets, span
