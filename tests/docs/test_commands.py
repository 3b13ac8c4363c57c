"""Every command of the documentation runs, as it stands on its page, or is marked why it cannot.

A page's commands run in its order, each page in a workspace of its own. One thing is added to them,
to take seconds: where a command contains a key of SHRUNK, the options beside it, in front of the
config keys that the command sets itself, which therefore win. Blocks of Python that follow one
another are one program. Commands that contain a key of AT_HAND are skipped where that is missing.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import pytest

from fsn_d2.layers import op_library_path

from .conftest import Count
from .markdown import ROOT, Page, find_pages
from .workspace import check, in_workspace, make_workspace

AT_HAND = {
    "BCCD": (ROOT.parent / "shared" / "data" / "bccd" / "BCCD").is_dir(),  # photos of blood cells
    "_C.abi3.so": op_library_path() is not None,
}
OPTIONS = {
    "MODEL.WEIGHTS": "",  # those of Detectron2's zoo are downloaded
    "MODEL.RESNETS.NORM": "GN",  # random weights behind frozen norms let activations overflow
    "INPUT.MIN_SIZE_TRAIN": "(64,)",
    "INPUT.MAX_SIZE_TRAIN": "96",
    "INPUT.MIN_SIZE_TEST": "64",
    "INPUT.MAX_SIZE_TEST": "96",
    "MODEL.RPN.POST_NMS_TOPK_TEST": "20",
    "TEST.DETECTIONS_PER_IMAGE": "10",
    "DATALOADER.NUM_WORKERS": "0",
    "SOLVER.IMS_PER_BATCH": "2",
    "SOLVER.MAX_ITER": "2",
    "SOLVER.STEPS": "()",
}
CONFIG_OPTIONS = [word for pair in OPTIONS.items() for word in pair]
SHRUNK = {
    "--config-file": shlex.join(CONFIG_OPTIONS),
    "tools/fuzz_data.py": "--sets 20",
}
OWN_KEYS = re.compile(r"\s+(?=[A-Z][A-Z0-9_.]+ |#)|$")  # config keys of a command, or its comment
SCRIPT = re.compile(r"(?:python )?(\S+\.py)( .*)")

PAGES = [page for page in find_pages() if any(block.commands for block in page.blocks)]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def shrink(command: str) -> str:
    added = "".join(f" {options}" for key, options in SHRUNK.items() if key in command)
    return OWN_KEYS.sub(lambda found: added + found[0], command, count=1)


def can_run(command: str) -> bool:
    return all(at_hand for name, at_hand in AT_HAND.items() if name in command)


@pytest.fixture(scope="module")
def after_quick_start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workspace(tmp_path_factory.mktemp("docs") / "fsn_d2", CONFIG_OPTIONS)


@pytest.fixture
def workspace(after_quick_start: Path, tmp_path: Path) -> Path:
    shutil.copytree(after_quick_start.parent, tmp_path / "reader", symlinks=True)
    return tmp_path / "reader" / after_quick_start.name


def run(command: list[str], workspace: Path) -> str:
    result = subprocess.run(command, **in_workspace(workspace))
    check(result)
    return result.stdout


def run_shell(commands: list[str], workspace: Path) -> None:
    for command in commands:
        run(["bash", "-euo", "pipefail", "-c", shrink(command)], workspace)


def run_python(commands: list[str], workspace: Path) -> None:
    run([sys.executable, "-c", "\n\n".join(commands)], workspace)


RUN = {"sh": run_shell, "python": run_python}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_run(page: Page, workspace: Path, count: Count) -> None:
    count.marked += sum(len(block.commands) for block in page.blocks if block.reason)
    runnable = [block for block in page.blocks if block.language in RUN and not block.reason]
    for language, blocks in groupby(runnable, key=lambda block: block.language):
        commands = [command for block in blocks for command in block.commands]
        possible = [command for command in commands if can_run(command)]
        RUN[language](possible, workspace)
        count.ran += len(possible)
        count.skipped += len(commands) - len(possible)


def options_not_run() -> dict[str, set[str]]:
    """Per script the options of commands that are marked, or stand within a sentence."""
    options: dict[str, set[str]] = {}
    for page in find_pages():
        marked = [command for block in page.blocks if block.reason for command in block.commands]
        for text in [*page.code_spans, *marked]:
            if found := SCRIPT.fullmatch(text):
                options.setdefault(found[1], set()).update(re.findall(r"--[a-z-]+", found[2]))
    return options


@pytest.mark.parametrize(("script", "options"), sorted(options_not_run().items()))
def test_options_of_a_command_that_is_not_run_exist(
    script: str, options: set[str], after_quick_start: Path
) -> None:
    known = run([sys.executable, script, "--help"], after_quick_start)
    assert options <= set(re.findall(r"--[a-z-]+", known))
