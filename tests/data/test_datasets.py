"""Specs of a user's own data: parsing, classes, cleaning, registration and every error."""

from __future__ import annotations

import json
import logging
import os
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, BoxMode, Instances
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fsn_d2.data.config import add_data_config
from fsn_d2.data.datasets import _clip_box, _safe_name, parse_spec, register_datasets

BCCD = Path(
    os.environ.get("FSN_BCCD", Path(__file__).parents[3] / "shared" / "data" / "bccd" / "BCCD")
)
WIDTH, HEIGHT = 40, 30
WARNINGS = "fsn_d2.data.datasets"


# ---------------------------------------------------------------------------- small data sets


def write_image(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT), **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)


def cut_off(path: Path) -> None:
    """Keeps the header and half of the pixels."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


VocBoxes = list[tuple[str, tuple[Any, Any, Any, Any]]]


def write_xml(root: Path, image_id: str, boxes: VocBoxes, **fields: Any) -> Path:
    size = fields.get("size", (WIDTH, HEIGHT))
    objects = "".join(
        f"<object><name>{name}</name><difficult>{fields.get('difficult', 0)}</difficult><bndbox>"
        f"<xmin>{b[0]}</xmin><ymin>{b[1]}</ymin><xmax>{b[2]}</xmax><ymax>{b[3]}</ymax>"
        "</bndbox></object>"
        for name, b in boxes
    )
    path = root / "Annotations" / f"{image_id}.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"<annotation><filename>{fields.get('filename', image_id + '.jpg')}</filename>"
        f"<size><width>{size[0]}</width><height>{size[1]}</height></size>{objects}</annotation>"
    )
    return path


def write_split(root: Path, split: str, ids: list[str]) -> None:
    folder = root / "ImageSets" / "Main"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{split}.txt").write_text("".join(f"{i}\n" for i in ids))


def write_voc(root: Path, split: str, images: dict[str, VocBoxes]) -> str:
    for image_id, boxes in images.items():
        write_image(root / "JPEGImages" / f"{image_id}.jpg")
        write_xml(root, image_id, boxes)
    write_split(root, split, list(images))
    return f"voc://{root}:{split}"


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    root = tmp_path / "voc"
    cat, dog = ("cat", (1, 1, 40, 30)), ("dog", (5, 6, 14, 25))
    write_voc(root, "train", {"a": [dog, cat], "b": [cat], "empty": []})
    write_voc(root, "test", {"c": [cat, dog]})
    return root


def coco_dict() -> dict[str, Any]:
    """Two images, ids with gaps, categories not in the order of their ids."""
    return {
        "images": [
            {"id": 7, "file_name": "one.jpg", "width": WIDTH, "height": HEIGHT},
            {"id": 9, "file_name": "two.jpg", "width": WIDTH, "height": HEIGHT},
        ],
        "categories": [{"id": 5, "name": "dog"}, {"id": 2, "name": "cat"}],
        "annotations": [
            {
                "id": 11,
                "image_id": 7,
                "category_id": 5,
                "bbox": [2.5, 3.0, 10.0, 8.0],
                "area": 70.0,
                "iscrowd": 0,
                "segmentation": [[2.5, 3.0, 12.5, 3.0, 12.5, 11.0]],
                "keypoints": [3, 4, 2],
                "num_keypoints": 1,
            },
            {
                "id": 12,
                "image_id": 9,
                "category_id": 2,
                "bbox": [0, 0, 20, 15],
                "area": 300,
                "iscrowd": 0,
            },
        ],
    }


def write_coco(folder: Path, data: Any, name: str = "boxes.json") -> str:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    for image in ("one.jpg", "two.jpg"):
        if not (folder / "images" / image).exists():
            write_image(folder / "images" / image)
    return f"coco://{path}:{folder / 'images'}"


@pytest.fixture
def make_cfg(tmp_path: Path):
    """A config with the data keys; removes from the catalogs what a test registered."""
    before = set(DatasetCatalog.list()), set(MetadataCatalog.list())

    def make(
        train: tuple[str, ...] = (), test: tuple[str, ...] = (), num_classes: int = 2, **keys: Any
    ) -> CfgNode:
        cfg = get_cfg()
        add_data_config(cfg)
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = train, test
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = num_classes
        cfg.OUTPUT_DIR = str(tmp_path / "out")
        cfg.DATASETS.CLASSES = keys.get("classes", [])
        return cfg

    yield make
    for catalog, names in zip((DatasetCatalog, MetadataCatalog), before, strict=True):
        for name in set(catalog.list()) - names:
            catalog.remove(name)


def boxes_of(name: str) -> list[tuple[str, str, list[float]]]:
    """(image, class, xyxy box) of every registered annotation."""
    names = MetadataCatalog.get(name).thing_classes
    return [
        (
            Path(record["file_name"]).name,
            names[a["category_id"]],
            BoxMode.convert(list(map(float, a["bbox"])), a["bbox_mode"], BoxMode.XYXY_ABS),
        )
        for record in DatasetCatalog.get(name)
        for a in record["annotations"]
    ]


def perfect_ap(name: str) -> dict[str, float]:
    """COCO results of predictions that are the registered annotations themselves."""
    evaluator = COCOEvaluator(name, tasks=("bbox",), distributed=False, use_fast_impl=False)
    evaluator.reset()
    for record in DatasetCatalog.get(name):
        instances = Instances((record["height"], record["width"]))
        annotations = record["annotations"]
        instances.pred_boxes = Boxes(
            torch.tensor(
                [
                    BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS)
                    for a in annotations
                ],
                dtype=torch.float32,
            ).reshape(-1, 4)
        )
        instances.scores = torch.ones(len(annotations))
        instances.pred_classes = torch.tensor([a["category_id"] for a in annotations])
        evaluator.process([record], [{"instances": instances}])
    return evaluator.evaluate()["bbox"]


# ---------------------------------------------------------------------------- specs


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


def test_relative_path(voc: Path, make_cfg, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(voc.parent)
    register_datasets(make_cfg(("voc://voc:train",)))
    assert len(DatasetCatalog.get("voc://voc:train")) == 3


def test_safe_names_tell_specs_apart() -> None:
    names = [_safe_name(n) for n in ("voc://a/b:c", "voc://a_b:c", "voc://a/b_c")]
    assert len(set(names)) == 3
    assert all(re.fullmatch(r"[\w.-]+", n) for n in names)


# ---------------------------------------------------------------------------- VOC


def literal_voc(root: Path, split: str) -> list[tuple[str, str, list[float]]]:
    """An independent reading; pixels are 1-based and inclusive."""
    found = []
    for image_id in (root / "ImageSets" / "Main" / f"{split}.txt").read_text().split():
        for element in ET.parse(root / "Annotations" / f"{image_id}.xml").iter("object"):
            x1, y1, x2, y2 = (
                float(element.find("bndbox").find(k).text)  # type: ignore[union-attr, arg-type]
                for k in ("xmin", "ymin", "xmax", "ymax")
            )
            if x2 > x1 and y2 > y1:
                name = element.find("name").text or ""  # type: ignore[union-attr]
                found.append((f"{image_id}.jpg", name, [x1 - 1, y1 - 1, x2, y2]))
    return found


def test_voc_equals_a_literal_reading(voc: Path, make_cfg, caplog) -> None:
    train, test = f"voc://{voc}:train", f"voc://{voc}:test"
    with caplog.at_level(logging.WARNING, WARNINGS):
        register_datasets(make_cfg((train,), (test,)))
    assert not caplog.records
    assert MetadataCatalog.get(test).thing_classes == ["cat", "dog"]
    assert sorted(boxes_of(train)) == sorted(literal_voc(voc, "train"))
    assert boxes_of(test)[0] == ("c.jpg", "cat", [0, 0, 40, 30])


def test_voc_image_without_objects_stays(voc: Path, make_cfg) -> None:
    register_datasets(make_cfg((f"voc://{voc}:train",)))
    records = DatasetCatalog.get(f"voc://{voc}:train")
    assert [len(r["annotations"]) for r in records] == [2, 1, 0]


def test_voc_difficult_objects_are_ordinary(voc: Path, make_cfg) -> None:
    write_xml(voc, "b", [("cat", (1, 1, 9, 9))], difficult=1)
    register_datasets(make_cfg((f"voc://{voc}:train",)))
    record = DatasetCatalog.get(f"voc://{voc}:train")[1]
    assert [a["iscrowd"] for a in record["annotations"]] == [0]


def test_voc_evaluates_with_coco_metrics(voc: Path, make_cfg) -> None:
    name = f"voc://{voc}:test"
    register_datasets(make_cfg((f"voc://{voc}:train",), (name,)))
    results = perfect_ap(name)
    assert results["AP"] == pytest.approx(100)
    assert results["AP-cat"] == results["AP-dog"] == pytest.approx(100)


@pytest.mark.parametrize("file_name", ["b.png", "b.JPG", "b.bmp"])
def test_voc_image_of_another_extension(voc: Path, make_cfg, file_name: str) -> None:
    (voc / "JPEGImages" / "b.jpg").unlink()
    write_image(voc / "JPEGImages" / file_name)
    register_datasets(make_cfg((f"voc://{voc}:train",)))
    files = [Path(r["file_name"]).name for r in DatasetCatalog.get(f"voc://{voc}:train")]
    assert files == ["a.jpg", file_name, "empty.jpg"]


def test_voc_filename_serves_only_where_the_id_finds_nothing(voc: Path, make_cfg) -> None:
    write_image(voc / "JPEGImages" / "photo 1.png")
    write_xml(voc, "a", [("dog", (1, 1, 9, 9))], filename="photo 1.png")
    write_xml(voc, "b", [("cat", (1, 1, 9, 9))], filename="photo 1.png")
    (voc / "JPEGImages" / "b.jpg").unlink()
    register_datasets(make_cfg((f"voc://{voc}:train",)))
    files = [Path(r["file_name"]).name for r in DatasetCatalog.get(f"voc://{voc}:train")]
    assert files == ["a.jpg", "photo 1.png", "empty.jpg"]


def test_voc_ids_may_hold_spaces_and_repeat(voc: Path, make_cfg, caplog) -> None:
    spec = write_voc(voc, "odd", {"my image": [("cat", (1, 1, 9, 9)), ("dog", (1, 1, 9, 9))]})
    write_split(voc, "odd", ["my image", "", "my image"])
    register_datasets(make_cfg((spec,)))
    assert len(DatasetCatalog.get(spec)) == 1
    assert "listed more than once, taken once: 1 (my image)" in caplog.text


@pytest.mark.skipif(not BCCD.is_dir(), reason=f"{BCCD} is not there")
def test_bccd(make_cfg, caplog) -> None:
    train, test = f"voc://{BCCD}:trainval", f"voc://{BCCD}:test"
    with caplog.at_level(logging.WARNING, WARNINGS):
        register_datasets(make_cfg((train,), (test,), num_classes=3))
    assert [len(DatasetCatalog.get(n)) for n in (train, test)] == [292, 72]
    assert sorted(boxes_of(train)) == sorted(literal_voc(BCCD, "trainval"))
    assert sorted(boxes_of(test)) == sorted(literal_voc(BCCD, "test"))
    assert len(caplog.records) == 1
    assert "skipped: 2 (BloodImage_00338.jpg, BloodImage_00343.jpg)" in caplog.text


# ---------------------------------------------------------------------------- COCO


def test_coco_equals_the_raw_json(tmp_path: Path, make_cfg, caplog) -> None:
    data = coco_dict()
    spec = write_coco(tmp_path, data)
    with caplog.at_level(logging.WARNING, WARNINGS):
        register_datasets(make_cfg((spec,)))
    assert not caplog.records
    assert MetadataCatalog.get(spec).thing_classes == ["cat", "dog"]
    first, second = DatasetCatalog.get(spec)
    assert (first["image_id"], first["width"], first["height"]) == (7, WIDTH, HEIGHT)
    assert first["file_name"] == str(tmp_path / "images" / "one.jpg")
    (annotation,) = first["annotations"]
    raw = data["annotations"][0]
    assert annotation["bbox"] == raw["bbox"]
    assert annotation["bbox_mode"] == BoxMode.XYWH_ABS
    assert annotation["segmentation"] == raw["segmentation"]
    assert annotation["keypoints"] == [3.5, 4.5, 2]  # pixel indices to coordinates
    assert [a["category_id"] for r in (first, second) for a in r["annotations"]] == [1, 0]


def test_clean_coco_is_evaluated_against_the_users_own_file(tmp_path: Path, make_cfg) -> None:
    spec = write_coco(tmp_path, coco_dict())
    register_datasets(make_cfg((spec,), (spec,)))
    assert MetadataCatalog.get(spec).json_file == str(tmp_path / "boxes.json")
    assert MetadataCatalog.get(spec).evaluator_type == "coco"
    assert not (tmp_path / "out").exists()
    assert perfect_ap(spec)["AP"] == pytest.approx(100)


def test_class_order_of_the_config_holds_in_evaluation(tmp_path: Path, make_cfg) -> None:
    """Per-class results must not swap names when the order is not that of the category ids."""
    data = coco_dict()
    data["annotations"][0]["segmentation"] = []
    spec = write_coco(tmp_path, data)
    register_datasets(make_cfg((), (spec,), num_classes=3, classes=["dog", "bird", "cat"]))
    metadata = MetadataCatalog.get(spec)
    assert metadata.thing_classes == ["dog", "bird", "cat"]
    assert boxes_of(spec) == [
        ("one.jpg", "dog", [2.5, 3, 12.5, 11]),
        ("two.jpg", "cat", [0, 0, 20, 15]),
    ]
    written = json.loads(Path(metadata.json_file).read_text())
    assert [c["name"] for c in sorted(written["categories"], key=lambda c: c["id"])] == [
        "dog",
        "bird",
        "cat",
    ]
    results = perfect_ap(spec)
    assert results["AP-dog"] == results["AP-cat"] == pytest.approx(100)
    assert np.isnan(results["AP-bird"])


def test_fields_that_evaluation_needs_are_filled_in(tmp_path: Path, make_cfg) -> None:
    data = coco_dict()
    for image in data["images"]:
        del image["width"], image["height"]
    for index, annotation in enumerate(data["annotations"]):
        del annotation["area"], annotation["iscrowd"]
        annotation["id"] = index  # an id of 0 never counts as matched in pycocotools
    spec = write_coco(tmp_path, data)
    register_datasets(make_cfg((), (spec,)))
    written = json.loads(Path(MetadataCatalog.get(spec).json_file).read_text())
    assert [a["id"] for a in written["annotations"]] == [1, 2]
    assert [a["area"] for a in written["annotations"]] == [80, 300]
    assert {(r["width"], r["height"]) for r in DatasetCatalog.get(spec)} == {(WIDTH, HEIGHT)}
    assert perfect_ap(spec)["AP"] == pytest.approx(100)


def test_coco_test_set_without_annotations(tmp_path: Path, make_cfg) -> None:
    data = coco_dict()
    del data["annotations"]
    spec = write_coco(tmp_path, data)
    register_datasets(make_cfg((), (spec,)))
    assert [r["annotations"] for r in DatasetCatalog.get(spec)] == [[], []]
    with pytest.raises(ValueError, match="no list 'annotations'"):
        register_datasets(make_cfg((spec,)))


# ---------------------------------------------------------------------------- cleaning


BAD_BOXES = {
    "no width": [5, 5, 0, 10],
    "negative height": [5, 5, 10, -1],
    "nan": [5, float("nan"), 10, 10],
    "nan width": [5, 5, float("nan"), 10],
    "infinite": [5, 5, float("inf"), 10],
    "right of the image": [WIDTH, 5, 10, 10],
    "above the image": [5, -10, 10, 10],
}


@pytest.mark.parametrize("box", BAD_BOXES.values(), ids=BAD_BOXES.keys())
def test_box_without_area_is_skipped_and_counted(tmp_path: Path, make_cfg, caplog, box) -> None:
    data = coco_dict()
    data["annotations"].append({"id": 13, "image_id": 9, "category_id": 2, "bbox": box})
    spec = write_coco(tmp_path, data)
    register_datasets(make_cfg((spec,)))
    warnings = [r.getMessage() for r in caplog.records if r.name == WARNINGS]
    assert warnings == [f"Data set {spec}: boxes without area in the image, skipped: 1 (two.jpg)."]
    assert len(boxes_of(spec)) == 2
    written = json.loads(Path(MetadataCatalog.get(spec).json_file).read_text())
    assert [a["id"] for a in written["annotations"]] == [11, 12]


def test_box_partly_outside_is_clipped(tmp_path: Path, make_cfg) -> None:
    data = coco_dict()
    data["annotations"][1]["bbox"] = [-10, -5, 20, 100]
    spec = write_coco(tmp_path, data)
    register_datasets(make_cfg((), (spec,)))
    assert boxes_of(spec)[1] == ("two.jpg", "cat", [0, 0, 10, HEIGHT])
    written = json.loads(Path(MetadataCatalog.get(spec).json_file).read_text())
    assert written["annotations"][1]["area"] == 10 * HEIGHT
    assert written["annotations"][0] == data["annotations"][0]


def test_rounding_beyond_the_border_is_no_defect(tmp_path: Path, make_cfg) -> None:
    data = coco_dict()
    data["annotations"][1]["bbox"] = [0, 0, WIDTH + 0.01, 15]
    spec = write_coco(tmp_path, data)
    register_datasets(make_cfg((spec,)))
    assert MetadataCatalog.get(spec).json_file == str(tmp_path / "boxes.json")


NUMBER = st.floats(-100, 100)


@given(st.tuples(NUMBER, NUMBER, NUMBER, NUMBER))
def test_clipping_equals_counting_in_interval_arithmetic(box: tuple[float, ...]) -> None:
    """The clipped box is the intersection with the image, up to the slack, or None if empty."""
    x, y, w, h = box
    clipped = _clip_box(box, WIDTH, HEIGHT)
    xs, ys = np.clip([x, x + w], 0, WIDTH), np.clip([y, y + h], 0, HEIGHT)
    if w <= 0 or h <= 0 or xs[0] >= xs[1] or ys[0] >= ys[1]:
        assert clipped is None
        return
    assert clipped is not None
    expected = [xs[0], ys[0], xs[1] - xs[0], ys[1] - ys[0]]
    assert np.abs(np.subtract(clipped, expected)).max() <= 0.1 + 0.1


def test_unreadable_images_are_skipped_and_counted(voc: Path, make_cfg, caplog) -> None:
    (voc / "JPEGImages" / "a.jpg").write_bytes(b"no image at all")
    (voc / "JPEGImages" / "b.jpg").unlink()
    register_datasets(make_cfg((f"voc://{voc}:train",)))
    assert "images that cannot be read, skipped: 2 (a.jpg, b.jpg)" in caplog.text
    files = [Path(r["file_name"]).name for r in DatasetCatalog.get(f"voc://{voc}:train")]
    assert files == ["empty.jpg"]


def test_truncation_is_found_in_test_sets(voc: Path, make_cfg, caplog) -> None:
    write_voc(voc, "test", {"c": [("cat", (1, 1, 9, 9))], "d": [("dog", (1, 1, 9, 9))]})
    for name in ("a", "c"):
        cut_off(voc / "JPEGImages" / f"{name}.jpg")
    train, test = f"voc://{voc}:train", f"voc://{voc}:test"
    register_datasets(make_cfg((train,), (test,)))
    assert len(DatasetCatalog.get(train)) == 3  # left to the mapper
    assert len(DatasetCatalog.get(test)) == 1
    assert "skipped: 1 (c.jpg)" in caplog.text
    written = json.loads(Path(MetadataCatalog.get(test).json_file).read_text())
    assert [i["file_name"] for i in written["images"]] == ["d.jpg"]
    assert len(written["annotations"]) == 1


def test_no_readable_image_is_an_error(voc: Path, make_cfg) -> None:
    for path in (voc / "JPEGImages").iterdir():
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of its 3 images can be read in .*JPEGImages"):
        register_datasets(make_cfg((f"voc://{voc}:train",)))


def test_real_image_size_wins(voc: Path, make_cfg, caplog) -> None:
    write_image(voc / "JPEGImages" / "b.jpg", (20, 10))
    register_datasets(make_cfg((f"voc://{voc}:train",)))
    record = DatasetCatalog.get(f"voc://{voc}:train")[1]
    assert (record["width"], record["height"]) == (20, 10)
    assert boxes_of(f"voc://{voc}:train")[2] == ("b.jpg", "cat", [0, 0, 20, 10])
    assert "real size taken: 1 (b.jpg)" in caplog.text


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_size_is_that_of_the_turned_image(voc: Path, make_cfg, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (voc / "JPEGImages" / "b.jpg").unlink()
    write_image(voc / "JPEGImages" / f"b{suffix}", (WIDTH, HEIGHT), exif=exif)
    register_datasets(make_cfg((f"voc://{voc}:train",)))
    record = DatasetCatalog.get(f"voc://{voc}:train")[1]
    assert (record["width"], record["height"]) == (HEIGHT, WIDTH)


def test_annotation_of_an_unlisted_image_is_counted(tmp_path: Path, make_cfg, caplog) -> None:
    data = coco_dict()
    data["annotations"][1]["image_id"] = 1000
    spec = write_coco(tmp_path, data)
    register_datasets(make_cfg((spec,)))
    assert "annotations of images that are not listed, skipped: 1 (1000)" in caplog.text


def test_one_warning_names_all_defects_and_three_images_each(voc: Path, make_cfg, caplog) -> None:
    images = {f"i{k}": [("cat", (9, 9, 9, 9)), ("dog", (1, 1, 9, 9))] for k in range(5)}
    spec = write_voc(voc, "many", images)
    write_image(voc / "JPEGImages" / "i4.jpg", (50, 50))
    register_datasets(make_cfg((spec,), classes=["cat", "dog"]))
    messages = [r.getMessage() for r in caplog.records if r.name == WARNINGS]
    assert len(messages) == 1
    assert "skipped: 5 (i0.jpg, i1.jpg, i2.jpg, ...)" in messages[0]
    assert "real size taken: 1 (i4.jpg)" in messages[0]


# ---------------------------------------------------------------------------- registration


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
    monkeypatch.setattr(json, "dump", lambda *a, **k: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        register_datasets(cfg)
    assert json_file.read_bytes() == before


def test_command_line_form(voc: Path, make_cfg) -> None:
    cfg = make_cfg()
    cfg.merge_from_list(
        ["DATASETS.TRAIN", f"('voc://{voc}:train',)", "DATASETS.CLASSES", "['cat','dog']"]
    )
    register_datasets(cfg)
    assert MetadataCatalog.get(f"voc://{voc}:train").thing_classes == ["cat", "dog"]


# ---------------------------------------------------------------------------- classes


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


def test_eval_only_takes_the_classes_of_a_training_set_at_hand(voc: Path, make_cfg) -> None:
    test = write_voc(voc, "dogs", {"d": [("dog", (1, 1, 9, 9))]})
    train = f"voc://{voc}:train"
    register_datasets(make_cfg((train,), (test,)), eval_only=True)
    assert MetadataCatalog.get(test).thing_classes == ["cat", "dog"]
    assert train not in DatasetCatalog


# ---------------------------------------------------------------------------- NUM_CLASSES


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


# ---------------------------------------------------------------------------- names and paths


def test_builtin_set_whose_files_are_missing(make_cfg) -> None:
    message = r"'coco_2017_val'.*instances_val2017\.json does not exist.*\$DETECTRON2_DATASETS"
    with pytest.raises(FileNotFoundError, match=message):
        register_datasets(make_cfg((), ("coco_2017_val",), num_classes=80))
    with pytest.raises(FileNotFoundError, match=r"VOC2007 does not exist"):
        register_datasets(make_cfg(("voc_2007_trainval",), num_classes=20))
    register_datasets(make_cfg(("coco_2017_val",), num_classes=80), eval_only=True)


def test_builtin_set_whose_files_are_there(tmp_path: Path, make_cfg) -> None:
    from detectron2.data.datasets import register_coco_instances

    write_coco(tmp_path, coco_dict())
    register_coco_instances("by_python", {}, str(tmp_path / "boxes.json"), str(tmp_path))
    register_datasets(make_cfg(("by_python",)))
    assert len(DatasetCatalog.get("by_python")) == 2


def test_unknown_name_shows_close_ones_and_the_syntax(make_cfg) -> None:
    with pytest.raises(ValueError, match=r"'coco_2017_trian'.*coco_2017_train.*voc://path/VOCroot"):
        register_datasets(make_cfg(("coco_2017_trian",)))


def test_wrong_path_names_the_nearest_parent(voc: Path, make_cfg) -> None:
    wrong = voc / "nowhere" / "deep"
    with pytest.raises(FileNotFoundError) as caught:
        register_datasets(make_cfg((f"voc://{wrong}:train",)))
    assert f"VOC root {wrong} does not exist" in str(caught.value)
    assert f"folder that exists is {voc}." in str(caught.value)


@pytest.mark.parametrize("folder", ["Annotations", "ImageSets/Main", "JPEGImages"])
def test_missing_voc_folder(voc: Path, make_cfg, folder: str) -> None:
    (voc / folder).rename(voc / "elsewhere")
    with pytest.raises(FileNotFoundError, match=f"{folder} does not exist"):
        register_datasets(make_cfg((f"voc://{voc}:train",)))


def test_missing_coco_paths(tmp_path: Path, make_cfg) -> None:
    write_coco(tmp_path, coco_dict())
    file = tmp_path / "boxes.json"
    with pytest.raises(FileNotFoundError, match=r"annotation file .*other\.json does not exist"):
        register_datasets(make_cfg((f"coco://{tmp_path}/other.json:{tmp_path}/images",)))
    with pytest.raises(FileNotFoundError, match=r"image folder .*pictures does not exist"):
        register_datasets(make_cfg((f"coco://{file}:{tmp_path}/pictures",)))
    with pytest.raises(FileNotFoundError, match=r"boxes\.json is not a folder"):
        register_datasets(make_cfg((f"coco://{file}:{file}",)))


def test_missing_split_lists_those_that_exist(voc: Path, make_cfg) -> None:
    with pytest.raises(FileNotFoundError, match=r"no split 'val'.*exist: test, train\."):
        register_datasets(make_cfg((f"voc://{voc}:val",)))


def test_empty_split(voc: Path, make_cfg) -> None:
    write_split(voc, "train", [])
    with pytest.raises(ValueError, match=r"train\.txt is empty"):
        register_datasets(make_cfg((f"voc://{voc}:train",)))


# ---------------------------------------------------------------------------- broken annotations


def edited(**changes: Any) -> dict[str, Any]:
    return {**coco_dict(), **changes}


def with_annotation(**changes: Any) -> dict[str, Any]:
    data = coco_dict()
    data["annotations"][1].update(changes)
    return data


BROKEN_JSON = {
    "syntax": ('{"images": [', r"not a readable json file: .*line 1"),
    "a list at the top": ([], "holds a list at the top"),
    "no images": (edited(images=None), "no list 'images'"),
    "no categories": (edited(categories={}), "no list 'categories'"),
    "image without a file": (edited(images=[{"id": 1}]), r"images\[0\] lacks 'file_name'"),
    "category is no object": (edited(categories=["cat"]), r"categories\[0\] lacks 'id', 'name'"),
    "image id is a list": (
        edited(images=[{"id": [1], "file_name": "one.jpg"}]),
        r"images\[0\] has id \[1\], expected a number or text",
    ),
    "image id twice": (edited(images=coco_dict()["images"] * 2), "id 7 occurs 2 times in 'images'"),
    "class twice": (
        edited(categories=[{"id": 2, "name": "cat"}, {"id": 5, "name": "cat"}]),
        "name 'cat' occurs 2 times",
    ),
    "unknown category": (
        with_annotation(category_id=99),
        r"annotations\[1\] \(id 12\) names the unknown class 99; .*'dog'",
    ),
    "three numbers": (with_annotation(bbox=[1, 2, 3]), r"bbox \[1, 2, 3\], expected 4 numbers"),
    "text in the box": (with_annotation(bbox=[1, 2, 3, "4"]), r"annotations\[1\].*expected 4"),
    "no box": (with_annotation(bbox=None), "has bbox None"),
    "ignore": (with_annotation(ignore=1), "use 'iscrowd': 1"),
    "image ids of another type": (
        edited(
            annotations=[{**a, "image_id": str(a["image_id"])} for a in coco_dict()["annotations"]]
        ),
        r"no annotation's image_id is an id of 'images' .*'7' against \[7\]",
    ),
}


@pytest.mark.parametrize("data, message", BROKEN_JSON.values(), ids=BROKEN_JSON.keys())
def test_malformed_json(tmp_path: Path, make_cfg, data: Any, message: str) -> None:
    spec = write_coco(tmp_path, data)
    with pytest.raises(ValueError, match=rf"boxes\.json.*{message}"):
        register_datasets(make_cfg((spec,)))


BROKEN_XML = {
    "syntax": ("<annotation><object>", "no element found"),
    "no name": ("<a><object><bndbox/></object></a>", "an object has no <name>"),
    "no box": (
        "<a><object><name>cat</name></object></a>",
        "object 'cat' has no <bndbox> with <xmin>",
    ),
    "no number": (
        "<a><object><name>cat</name><bndbox><xmin>one</xmin></bndbox></object></a>",
        "could not convert string to float: 'one'",
    ),
}


@pytest.mark.parametrize("text, message", BROKEN_XML.values(), ids=BROKEN_XML.keys())
def test_broken_xml(voc: Path, make_cfg, text: str, message: str) -> None:
    (voc / "Annotations" / "b.xml").write_text(text)
    with pytest.raises(ValueError, match=rf"b\.xml is not a readable VOC annotation: {message}"):
        register_datasets(make_cfg((f"voc://{voc}:train",)))


def test_missing_xml(voc: Path, make_cfg) -> None:
    (voc / "Annotations" / "b.xml").unlink()
    with pytest.raises(FileNotFoundError, match=r"b\.xml does not exist, but the split file names"):
        register_datasets(make_cfg((f"voc://{voc}:train",)))
