"""The command line that converts weights."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

TOOL = Path(__file__).parents[2] / "tools" / "convert_weights.py"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: Path) -> None:
    monkeypatch.setattr(sys, "argv", [str(TOOL), *map(str, arguments)])
    runpy.run_path(str(TOOL), run_name="__main__")


def test_a_checkpoint_becomes_safetensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "a.pth", tmp_path / "b.safetensors"
    torch.save({"model": {"weight": torch.tensor([1.5, 2.0])}, "iteration": 3}, source)
    run(monkeypatch, source, target)
    assert f"{target}: 1 tensors" in capsys.readouterr().out
    assert safetensors.torch.load_file(target)["weight"].tolist() == [1.5, 2.0]


class Payload:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.mark),)


def test_a_refusal_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "a.pth"
    torch.save({"model": Payload(tmp_path / "mark")}, source)
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, source, tmp_path / "b.safetensors")
    message = str(caught.value.code)
    assert message.startswith(f"error: {source} was not loaded: it asks for posix.mkdir")
    assert "\n" not in message
    assert not (tmp_path / "mark").exists() and not (tmp_path / "b.safetensors").exists()
