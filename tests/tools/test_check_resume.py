"""The command that kills trainings and resumes them, with few kills."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "check_resume.py"


@pytest.mark.slow
def test_killed_trainings_end_as_the_uninterrupted_one() -> None:
    command = [sys.executable, str(TOOL), "--runs", "3", "--in-write", "1"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    last = result.stdout.splitlines()[-1]
    found = re.fullmatch(r"3 killed, (\d) inside a checkpoint write, 3 end equal", last)
    assert found is not None, last
    assert int(found[1]) >= 1
