"""Which paths of a data set stay in its folder, and what becomes of the others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog
from hypothesis import given
from hypothesis import strategies as st

from fsn_d2.data import register_datasets
from fsn_d2.data.paths import leaves

from .small_sets import (
    WARNINGS,
    boxes_of,
    coco_dict,
    write_coco,
    write_image,
    write_split,
    write_voc,
    write_xml,
)

SKIPPED = "images outside the set's folder, skipped (DATASETS.ALLOW_OUTSIDE True takes them)"


@given(st.lists(st.sampled_from(["folder", "b c", ".", "..", "..."]), min_size=1, max_size=8))
def test_dots_lead_out_where_they_climb_above_the_folder(parts: list[str]) -> None:
    """Against a literal walk; no such path exists, so no link interferes."""
    place = ["absent", "folder"]
    for part in parts:
        if part == "..":
            del place[-1:]
        elif part != ".":
            place.append(part)
    inside = place[:2] == ["absent", "folder"]
    assert leaves(Path("/absent/folder"), "/".join(parts)) != inside


def test_the_way_back_in_is_inside(tmp_path: Path) -> None:
    assert not leaves(tmp_path / "images", "../images/one.jpg")
    assert leaves(tmp_path / "images", "../images2/one.jpg")  # not a prefix of the text


def test_an_absolute_name_counts_by_where_it_leads(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    write_image(tmp_path / "out.jpg")
    (folder / "link.jpg").symlink_to(tmp_path / "out.jpg")
    (tmp_path / "linked").symlink_to("images")
    inside = [folder / "one.jpg", tmp_path / "linked" / "one.jpg", folder / "x" / ".." / "one.jpg"]
    outside = [
        tmp_path / "out.jpg",
        tmp_path / "images2" / "one.jpg",
        folder / "link.jpg",
        folder / ".." / "out.jpg",
    ]
    for root in (folder, tmp_path / "linked"):
        names = [str(path) for path in inside + outside]
        assert [name for name in names if leaves(root, name)] == [str(path) for path in outside]


def test_links_count_by_where_they_lead(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    write_image(tmp_path / "out.jpg")
    write_image(folder / "in.jpg")
    (folder / "out_link.jpg").symlink_to(tmp_path / "out.jpg")
    (folder / "in_link.jpg").symlink_to("in.jpg")
    (folder / "up").symlink_to("..")
    (folder / "loop").symlink_to("loop")
    outside = ["out_link.jpg", "up/out.jpg", "sub/../up/out.jpg"]
    inside = ["in.jpg", "in_link.jpg", "up/images/in.jpg", "sub/../in.jpg", "loop", "absent.jpg"]
    assert [name for name in outside + inside if leaves(folder, name)] == outside
    (tmp_path / "linked").symlink_to("images")  # the folder itself may be a link
    assert not leaves(tmp_path / "linked", "in.jpg")
    assert leaves(tmp_path / "linked", "up/out.jpg")


# ---------------------------------------------------------------------------- COCO


def coco_with(folder: Path, file_name: str) -> str:
    """The first of two images lies outside under this name."""
    data = coco_dict()
    write_image(folder / "secret.jpg")
    data["images"][0]["file_name"] = file_name
    spec = write_coco(folder, data)
    (folder / "images" / "link.jpg").symlink_to(folder / "secret.jpg")
    return spec


@pytest.mark.parametrize("name", ["../secret.jpg", "link.jpg", "x/../../secret.jpg", "absolute"])
def test_an_image_of_a_coco_set_outside_its_folder(
    tmp_path: Path, make_cfg, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    (tmp_path / "images" / "x").mkdir(parents=True)
    name = str(tmp_path / "secret.jpg") if name == "absolute" else name
    spec = coco_with(tmp_path, name)
    cfg = make_cfg((spec,), (spec,))
    register_datasets(cfg)
    assert [Path(r["file_name"]).name for r in DatasetCatalog.get(spec)] == ["two.jpg"]
    assert [box[0] for box in boxes_of(spec)] == ["two.jpg"]
    messages = [r.getMessage() for r in caplog.records if r.name == WARNINGS]
    assert messages == [f"Data set {spec}: {SKIPPED}: 1 ({name})."]
    cfg.DATASETS.ALLOW_OUTSIDE = True
    register_datasets(cfg)
    taken = DatasetCatalog.get(spec)[0]["file_name"]
    assert os.path.samefile(taken, tmp_path / "secret.jpg")


def test_images_of_a_coco_set_by_absolute_names_in_its_folder(tmp_path: Path, make_cfg) -> None:
    boxes = []
    for start in ("", f"{tmp_path}/images/"):
        data = coco_dict()
        for image in data["images"]:
            image["file_name"] = start + image["file_name"]
        spec = write_coco(tmp_path, data)
        register_datasets(make_cfg((spec,)))
        boxes.append(boxes_of(spec))
    assert boxes[0] == boxes[1]


def test_a_set_that_is_all_outside_says_so(tmp_path: Path, make_cfg) -> None:
    data = coco_dict()
    for image in data["images"]:
        image["file_name"] = "../" + image["file_name"]
    with pytest.raises(ValueError, match=r"none of its 2 images.*DATASETS\.ALLOW_OUTSIDE True"):
        register_datasets(make_cfg((write_coco(tmp_path, data),)))


# ---------------------------------------------------------------------------- VOC


def test_a_file_name_in_an_xml_that_leads_out(voc: Path, make_cfg, caplog) -> None:
    spec = write_voc(voc, "named", {"inside": [("cat", (1, 1, 9, 9))]})
    write_image(voc / "secret.jpg")
    for number, name in enumerate(("../secret.jpg", str(voc / "secret.jpg"))):
        write_xml(voc, f"n{number}", [("dog", (1, 1, 9, 9))], filename=name)
    write_split(voc, "named", ["inside", "n0", "n1"])
    register_datasets(make_cfg((spec,), classes=["cat", "dog"]))
    assert boxes_of(spec) == [("inside.jpg", "cat", [0, 0, 9, 9])]
    assert f"{SKIPPED}: 2 (../secret.jpg, {voc}/secret.jpg)" in caplog.text


@pytest.mark.parametrize("way", ["dots", "link"])
def test_an_annotation_outside_is_not_even_read(
    tmp_path: Path, voc: Path, make_cfg, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    spec = write_voc(voc, "mixed", {"inside": [("cat", (1, 1, 9, 9))]})
    outside = write_xml(tmp_path / "elsewhere", "x", [("dog", (1, 1, 9, 9))])
    image_id = "../../elsewhere/Annotations/x" if way == "dots" else "linked"
    if way == "link":
        (voc / "Annotations" / "linked.xml").symlink_to(outside)
        write_image(voc / "JPEGImages" / "linked.jpg")
    else:
        write_image(tmp_path / "elsewhere" / "Annotations" / "x.jpg")
    write_split(voc, "mixed", ["inside", image_id])
    cfg = make_cfg((spec,), classes=["cat", "dog"])
    text = outside.read_text()
    outside.write_text("not XML: reading it would be an error")
    register_datasets(cfg)
    assert boxes_of(spec) == [("inside.jpg", "cat", [0, 0, 9, 9])]
    assert f"{SKIPPED}: 1 ({image_id})" in caplog.text
    outside.write_text(text)
    cfg.DATASETS.ALLOW_OUTSIDE = True
    register_datasets(cfg)
    assert [box[1] for box in boxes_of(spec)] == ["cat", "dog"]
