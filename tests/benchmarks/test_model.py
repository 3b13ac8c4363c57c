"""The benchmark of whole models: it runs, and all models get the same work."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.utils.events import EventStorage

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "model.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch):
    threads = torch.get_num_threads()

    def run(*arguments: str, name: str = "__main__") -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", ["model.py", *arguments])
        return runpy.run_path(str(SCRIPT), run_name=name)

    yield run
    torch.set_num_threads(threads)


def test_the_command_prints_ratios_and_writes_json(
    script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "folder" / "results.json"
    script("--quick", "--threads", "1", "--out", str(out))
    report = json.loads(out.read_text())
    assert [row["name"] for row in report["rows"]] == ["inference", "RoI stage", "training step"]
    for row in report["rows"]:
        assert set(row["ratios"]) == {"faster_rcnn", "faster_rcnn_fast", "fsn_feature"}
        for name, of_fsn in row["ratios"].items():
            slow, fast = row["seconds"][name], row["seconds"]["fsn"]
            assert of_fsn["median"] == pytest.approx(slow["median"] / fast["median"])
        assert all(peak > 0 for peak in row["memory"].values())
    # 7 * 7 bins of 256 or 40 channels into 1024, once more into 1024, 80 classes.
    predictor = 1024 * (81 + 320) + 81 + 320
    two_layers = 256 * 49 * 1024 + 1024 + 1024 * 1024 + 1024
    behind = {name: counts["behind pooling"] for name, counts in report["parameters"].items()}
    assert behind == {
        "faster_rcnn": two_layers + predictor,
        "faster_rcnn_fast": two_layers + predictor,
        "fsn": 40 * 49 * 1024 + 1024 + predictor,
        "fsn_feature": 40 * 49 * 1024 + 1024 + predictor,
    }
    for name in ("fsn", "fsn_feature"):
        rows = [row for row in report["scaling"] if row["model"] == name]
        assert {(row["proposals"], row["grid"]) for row in rows} == {
            *((count, 3) for count in (10, 20, 40, 80)),
            (20, 1),
            (20, 5),
        }
    assert capsys.readouterr().out.count("faster_rcnn_fast / fsn") == 3


@pytest.mark.parametrize("training", [False, True])
def test_the_heads_get_the_given_boxes_and_the_network_still_works(script, training: bool) -> None:
    parts = script("--quick", name="benchmark")
    scene = parts["scene_of"](parts["parse_args"]())
    model = parts["build"](scene, "fsn").train(training)
    batch = parts["draw_batch"](2, scene.height, scene.width, 5)
    images = model.preprocess_image(batch)
    features = model.backbone(images.tensor)
    objects = [sample["instances"] for sample in batch]
    with EventStorage():
        proposals, losses = model.proposal_generator(images, features, objects)
    given = parts["propose"](scene, 20).proposal_boxes.tensor
    assert [p.proposal_boxes.tensor.equal(given) for p in proposals] == [True, True]
    assert set(losses) == ({"loss_rpn_cls", "loss_rpn_loc"} if training else set())


def test_given_proposals_lie_in_the_image(script) -> None:
    boxes = script(name="benchmark")["draw_proposals"](500, 100, 300)
    x1, y1, x2, y2 = boxes.unbind(1)
    assert len(boxes) == 500 and (x1 < x2).all() and (y1 < y2).all()
    assert min(x1.min(), y1.min()) >= 0 and x2.max() <= 300 and y2.max() <= 100


@pytest.mark.parametrize("wrong", [["--rounds", "1"], ["--proposals", "0"], ["A.KEY", "1"]])
def test_wrong_arguments_are_one_line(script, wrong: list[str]) -> None:
    with pytest.raises(SystemExit, match="error: "):
        script("--quick", *wrong)
