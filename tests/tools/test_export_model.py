"""The command lines that export a model and that run the demo, on a small network."""

from __future__ import annotations

import runpy
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

TOOLS = Path(__file__).parents[2] / "tools"


def run_tool(name: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(TOOLS / name), run_name="__main__")


@pytest.fixture
def arguments(tiny_args: Callable[..., Namespace]) -> list[str]:
    args = tiny_args(
        "fsn_R50.yaml",
        small=True,
        MODEL__ROI_HEADS__SCORE_THRESH_TEST=0.0,
        SOLVER__MAX_ITER=1,
    )
    return ["--config-file", args.config_file, *args.opts]


def test_the_exported_file_is_written_and_compared(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "model.ts"
    run_tool("export_model.py", ["--output", str(path), "--images", "2", *arguments], monkeypatch)
    assert "images=2" in capsys.readouterr().out
    extra = {"classes.json": ""}
    exported = torch.jit.load(str(path), _extra_files=extra)
    assert extra["classes.json"] == b'["class00", "class01", "class02"]'
    assert exported(torch.rand(3, 70, 90) * 255)[0].shape[1] == 4


def test_the_demo_leaves_all_it_promises(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for _ in range(2):  # the second time all is trained already
        run_tool("demo_quickstart.py", arguments, monkeypatch)
        assert "AP50" in capsys.readouterr().out
    written = {path.name for path in (tmp_path / "output").iterdir()}
    assert {"metrics.json", "model_final.pth", "model.ts", "detections.png"} <= written
