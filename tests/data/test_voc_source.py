"""VOC folders: equality with a literal reading, odd files, and every error."""

from __future__ import annotations

import logging
import os
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from fsn_d2.data import register_datasets

from .small_sets import (
    WARNINGS,
    boxes_of,
    perfect_ap,
    write_image,
    write_split,
    write_voc,
    write_xml,
)

BCCD = Path(
    os.environ.get("FSN_BCCD", Path(__file__).parents[3] / "shared" / "data" / "bccd"), "BCCD"
)


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


@pytest.mark.parametrize("folder", ["Annotations", "ImageSets/Main", "JPEGImages"])
def test_missing_voc_folder(voc: Path, make_cfg, folder: str) -> None:
    (voc / folder).rename(voc / "elsewhere")
    with pytest.raises(FileNotFoundError, match=f"{folder} does not exist"):
        register_datasets(make_cfg((f"voc://{voc}:train",)))


def test_missing_split_lists_those_that_exist(voc: Path, make_cfg) -> None:
    with pytest.raises(FileNotFoundError, match=r"no split 'val'.*exist: test, train\."):
        register_datasets(make_cfg((f"voc://{voc}:val",)))


def test_empty_split(voc: Path, make_cfg) -> None:
    write_split(voc, "train", [])
    with pytest.raises(ValueError, match=r"train\.txt is empty"):
        register_datasets(make_cfg((f"voc://{voc}:train",)))


BROKEN_XML = {
    "syntax": ("<annotation><object>", "no element found"),
    "no name": ("<a><object><bndbox/></object></a>", "object 1 has no <name>"),
    "no box": (
        "<a><object><name>cat</name></object></a>",
        r"object 1 \('cat'\) has no <bndbox> with <xmin>",
    ),
    "no number": (
        "<a><object><name>cat</name><bndbox><xmin>one</xmin></bndbox></object></a>",
        r"object 1 \('cat'\) has xmin 'one', expected a number",
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
