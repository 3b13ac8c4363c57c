"""Spec strings: their parts, and paths that lead nowhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from fsn_d2.data.specs import parse_spec, require_path


def test_spec_splits_at_the_last_colon() -> None:
    spec = parse_spec("coco:///data/a:b.json:images")
    assert spec is not None
    assert (spec.kind, spec.path, spec.rest) == ("coco", Path("/data/a:b.json"), "images")


def test_spec_expands_home_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("DATA", "/disk")
    coco = parse_spec("coco://~/a.json:$DATA/images")
    voc = parse_spec("voc://${DATA}/VOC:train")
    assert coco is not None and (coco.path, coco.rest) == (
        Path("/home/someone/a.json"),
        "/disk/images",
    )
    assert voc is not None and (voc.path, voc.rest) == (Path("/disk/VOC"), "train")


@pytest.mark.parametrize("name", ["coco_2017_train", "cocoo://a:b", "/a/b:c"])
def test_other_names_are_no_spec(name: str) -> None:
    assert parse_spec(name) is None


@pytest.mark.parametrize("name", ["coco://a.json", "voc://root:", "voc://:train", "voc://"])
def test_incomplete_spec_shows_the_syntax(name: str) -> None:
    with pytest.raises(ValueError, match=r"coco://path/annotations\.json:path/images"):
        parse_spec(name)


def test_wrong_path_names_the_nearest_parent(tmp_path: Path) -> None:
    wrong = tmp_path / "nowhere" / "deep"
    spec = parse_spec(f"voc://{wrong}:train")
    assert spec is not None
    with pytest.raises(FileNotFoundError) as caught:
        require_path(spec.path, "VOC root", spec, folder=True)
    assert f"VOC root {wrong} does not exist" in str(caught.value)
    assert f"folder that exists is {tmp_path}." in str(caught.value)
