"""The command line that writes a report."""

from __future__ import annotations

import json
import runpy
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "report.py"


@pytest.fixture
def run(
    tiny_args: Callable[..., Namespace], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    args = tiny_args("fsn_R50.yaml", small=True)

    def call(*options: str) -> None:
        line = ["report.py", "--config-file", args.config_file, *options, *args.opts]
        monkeypatch.setattr(sys, "argv", line)
        runpy.run_path(str(TOOL), run_name="__main__")

    return call


@pytest.fixture
def detections(run: Callable[..., None], tmp_path: Path) -> list[dict]:
    """Every object of the tiny set, found exactly."""
    truth = json.loads((tmp_path / "data3.json").read_text())
    kept = ("image_id", "category_id", "bbox")
    return [{**{k: a[k] for k in kept}, "score": 0.75} for a in truth["annotations"]]


def test_it_writes_a_report_of_the_evaluation_in_the_output_folder(
    run: Callable[..., None],
    detections: list[dict],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "output" / "inference"
    folder.mkdir(parents=True)
    (folder / "coco_instances_results.json").write_text(json.dumps(detections))
    path = tmp_path / "new" / "report.html"
    run("--output", str(path), "--images", "1")
    assert f"{path}: 0.0 MB, AP 100.0" in capsys.readouterr().out
    page = path.read_text(encoding="utf-8")
    block = page.partition('id="facts">')[2].partition("</script>")[0]
    facts = json.loads(block)
    assert facts["ap50"][-1] == 100
    assert len(facts["pictures"]) == 2
    assert all(picture["jpeg"] for picture in facts["pictures"])


def test_errors_take_one_line(
    run: Callable[..., None], detections: list[dict], tmp_path: Path
) -> None:
    def message(*options: str) -> str:
        with pytest.raises(SystemExit) as caught:
            run(*options)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    found = tmp_path / "found.json"
    missing = message("--detections", str(found))
    assert missing.startswith(f"error: --detections: {found} does not exist")
    assert "coco_instances_results.json does not exist" in message()
    found.write_text(json.dumps([{**detections[0], "image_id": 99}]))
    assert "image_id 99 is not in the data set" in message("--detections", str(found))
    found.write_text(json.dumps(detections))
    assert "--dataset: expected one of" in message("--dataset", "coco_2017_val")
    options = ("--detections", str(found))
    assert "images: expected 0 or more, got -1" in message(*options, "--images", "-1")
    assert "cannot be written" in message(*options, "--output", str(tmp_path))
