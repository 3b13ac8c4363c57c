"""Sets with every kind of defect, read by the package and by the literal reader; the tool that
compares them; and that it would notice.
"""

from __future__ import annotations

import runpy
import tempfile
from pathlib import Path

import pytest

from fsn_d2.data import cleaning

TOOL = runpy.run_path(str(Path(__file__).parents[2] / "tools" / "fuzz_data.py"))


@pytest.fixture(autouse=True)
def sets_below_the_tests_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tool keeps the sets with a finding."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_sixty_sets(capsys: pytest.CaptureFixture[str]) -> None:
    figures = TOOL["fuzz"](60, 0, train_every=100)
    counts = figures.counts
    assert not figures.wrong
    assert counts["sets"] == 60 == counts["accepted"] + counts["refused"]
    assert min(counts["accepted"], counts["refused"], counts["coco"], counts["voc"]) > 10
    assert counts["boxes"] > 100 and counts["broken"] > 50
    assert counts["images"] > 100 and counts["evaluated"] > 5 and counts["trained"] == 1
    assert "60 data sets" in figures.text() and "wrong: 0" in figures.text()


@pytest.mark.parametrize(
    "name, replacement",
    [
        ("_clip_box", lambda box, width, height: list(box)),
        ("_is_finite", lambda value: value < 10),  # loses boxes
        ("upright_size", lambda image: image.size),
    ],
)
def test_a_fault_in_the_package_is_noticed(
    name: str, replacement, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cleaning, name, replacement)
    figures = TOOL["fuzz"](40, 0, train_every=0)
    assert figures.counts["differences"] + figures.counts["crashes"] > 0
