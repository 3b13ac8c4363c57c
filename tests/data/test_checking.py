"""Everything that is wrong is found in one go, in all sets, before a training starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from fsn_d2.data import register_datasets

from .small_sets import (
    HEIGHT,
    WIDTH,
    boxes_of,
    coco_dict,
    write_coco,
    write_image,
    write_split,
    write_voc,
    write_xml,
)
from .test_cleaning import cut_off


def report(cfg, kind: type = ValueError) -> list[str]:
    """The lines of the error that registering raises."""
    with pytest.raises(kind) as raised:
        register_datasets(cfg)
    return str(raised.value).splitlines()


def test_all_problems_of_all_sets_are_reported_together(
    voc: Path, tmp_path: Path, make_cfg, caplog
) -> None:
    data = coco_dict()
    data["images"].append({"id": 10})
    data["categories"].append({"id": 5, "name": "bird"})
    data["annotations"][0]["bbox"] = [1, 2, 3]
    data["annotations"].append({"image_id": 9, "category_id": 7, "bbox": [1, 2, 3, 4]})
    data["annotations"].append({"image_id": 9, "category_id": 2, "bbox": [5, 5, 0, 4]})
    coco = write_coco(tmp_path, data)
    (voc / "Annotations" / "a.xml").write_text("<annotation>")
    (voc / "Annotations" / "b.xml").unlink()
    names = (coco, f"voc://{voc}:train", "no_such_set")
    lines = report(make_cfg(names, (f"voc://{tmp_path}/nowhere:x",)))
    wanted = [
        "images[2] lacks 'file_name'",
        "id 5 occurs 2 times in 'categories'",
        "annotations[0] (id 11) has bbox [1, 2, 3]",
        "annotations[2] (id None) names the unknown class 7",
        "a.xml is not a readable VOC annotation",
        "b.xml does not exist",
        "'no_such_set' is neither registered nor a spec",
        "nowhere does not exist",
    ]
    assert len(lines) == 1 + len(wanted)
    assert all(w in line for w, line in zip(wanted, lines[1:], strict=True)), lines
    assert "boxes without area in the image, skipped: 1 (two.jpg)" in caplog.text
    assert not set(names) & set(DatasetCatalog.list())


def test_every_object_of_an_xml_is_read(voc: Path, make_cfg) -> None:
    write_xml(voc, "a", [("", (1, 1, 9, 9)), ("cat", (1, 1, 9, 9)), ("dog", ("x", 1, 9, "y"))])
    lines = report(make_cfg((f"voc://{voc}:train",)))
    assert "object 1 has no <name>" in lines[1]
    assert "object 3 ('dog') has xmin 'x', expected a number" in lines[2]


def test_the_models_classes_are_compared_although_a_box_is_broken(tmp_path: Path, make_cfg) -> None:
    data = coco_dict()
    data["annotations"][0]["bbox"] = None
    lines = report(make_cfg((write_coco(tmp_path, data),), num_classes=80))
    assert "has bbox None" in lines[1]
    assert "NUM_CLASSES is 80, but the data has 2" in lines[2]


def test_classes_are_not_judged_where_an_annotation_that_names_some_is_broken(
    voc: Path, make_cfg
) -> None:
    (voc / "Annotations" / "a.xml").write_text("<annotation>")  # the only dog
    (line,) = report(make_cfg((f"voc://{voc}:train",), (f"voc://{voc}:test",)))
    assert "a.xml" in line
    lines = report(make_cfg((f"voc://{voc}:train",), num_classes=3, classes=["cat", "dog"]))
    assert "NUM_CLASSES is 3" in lines[2]


def test_eval_only_does_not_guess_the_classes_of_a_broken_training_set(voc: Path, make_cfg) -> None:
    cfg = make_cfg((f"voc://{voc}:train",), (f"voc://{voc}:test",))
    (voc / "Annotations" / "a.xml").write_text("<annotation>")
    with pytest.raises(ValueError, match=r"a\.xml is not a readable VOC annotation"):
        register_datasets(cfg, eval_only=True)
    cfg.DATASETS.CLASSES = ["cat", "dog"]
    register_datasets(cfg, eval_only=True)


def test_each_unknown_class_is_named(voc: Path, make_cfg) -> None:
    test = write_voc(voc, "zoo", {"d": [("bird", (1, 1, 9, 9)), ("cow", (1, 1, 9, 9))]})
    lines = report(make_cfg((f"voc://{voc}:train",), (test,)))
    assert "unknown class 'bird'" in lines[1] and "unknown class 'cow'" in lines[2]


def test_missing_files_alone_are_a_file_not_found_error(
    voc: Path, tmp_path: Path, make_cfg
) -> None:
    for name in "ab":
        (voc / "Annotations" / f"{name}.xml").unlink()
    lines = report(make_cfg((f"voc://{voc}:train",)), FileNotFoundError)
    assert len(lines) == 3
    both = f"coco://{tmp_path}/no.json:{tmp_path}/nowhere"
    lines = report(make_cfg((both,)), FileNotFoundError)
    assert "annotation file" in lines[1] and "image folder" in lines[2]


def test_a_long_report_is_written_to_the_output_folder(tmp_path: Path, make_cfg) -> None:
    data = coco_dict()
    data["annotations"] += [{"image_id": 7, "category_id": 2, "bbox": [i]} for i in range(200)]
    lines = report(make_cfg((write_coco(tmp_path, data),)))
    path = tmp_path / "out" / "datasets" / "problems.txt"
    assert lines[-1] == f"and 180 more; {path} lists all of them."
    assert len(path.read_text().splitlines()) == 200


def test_training_needs_a_box(voc: Path, make_cfg) -> None:
    empty = write_voc(voc, "none", {"e": [("cat", (9, 9, 9, 9))]})
    cfg = make_cfg((empty,), num_classes=1)
    assert "has a box to train on" in report(cfg)[0]
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    register_datasets(cfg)
    register_datasets(make_cfg((empty, f"voc://{voc}:train")))  # the other set has some


def test_training_does_not_count_crowds_as_boxes(tmp_path: Path, make_cfg) -> None:
    data = coco_dict()
    for annotation in data["annotations"]:
        annotation["iscrowd"] = 1
    assert "has a box to train on" in report(make_cfg((write_coco(tmp_path, data),)))[0]


def test_training_needs_an_image_that_decodes(voc: Path, make_cfg) -> None:
    for name in "ab":
        cut_off(voc / "JPEGImages" / f"{name}.jpg")
    (line,) = report(make_cfg((f"voc://{voc}:train",)))
    assert "can be decoded to its end" in line
    write_image(voc / "JPEGImages" / "b.jpg")
    register_datasets(make_cfg((f"voc://{voc}:train",)))


def test_an_empty_list_of_images(tmp_path: Path, make_cfg) -> None:
    spec = write_coco(tmp_path, {**coco_dict(), "images": [], "annotations": []})
    assert "lists no image" in report(make_cfg((), (spec,)))[0]


def test_masks_are_asked_for_by_models_that_learn_them(tmp_path: Path, make_cfg) -> None:
    data = coco_dict()
    data["annotations"][0]["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": [[1]]}
    spec = write_coco(tmp_path, data)
    register_datasets(make_cfg((), (spec,)))
    assert len(boxes_of(spec)) == 2
    cfg = make_cfg((), (spec,))
    cfg.MODEL.MASK_ON = True
    lines = report(cfg)
    assert "(id 11) of image 7 has no usable segmentation" in lines[1]
    assert "(id 12) of image 9 has no usable segmentation" in lines[2]


def test_masks_that_are_no_polygons_are_refused_where_polygons_are_learnt(
    tmp_path: Path, make_cfg
) -> None:
    data = coco_dict()
    for annotation in data["annotations"]:
        annotation["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT * WIDTH]}
    data["annotations"][1]["iscrowd"] = 1  # is not learnt from
    spec = write_coco(tmp_path, data)
    cfg = make_cfg((spec,), (spec,))
    cfg.MODEL.MASK_ON = True
    with pytest.raises(ValueError, match=r"annotation \(id 11\) of image 7 .*'bitmask'"):
        register_datasets(cfg)
    register_datasets(cfg, eval_only=True)
    cfg.INPUT.MASK_FORMAT = "bitmask"
    register_datasets(cfg)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_json_with_a_byte_order_mark_is_rewritten(
    tmp_path: Path, make_cfg, encoding: str
) -> None:
    spec = write_coco(tmp_path, coco_dict())
    (tmp_path / "boxes.json").write_text(json.dumps(coco_dict()), encoding=encoding)
    register_datasets(make_cfg((spec,)))
    assert len(boxes_of(spec)) == 2
    assert Path(MetadataCatalog.get(spec).json_file).parent == tmp_path / "out" / "datasets"


def test_image_ids_of_two_types_are_numbered_anew(tmp_path: Path, make_cfg) -> None:
    data = coco_dict()
    data["images"][0]["id"] = data["annotations"][0]["image_id"] = "seven"
    spec = write_coco(tmp_path, data)
    register_datasets(make_cfg((spec,)))
    assert [b[:2] for b in boxes_of(spec)] == [("one.jpg", "dog"), ("two.jpg", "cat")]


@pytest.mark.parametrize("width, skipped", [(2666, 1), (2664, 0)])
def test_an_image_that_resizing_would_shrink_to_nothing(
    voc: Path, make_cfg, caplog, width: int, skipped: int
) -> None:
    write_image(voc / "JPEGImages" / "b.jpg", (width, 1))  # Detectron2's MAX_SIZE is 1333
    write_xml(voc, "b", [("cat", (1, 1, 2, 2))], size=(width, 1))
    register_datasets(make_cfg((f"voc://{voc}:train",)))
    assert ("shrinks to nothing, skipped: 1 (b.jpg)" in caplog.text) == bool(skipped)


def test_a_named_pipe_is_no_image_to_wait_for(voc: Path, make_cfg, caplog) -> None:
    import os

    (voc / "JPEGImages" / "b.jpg").unlink()
    os.mkfifo(voc / "JPEGImages" / "b.jpg")
    register_datasets(make_cfg((f"voc://{voc}:train",)))
    assert "cannot be read, skipped: 1 (b.jpg)" in caplog.text


def test_a_split_file_that_is_no_text(voc: Path, make_cfg) -> None:
    (voc / "ImageSets" / "Main" / "train.txt").write_bytes(b"\xff\xfea\x00\n\x00")
    assert "cannot be read as UTF-8" in report(make_cfg((f"voc://{voc}:train",)))[0]
    write_split(voc, "train", ["a\0"])
    assert "NUL" in report(make_cfg((f"voc://{voc}:train",)))[0]
