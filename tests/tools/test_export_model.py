"""The command lines that export a model and that run the demo, on a small network."""

from __future__ import annotations

import hashlib
import json
import runpy
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fsn_d2.engine import load_config
from fsn_d2.export import ExportDifference, ExportedFile, Shipment, metadata, model_card

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
    assert "Compared on 2 images" in capsys.readouterr().out
    assert {file.name for file in tmp_path.iterdir()} >= {"model.ts", "model.md"}
    extra = {"classes.json": ""}
    exported = torch.jit.load(str(path), _extra_files=extra)
    assert extra["classes.json"] == b'["class00", "class01", "class02"]'
    assert exported(torch.rand(3, 70, 90) * 255)[0].shape[1] == 4


@pytest.mark.parametrize(
    ("options", "opts", "message"),
    [
        (["--output", "model.md"], [], "model.md is where the model card goes"),
        (["--images", "0"], [], "--images: expected 1 or more.*got 0"),
        (
            [],
            ["DATASETS.TEST", "()", "DATASETS.CLASSES", "['a','b','c']"],
            "DATASETS.TEST is empty",
        ),
    ],
)
def test_what_cannot_be_exported_is_said_in_a_line(
    options: list[str],
    opts: list[str],
    message: str,
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = ["--output", str(tmp_path / "model.ts"), *options]
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        run_tool("export_model.py", [*options, *arguments, *opts], monkeypatch)
    assert not (tmp_path / "model.ts").exists()


def test_both_formats_stand_side_by_side_with_a_card(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    options = ["--format", "both", "--images", "2", "--output", str(tmp_path / "cells.ts")]
    run_tool("export_model.py", [*options, *arguments], monkeypatch)
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    card = (tmp_path / "cells.md").read_text()
    assert all(line in card for line in table)
    rows = {cells[1].strip(): cells[2:] for cells in (line.split("|") for line in table)}
    assert set(rows) >= {"eager", "torchscript: cells.ts", "onnx: cells.onnx"}
    for name in ("cells.ts", "cells.onnx"):
        content = (tmp_path / name).read_bytes()
        (row,) = (cells for key, cells in rows.items() if key.endswith(name))
        assert float(row[0]) == pytest.approx(len(content) / 1e6, abs=0.06)
        assert float(row[1]) > 0
        assert f"| {name} | " in card and hashlib.sha256(content).hexdigest() in card
    for said in (
        "0 class00, 1 class01, 2 class02",
        "BGR, values 0..255",
        "## Licence",
        "FSNROIHeads",
    ):
        assert said in card
    assert "None were found beside the weights" in card


def card_of(iteration: int | None, lines: list[dict], tmp_path: Path, small_cfg: Callable) -> str:
    """The card of weights of this iteration beside such a metrics.json, up to the origin."""
    cut_off = '{"iteration": 99, "bbox/AP": 7'  # by a kill
    (tmp_path / "metrics.json").write_text("\n".join([*map(json.dumps, lines), cut_off]))
    state = {} if iteration is None else {"iteration": iteration}
    torch.save({"model": {}, **state}, tmp_path / "model.pth")
    cfg = small_cfg(MODEL__WEIGHTS=str(tmp_path / "model.pth"))
    difference = ExportDifference(images=1)
    (tmp_path / "model.ts").write_bytes(b"model")
    file = ExportedFile("torchscript", tmp_path / "model.ts", difference, 0.5)
    card = model_card(cfg, Shipment([file], 0.25, metadata(cfg, torch.nn.Identity())), "cells")
    return card.split("## Origin")[0]


METRICS = [
    {"iteration": 9, "total_loss": 1.0},
    {"iteration": 9, "bbox/AP": 11.0, "bbox/AP50": 22.0},
    {"iteration": 10, "bbox/AP": 66.0, "bbox/AP50": 77.0},
    {"iteration": 19, "total_loss": 1.0},
    {"iteration": 20, "bbox/AP": 33.25, "bbox/AP50": 44.0},  # after the last of 20 iterations
]


@pytest.mark.parametrize(
    ("iteration", "said", "values"),
    [
        (9, 9, (11.0, 22.0)),
        (10, 10, (66.0, 77.0)),
        (19, 20, (33.2, 44.0)),
        (20, 20, (33.2, 44.0)),  # a best model of the evaluation at the end
    ],
)
def test_the_card_has_the_metrics_of_these_weights(
    iteration: int, said: int, values: tuple, tmp_path: Path, small_cfg: Callable
) -> None:
    card = card_of(iteration, METRICS, tmp_path, small_cfg)
    assert f"After iteration {said}," in card
    assert f"| bbox/AP | {values[0]} |" in card and f"| bbox/AP50 | {values[1]} |" in card


@pytest.mark.parametrize("iteration", [8, 15, 30, None])  # at 9 another one was evaluated than at 8
def test_the_card_has_no_metrics_of_other_weights(
    iteration: int | None, tmp_path: Path, small_cfg: Callable
) -> None:
    card = card_of(iteration, METRICS, tmp_path, small_cfg)
    assert "None were found beside the weights" in card and "bbox/AP" not in card


@pytest.mark.parametrize(("opts", "device"), [([], "cpu"), (["MODEL.DEVICE", "cuda"], "cuda")])
def test_files_are_made_on_the_cpu_unless_a_gpu_is_asked_for(
    opts: list[str], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    cfg = load_config(str(TOOLS.parent / "configs" / "fsn_R50.yaml"), opts)
    chosen = runpy.run_path(str(TOOLS / "export_model.py"))["on_cpu_unless_asked"](cfg, opts)
    assert device == chosen.MODEL.DEVICE
    assert cfg.MODEL.DEVICE == "cuda"


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
