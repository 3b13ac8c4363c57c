"""Classes: where the list comes from, and sets or models that contradict it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from fsn_d2.data import register_datasets

from .small_sets import boxes_of, coco_dict, perfect_ap, write_coco, write_voc


def test_classes_of_voc_are_those_of_all_training_sets(voc: Path, make_cfg) -> None:
    bird = write_voc(voc, "birds", {"d": [("bird", (1, 1, 9, 9))]})
    register_datasets(make_cfg((f"voc://{voc}:train", bird), (bird,), num_classes=3))
    assert MetadataCatalog.get(bird).thing_classes == ["bird", "cat", "dog"]
    assert boxes_of(bird) == [("d.jpg", "bird", [0, 0, 9, 9])]


def test_unknown_class_in_the_test_set(voc: Path, make_cfg) -> None:
    test = write_voc(voc, "birds", {"d": [("bird", (1, 1, 9, 9))]})
    with pytest.raises(ValueError, match=r"d\.xml names the unknown class 'bird'.*cat, dog"):
        register_datasets(make_cfg((f"voc://{voc}:train",), (test,)))


def test_unknown_class_against_the_config(tmp_path: Path, make_cfg) -> None:
    spec = write_coco(tmp_path, coco_dict())
    with pytest.raises(ValueError, match=r"boxes\.json names the unknown class 'cat'.*DATASETS\.C"):
        register_datasets(make_cfg((spec,), classes=["dog"], num_classes=1))


def test_test_set_with_another_class_list(tmp_path: Path, make_cfg) -> None:
    train = write_coco(tmp_path, coco_dict())
    data = coco_dict()
    data["categories"].append({"id": 8, "name": "bird"})
    test = write_coco(tmp_path, data, "test.json")
    with pytest.raises(ValueError, match=r"another class list.*Only there: bird;"):
        register_datasets(make_cfg((train,), (test,)))
    register_datasets(make_cfg((train,), (test,), classes=["cat", "dog"]))


def test_same_classes_under_other_ids_are_matched_by_name(tmp_path: Path, make_cfg) -> None:
    data = coco_dict()
    data["categories"] = [{"id": 2, "name": "dog"}, {"id": 5, "name": "cat"}]
    train = write_coco(tmp_path, coco_dict())
    test = write_coco(tmp_path, data, "test.json")
    register_datasets(make_cfg((train,), (test,)))
    assert [b[1] for b in boxes_of(train)] == ["dog", "cat"]
    assert [b[1] for b in boxes_of(test)] == ["cat", "dog"]
    assert MetadataCatalog.get(test).thing_classes == ["cat", "dog"]
    assert perfect_ap(test)["AP-dog"] == pytest.approx(100)


def test_class_names_may_be_numbers_in_the_file(tmp_path: Path, make_cfg) -> None:
    data = coco_dict()
    data["categories"] = [{"id": 2, "name": 0}, {"id": 5, "name": 1}]
    spec = write_coco(tmp_path, data)
    register_datasets(make_cfg((spec,)))
    assert MetadataCatalog.get(spec).thing_classes == ["0", "1"]
    assert [b[1] for b in boxes_of(spec)] == ["1", "0"]


def test_class_named_twice_in_the_config(voc: Path, make_cfg) -> None:
    with pytest.raises(ValueError, match=r"DATASETS\.CLASSES names a class twice"):
        register_datasets(make_cfg((f"voc://{voc}:train",), classes=["cat", "cat"]))


def test_data_without_any_annotation(voc: Path, make_cfg) -> None:
    spec = write_voc(voc, "nothing", {"e": []})
    with pytest.raises(ValueError, match=r"no class is known.*DATASETS\.CLASSES"):
        register_datasets(make_cfg((spec,)))


def test_eval_only_without_the_training_set(voc: Path, make_cfg, caplog) -> None:
    absent, test = "voc:///nowhere/at/all:train", f"voc://{voc}:test"
    with pytest.raises(FileNotFoundError):
        register_datasets(make_cfg((absent,), (test,)))
    register_datasets(make_cfg((absent,), (test,)), eval_only=True)
    assert "taken from the test set" in caplog.text
    assert MetadataCatalog.get(test).thing_classes == ["cat", "dog"]
    register_datasets(make_cfg((absent,), (test,), classes=["dog", "cat"]), eval_only=True)
    assert MetadataCatalog.get(test).thing_classes == ["dog", "cat"]


def test_eval_only_takes_the_classes_of_a_json_whose_images_are_absent(
    tmp_path: Path, make_cfg
) -> None:
    data = coco_dict()
    test = write_coco(tmp_path, data, "test.json")
    train = {**data, "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]}
    train["annotations"] = []
    (tmp_path / "train.json").write_text(json.dumps(train))
    absent = f"coco://{tmp_path}/train.json:{tmp_path}/nowhere"
    register_datasets(make_cfg((absent,), (test,)), eval_only=True)
    assert MetadataCatalog.get(test).thing_classes == ["dog", "cat"]  # alone: cat, dog
    register_datasets(make_cfg((), (test,)), eval_only=True)
    assert MetadataCatalog.get(test).thing_classes == ["cat", "dog"]


def test_eval_only_takes_the_classes_of_a_training_set_at_hand(voc: Path, make_cfg) -> None:
    test = write_voc(voc, "dogs", {"d": [("dog", (1, 1, 9, 9))]})
    train = f"voc://{voc}:train"
    register_datasets(make_cfg((train,), (test,)), eval_only=True)
    assert MetadataCatalog.get(test).thing_classes == ["cat", "dog"]
    assert train not in DatasetCatalog


@pytest.fixture
def registered(make_cfg) -> str:
    """A set of another program, whose files are made when first asked for."""

    def generate() -> list[dict[str, Any]]:
        raise AssertionError("nothing may be generated by the checks")

    DatasetCatalog.register("lazy_set", generate)
    MetadataCatalog.get("lazy_set").set(thing_classes=["x", "y"], json_file="/not/yet.json")
    return "lazy_set"


def test_registered_set_is_checked_without_loading_it(registered: str, make_cfg) -> None:
    register_datasets(make_cfg((registered,)))
    with pytest.raises(ValueError, match="NUM_CLASSES is 3, but the data has 2"):
        register_datasets(make_cfg((registered,), num_classes=3))


def test_registered_training_set_with_an_own_test_set(registered: str, voc: Path, make_cfg) -> None:
    with pytest.raises(ValueError, match=r"unknown class 'cat'.*x, y"):
        register_datasets(make_cfg((registered,), (f"voc://{voc}:test",)))
    with pytest.raises(ValueError, match=r"'lazy_set' has another class list"):
        register_datasets(make_cfg((registered,), classes=["y", "x"]))


def test_number_of_roi_classes(voc: Path, make_cfg) -> None:
    message = (
        r"MODEL\.ROI_HEADS\.NUM_CLASSES is 80, but the data has 2 classes \(cat, dog\)\. "
        r"Set MODEL\.ROI_HEADS\.NUM_CLASSES 2\."
    )
    with pytest.raises(ValueError, match=message):
        register_datasets(make_cfg((f"voc://{voc}:train",), num_classes=80))


def test_number_of_classes_of_a_dense_detector(voc: Path, make_cfg) -> None:
    cfg = make_cfg((f"voc://{voc}:train",))
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    with pytest.raises(ValueError, match=r"RETINANET\.NUM_CLASSES is 80, but the data has 2"):
        register_datasets(cfg)
    cfg.MODEL.RETINANET.NUM_CLASSES, cfg.MODEL.ROI_HEADS.NUM_CLASSES = 2, 80
    register_datasets(cfg)


@pytest.mark.parametrize("architecture", ["ProposalNetwork", "NobodyKnowsIt"])
def test_other_architectures_are_not_judged(voc: Path, make_cfg, architecture: str) -> None:
    cfg = make_cfg((f"voc://{voc}:train",), num_classes=80)
    cfg.MODEL.META_ARCHITECTURE = architecture
    register_datasets(cfg)
