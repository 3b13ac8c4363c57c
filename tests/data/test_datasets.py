"""Registration: what lands in the catalogs and on disk, and names that lead nowhere."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from fsn_d2.data import datasets, register_datasets
from fsn_d2.data.datasets import safe_name

from .small_sets import coco_dict, perfect_ap, write_coco, write_split


def test_processes_that_see_other_images_are_refused(
    voc: Path, make_cfg, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on two machines, one of which lacks an image."""
    spec, seen = f"voc://{voc}:train", []
    monkeypatch.setattr(datasets.comm, "all_gather", lambda own: seen.append(own) or [own])
    register_datasets(make_cfg((spec,)))
    (voc / "JPEGImages" / "b.jpg").unlink()
    monkeypatch.setattr(datasets.comm, "all_gather", lambda own: [own, seen[0]])
    with pytest.raises(ValueError, match=f"Process 1 can use other images .* {re.escape(spec)}"):
        register_datasets(make_cfg((spec,)))
    monkeypatch.setattr(datasets.comm, "all_gather", lambda own: [None, own])
    with pytest.raises(ValueError, match="Process 0 found problems"):
        register_datasets(make_cfg((spec,)))


def test_command_line_form(voc: Path, make_cfg) -> None:
    cfg = make_cfg()
    cfg.merge_from_list(
        ["DATASETS.TRAIN", f"('voc://{voc}:train',)", "DATASETS.CLASSES", "['cat','dog']"]
    )
    register_datasets(cfg)
    assert MetadataCatalog.get(f"voc://{voc}:train").thing_classes == ["cat", "dog"]


def test_relative_path(voc: Path, make_cfg, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(voc.parent)
    register_datasets(make_cfg(("voc://voc:train",)))
    assert len(DatasetCatalog.get("voc://voc:train")) == 3


def test_clean_coco_is_evaluated_against_the_users_own_file(tmp_path: Path, make_cfg) -> None:
    spec = write_coco(tmp_path, coco_dict())
    register_datasets(make_cfg((spec,), (spec,)))
    assert MetadataCatalog.get(spec).json_file == str(tmp_path / "boxes.json")
    assert MetadataCatalog.get(spec).evaluator_type == "coco"
    assert not (tmp_path / "out").exists()
    assert perfect_ap(spec)["AP"] == pytest.approx(100)


def test_registering_twice_is_harmless_and_sees_changes(voc: Path, make_cfg) -> None:
    name = f"voc://{voc}:train"
    cfg = make_cfg((name,), (name,))
    register_datasets(cfg)
    json_file = Path(MetadataCatalog.get(name).json_file)
    first = json_file.read_bytes()
    register_datasets(cfg)
    assert json_file.read_bytes() == first
    write_split(voc, "train", ["a"])
    register_datasets(cfg)
    assert len(DatasetCatalog.get(name)) == 1


def test_callers_may_change_their_records(voc: Path, make_cfg) -> None:
    name = f"voc://{voc}:train"
    register_datasets(make_cfg((name,)))
    DatasetCatalog.get(name)[0]["annotations"].clear()
    assert len(DatasetCatalog.get(name)[0]["annotations"]) == 2


def test_written_json_is_left_alone_by_a_failing_write(voc: Path, make_cfg, monkeypatch) -> None:
    name = f"voc://{voc}:train"
    cfg = make_cfg((name,))
    register_datasets(cfg)
    json_file = Path(MetadataCatalog.get(name).json_file)
    before = json_file.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *a, **k: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        register_datasets(cfg)
    assert json_file.read_bytes() == before
    assert list(json_file.parent.iterdir()) == [json_file]


def testsafe_names_tell_specs_apart() -> None:
    names = [safe_name(n) for n in ("voc://a/b:c", "voc://a_b:c", "voc://a/b_c")]
    assert len(set(names)) == 3
    assert all(re.fullmatch(r"[\w.-]+", n) for n in names)


def test_builtin_set_whose_files_are_missing(
    make_cfg, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where Detectron2 was told to look when it was imported there may be some.
    for name, key in (("coco_2017_val", "json_file"), ("voc_2007_trainval", "dirname")):
        metadata = MetadataCatalog.get(name)
        moved = str(tmp_path / Path(getattr(metadata, key)).name)
        monkeypatch.setitem(metadata.__dict__, key, moved)
    message = r"'coco_2017_val'.*instances_val2017\.json does not exist.*\$DETECTRON2_DATASETS"
    with pytest.raises(FileNotFoundError, match=message):
        register_datasets(make_cfg((), ("coco_2017_val",), num_classes=80))
    with pytest.raises(FileNotFoundError, match=r"VOC2007 does not exist"):
        register_datasets(make_cfg(("voc_2007_trainval",), num_classes=20))
    register_datasets(make_cfg(("coco_2017_val",), num_classes=80), eval_only=True)


def test_builtin_set_whose_files_are_there(tmp_path: Path, make_cfg) -> None:
    write_coco(tmp_path, coco_dict())
    register_coco_instances("by_python", {}, str(tmp_path / "boxes.json"), str(tmp_path))
    register_datasets(make_cfg(("by_python",)))
    assert len(DatasetCatalog.get("by_python")) == 2


def test_unknown_name_shows_close_ones_and_the_syntax(make_cfg) -> None:
    with pytest.raises(ValueError, match=r"'coco_2017_trian'.*coco_2017_train.*voc://path/VOCroot"):
        register_datasets(make_cfg(("coco_2017_trian",)))
