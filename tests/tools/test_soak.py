"""The command that watches the memory of long runs: short ones, with and without a leak."""

from __future__ import annotations

import importlib.util
import json
import mmap
import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "soak.py"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from Linux's /proc")


@pytest.fixture(scope="module")
def soak() -> ModuleType:
    spec = importlib.util.spec_from_file_location("soak", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["soak"] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


def test_growth_is_that_from_one_tenth_to_the_end(soak: ModuleType) -> None:
    """The first tenth may grow; of the five samples up to a point the one in the middle counts."""
    mib = [10.0] * 5 + [99.0, 400, 100, 101, 1] + [900.0] * 85 + [104.0, 3, 900, 105, 106]
    memory = soak.Memory("part", 100, list(enumerate(mib, start=1)))
    assert memory.at(0.1) == 100 and memory.at(1.0) == 105
    assert memory.growth == pytest.approx(5.0)
    soak.require_steady([memory], 5.1)
    with pytest.raises(SystemExit, match=r"error: the memory of part grew by more than 4\.9 %"):
        soak.require_steady([memory], 4.9)


def filled_mebibyte() -> mmap.mmap:
    """Asked of the system: `malloc` may still hold memory that earlier tests gave back to it."""
    block = mmap.mmap(-1, 2**20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    block.write(b"x" * 2**20)
    return block


def test_a_leak_of_a_mebibyte_per_inference_is_found(soak: ModuleType) -> None:
    kept = []
    leaking = soak.detect_watched(lambda image: kept.append(filled_mebibyte()), 100, seed=0)
    assert leaking.at(1.0) - leaking.at(0.1) == pytest.approx(90, abs=15)
    kept.clear()
    sound = soak.detect_watched(lambda image: filled_mebibyte(), 100, seed=0)
    assert abs(sound.at(1.0) - sound.at(0.1)) < 10


def test_images_are_of_all_sizes_and_follow_from_the_seed(
    soak: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soak, "resident_memory_mib", lambda: 0.0)
    seen: list[list[np.ndarray]] = [[], [], []]
    for images, seed in zip(seen, (0, 0, 1), strict=True):
        soak.detect_watched(images.append, 100, seed=seed)
    assert all(map(np.array_equal, seen[0], seen[1]))
    assert seen[0][0].shape != seen[2][0].shape
    sides = {side for image in seen[0] for side in image.shape[:2]}
    assert min(sides) < 10 and max(sides) > 310 and seen[0][0].dtype == np.uint8


def test_the_command_trains_detects_and_says_how_much_memory_it_took(
    tiny_args: Callable[..., Namespace], tmp_path: Path
) -> None:
    args = tiny_args("fsn_R50.yaml", small=True)
    opts = dict(zip(args.opts[::2], args.opts[1::2], strict=True))
    for key in ("SOLVER.MAX_ITER", "OUTPUT_DIR"):  # of the tool's
        del opts[key]
    figures = tmp_path / "soak.json"
    command = [sys.executable, str(TOOL), "--iterations", "10", "--inferences", "20"]
    command += ["--limit", "1000", "--output", str(figures), "--config-file", args.config_file]
    result = subprocess.run(
        [*command, *(word for pair in opts.items() for word in pair)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    training, inference = json.loads(figures.read_text())
    assert [len(part["samples"]) for part in (training, inference)] == [10, 20]
    assert all(mib > 50 for part in (training, inference) for _, mib in part["samples"])
    last = result.stdout.splitlines()[-2:]
    assert last[0].startswith("training: ") and "after 2 of 20" in last[1]
