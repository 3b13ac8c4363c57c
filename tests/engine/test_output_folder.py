"""The folder that a training writes to."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fsn_d2.engine.output_folder import claimed, remove_what_kills_left

HOLD = """
import sys
from fsn_d2.engine.output_folder import claimed
with claimed(sys.argv[1]):
    print("claimed", flush=True)
    sys.stdin.read()
"""


def test_another_training_is_kept_out_until_this_one_ends_or_is_killed(tmp_path: Path) -> None:
    partial = tmp_path / "model_0000009.pth.partial"
    partial.touch()
    for end in (lambda other: other.stdin.close(), lambda other: other.kill()):
        other = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert other.stdout is not None and other.stdout.readline() == b"claimed\n"
        with pytest.raises(ValueError, match=f"another training writes to {tmp_path}"):
            remove_what_kills_left(str(tmp_path))
        assert partial.exists()
        end(other)
        other.wait()
    remove_what_kills_left(str(tmp_path))
    assert not partial.exists()


def test_a_process_may_train_in_a_folder_again(tmp_path: Path) -> None:
    for _ in range(2):
        with claimed(str(tmp_path)):
            pass
