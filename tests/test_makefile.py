"""What the Makefile does with an environment that is there already."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MOVE = "error: the .venv here is not make's and has no Python 3.10 to 3.14: move it away"
PIP = "error: the .venv here has no pip: install pip into it"

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")


@pytest.fixture
def setup(tmp_path: Path) -> Callable[[], str]:
    """Runs `make setup` as far as it gets without a network; returns what it said of errors."""
    for name in ("Makefile", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    extra = {"PIP_NO_INDEX": "1", "FSN_D2_NO_EXTENSION": "1"}
    command = ["make", "setup", f"PYTHON={sys.executable}"]

    def run() -> str:
        environment = {**os.environ, **extra}
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode != 0
        return done.stderr

    return run


@pytest.fixture
def by_hand(tmp_path: Path) -> Path:
    """An environment without pip, as `uv venv` makes it, and something of its owner's in it."""
    venv.create(tmp_path / ".venv", with_pip=False)
    (tmp_path / ".venv" / "mine").touch()
    return tmp_path / ".venv"


def has_pip(environment: Path) -> bool:
    command = [environment / "bin" / "python", "-c", "import pip"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def put_python(environment: Path, script: str) -> None:
    """In place of the environment's interpreter."""
    python = environment / "bin" / "python"
    python.unlink()
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)


def test_an_environment_made_by_hand_is_kept_and_gets_pip(
    setup: Callable[[], str], by_hand: Path
) -> None:
    assert not has_pip(by_hand)
    text = setup()
    assert MOVE not in text and PIP not in text
    assert (by_hand / "mine").exists() and has_pip(by_hand)


@pytest.mark.parametrize(
    ("python", "message"),
    [
        ("exit 1", MOVE),  # of no use at all, or of a version that is not supported
        ('case "$*" in *pip*) exit 1;; esac', PIP),  # Debian's may lack ensurepip
    ],
)
def test_an_environment_made_by_hand_that_does_not_serve_is_for_its_owner_to_move(
    setup: Callable[[], str], by_hand: Path, python: str, message: str
) -> None:
    put_python(by_hand, python)
    first, *more = setup().splitlines()
    assert first.startswith(message) and first.endswith("then run make again")
    assert all(line.startswith("make") for line in more)  # its own, that a target failed
    assert (by_hand / "mine").exists()


def test_an_environment_that_make_did_not_complete_starts_afresh(
    setup: Callable[[], str], by_hand: Path
) -> None:
    (by_hand / ".made-by-make").touch()
    setup()
    assert not (by_hand / "mine").exists() and has_pip(by_hand)
