"""The benchmark of FSAF: it runs, its scene is what it says, and it judges by its bounds."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "fsaf.py"
CONFIG = str(ROOT / "configs" / "fsaf_Lite0_BCCD.yaml")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch):
    threads = torch.get_num_threads()
    monkeypatch.syspath_prepend(SCRIPT.parent)  # as python does for a script

    def run(*arguments: str, name: str = "__main__") -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", ["fsaf.py", "--config-file", CONFIG, *arguments])
        return runpy.run_path(str(SCRIPT), run_name=name)

    yield run
    torch.set_num_threads(threads)


def test_the_command_prints_ratios_and_writes_json(
    script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "folder" / "results.json"
    script("--quick", "--threads", "1", "--out", str(out))
    rows = json.loads(out.read_text())["rows"]
    assert [list(row["seconds"]) for row in rows] == [["anchors", "joint"], *[["step", "loss"]] * 2]
    assert [row["bound"] for row in rows] == [1.1, 0.1, 0.1]
    for row in rows:
        first, second = row["seconds"].values()
        assert row["ratio"]["median"] == pytest.approx(second["median"] / first["median"])
    assert capsys.readouterr().out.count("the bound") == 3


def test_the_scene_has_the_candidates_and_instances_that_are_asked_for(script) -> None:
    parts = script("--quick", name="benchmark")
    scene = parts["scene_of"](parts["parse_args"]())
    (sample,) = parts["draw_batch"](1, scene.height, scene.width, scene.instances)
    assert len(sample["instances"]) == scene.instances == 5
    assert sample["instances"].gt_boxes.nonempty().all()
    model = parts["build"](scene, "joint")
    parts["shift_scores"](model, sample, scene.candidates)
    model.test_nms_thresh, model.max_detections_per_image = 2.0, 10_000
    found = model.inference([sample], do_postprocess=False)[0]
    assert abs(len(found) - 2 * scene.candidates) <= 4


def test_a_broken_bound_is_said(script) -> None:
    lines_of = script(name="benchmark")["lines_of"]
    spread = {"median": 0.2, "q1": 0.1, "q3": 0.3}
    row = {"name": "x", "bound": 0.1, "rounds": 2, "seconds": {"a": spread}, "ratio": spread}
    assert lines_of(row)[-1].endswith("the bound 0.10 IS BROKEN")
    assert lines_of({**row, "bound": 0.2})[-1].endswith("the bound 0.20 holds")


@pytest.mark.parametrize("arguments", [("--rounds", "1"), ("--instances", "0")])
def test_wrong_arguments_are_refused(script, arguments: tuple[str, str]) -> None:
    with pytest.raises(SystemExit, match=f"error: {arguments[0]}"):
        script(*arguments)
