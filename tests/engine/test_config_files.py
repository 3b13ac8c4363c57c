"""YAML configs: good ones merged as Detectron2 merges them, hostile and broken ones refused."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from detectron2.config import CfgNode, get_cfg

from fsn_d2 import add_fsn_config
from fsn_d2.engine import load_config
from fsn_d2.engine.config_files import merge_config_file

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def defaults() -> CfgNode:
    cfg = get_cfg()
    add_fsn_config(cfg)
    return cfg


def write(folder: Path, **files: str) -> Path:
    """Writes each text as <name>.yaml; returns the path of the first."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder / f"{next(iter(files))}.yaml"


def merged(path: Path) -> CfgNode:
    cfg = defaults()
    merge_config_file(cfg, str(path))
    return cfg


def by_detectron2(path: Path) -> CfgNode:
    cfg = defaults()
    cfg.merge_from_file(str(path))
    return cfg


# ---------------------------------------------------------------------------- good files


@pytest.mark.parametrize("path", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_the_projects_configs_are_merged_as_by_detectron2(path: Path) -> None:
    assert merged(path) == by_detectron2(path)


def test_tuples_in_text_bases_in_lists_and_other_folders(tmp_path: Path) -> None:
    write(tmp_path / "other", far="SOLVER: {MAX_ITER: 7, BASE_LR: 0.5}\n")
    path = write(
        tmp_path,
        top="_BASE_: [one.yaml, two.yaml]\nINPUT:\n  MIN_SIZE_TRAIN: (3, 4)\n",
        one="_BASE_: shared.yaml\nSOLVER: {BASE_LR: 0.25}\n",
        two=f"_BASE_: {tmp_path}/other/far.yaml\nSOLVER: {{MAX_ITER: 9}}\n",
        shared="_BASE_: other/../other/far.yaml\nSOLVER:\n  STEPS: (5, 6)\n",
    )
    cfg = merged(path)
    assert cfg.INPUT.MIN_SIZE_TRAIN == (3, 4)
    assert cfg.SOLVER.STEPS == (5, 6)
    assert cfg.SOLVER.MAX_ITER == 9
    assert cfg.SOLVER.BASE_LR == 0.5  # the second base's, which takes it from its own
    assert cfg == by_detectron2(path)


def test_a_base_below_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write(tmp_path / "home", base="SEED: 5\n")
    assert merged(write(tmp_path, top="_BASE_: ~/base.yaml\n")).SEED == 5


# ---------------------------------------------------------------------------- hostile files


TAGS = {
    "apply": '!!python/object/apply:os.mkdir ["{mark}"]',
    "new": '!!python/object/new:os.mkdir ["{mark}"]',
    "eval": "!!python/object/apply:eval [\"__import__('os').mkdir('{mark}')\"]",
}
PLACES = {
    "the file": {"top": "SEED: {payload}\n"},
    "a key": {"top": "? {payload}\n: 3\n"},
    "its base": {"top": "_BASE_: base.yaml\n", "base": "SEED: {payload}\n"},
    "a base of its base": {
        "top": "_BASE_: base.yaml\n",
        "base": "_BASE_: deep.yaml\n",
        "deep": "SEED: {payload}\n",
    },
    "the second of its bases": {
        "top": "_BASE_: [good.yaml, base.yaml]\n",
        "good": "SEED: 3\n",
        "base": "SEED: {payload}\n",
    },
    "the name of its base": {"top": "_BASE_: {payload}\n"},
}


def attack(folder: Path, place: str, tag: str) -> Path:
    payload = TAGS[tag].format(mark=folder / "mark")
    files = {name: text.replace("{payload}", payload) for name, text in PLACES[place].items()}
    return write(folder, **files)


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("place", PLACES)
def test_a_payload_does_not_run_and_is_named(tmp_path: Path, place: str, tag: str) -> None:
    path = attack(tmp_path, place, tag)
    with pytest.raises(ValueError) as caught:
        load_config(str(path))
    message = str(caught.value)
    culprit = "deep" if "deep" in PLACES[place] else "base" if "base" in PLACES[place] else "top"
    assert str(tmp_path / f"{culprit}.yaml") in message
    function = "eval" if tag == "eval" else "os.mkdir"
    assert f"python/object/{tag.replace('eval', 'apply')}:{function}" in message
    assert "line 1" in message and "\n" not in message
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("place", ["the file", "its base", "the second of its bases"])
def test_the_payloads_are_live(tmp_path: Path, place: str) -> None:
    """So that the test above can fail: Detectron2's default runs them."""
    path = attack(tmp_path, place, "apply")
    with contextlib.suppress(AssertionError, ValueError):  # the payload's result fits no key
        by_detectron2(path)
    assert (tmp_path / "mark").exists()


def test_a_lazy_config_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "lazy.py"
    path.write_text(f"import os\nos.mkdir({str(tmp_path / 'mark')!r})\nmodel = dict(depth=50)\n")
    with pytest.raises(ValueError, match=r"lazy\.py.*LazyConfig"):
        load_config(str(path))
    assert not (tmp_path / "mark").exists()


# ---------------------------------------------------------------------------- broken files


@pytest.mark.parametrize(
    ("files", "chain"),
    [
        ({"a": "_BASE_: a.yaml\n"}, "a -> a"),
        ({"a": "_BASE_: ./a.yaml\n"}, "a -> ./a"),
        ({"a": "_BASE_: b.yaml\n", "b": "_BASE_: a.yaml\n"}, "a -> b -> a"),
        (
            {"a": "_BASE_: b.yaml\n", "b": "_BASE_: [c.yaml, a.yaml]\n", "c": "SEED: 3\n"},
            "a -> b -> a",
        ),
    ],
)
def test_a_cycle_is_shown(tmp_path: Path, files: dict[str, str], chain: str) -> None:
    path = write(tmp_path, **files)
    with pytest.raises(ValueError, match="_BASE_ leads back") as caught:
        load_config(str(path))
    expected = " -> ".join(f"{tmp_path}/{name}.yaml" for name in chain.split(" -> "))
    assert f"({expected})" in str(caught.value)


def test_a_missing_base_is_named_with_the_file_that_names_it(tmp_path: Path) -> None:
    path = write(tmp_path, top="_BASE_: middle.yaml\n", middle="_BASE_: sub/absent.yaml\n")
    with pytest.raises(FileNotFoundError) as caught:
        load_config(str(path))
    message = str(caught.value)
    assert f"{tmp_path}/sub/absent.yaml (_BASE_ of {tmp_path}/middle.yaml)" in message


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "a NoneType at the top"),
        ("[1, 2]", "a list at the top"),
        ("SEED: [1", "cannot be read as plain YAML.*line 1"),
        ("SEED: 2001-99-99", "cannot be read as plain YAML: month"),
        ("? [1]\n: 3", "cannot be read as plain YAML.*unhashable"),
        ("_BASE_: 3", "_BASE_ is 3, expected the path"),
        ("_BASE_: [{a: 3}]", "_BASE_ is .*expected the path"),
        ("MODEL: {FSN: {GIRD: 3}}", r"MODEL\.FSN\.GIRD"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, text: str, reason: str) -> None:
    path = write(tmp_path, top=text)
    with pytest.raises(ValueError, match=reason) as caught:
        load_config(str(path))
    assert str(path) in str(caught.value)


def test_a_file_of_bytes_is_named(tmp_path: Path) -> None:
    path = tmp_path / "top.yaml"
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ValueError, match=r"top\.yaml cannot be read"):
        load_config(str(path))
