"""tools/demo.py as a command: what it writes, says, and how it ends."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from fsn_d2.engine import Trainer, load_config

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "fsn_Lite0_BCCD.yaml")
SMALL = ["MODEL.TIMM.PRETRAINED", "", "INPUT.MIN_SIZE_TEST", "64", "INPUT.MAX_SIZE_TEST", "64"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    import torch

    path = tmp_path_factory.mktemp("weights") / "model.pth"
    torch.manual_seed(0)
    model = Trainer.build_model(load_config(CONFIG, SMALL))
    torch.save({"model": model.state_dict()}, path)
    return str(path)


def demo(monkeypatch: pytest.MonkeyPatch, weights: str, *arguments: object) -> None:
    words = ["demo.py", "--config-file", CONFIG, *map(str, arguments)]
    monkeypatch.setattr(sys, "argv", [*words, *SMALL, "MODEL.WEIGHTS", weights])
    runpy.run_path(str(ROOT / "tools" / "demo.py"), run_name="__main__")


def test_a_folder_is_done_and_what_is_broken_is_listed(
    weights: str, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in" / "a.png"), np.full((40, 60, 3), 90, np.uint8))
    (tmp_path / "in" / "b.jpg").write_text("no image")
    out = tmp_path / "out"
    demo(monkeypatch, weights, "--input", tmp_path / "in", "--output", out)
    said = capsys.readouterr().out
    assert "on 1 pictures" in said and "not all of it: 1" in said and "b.jpg: " in said
    assert (out / "a.png").is_file() and (out / "detections.json").is_file()


def test_nothing_readable_ends_with_status_2(weights: str, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "b.jpg").write_text("no image")
    with pytest.raises(SystemExit) as end:
        demo(monkeypatch, weights, "--input", tmp_path / "b.jpg", "--output", tmp_path / "out")
    assert end.value.code == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "nowhere"], "nowhere does not exist"),
        (["--input", str(ROOT / "README.md"), "--classes", "RBX", "--"], r"\['RBX'\]"),
        (["--input", str(ROOT / "README.md"), "--class-names", "a", "--"], "model of 3 classes"),
    ],
)
def test_wrong_arguments_are_one_line(
    arguments: list[str], message: str, weights: str, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first, rest = arguments[:2], arguments[2:]
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        demo(monkeypatch, weights, *first, "--output", tmp_path / "out", *rest)
