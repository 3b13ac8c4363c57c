"""A model looks at media: what is read, kept, drawn, written, and what is reported instead."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image
from pycocotools import mask
from pycocotools.coco import COCO

from fsn_d2.engine import load_config
from fsn_d2.media import class_names, detect_media, find_media, webcam
from fsn_d2.media.sources import ImageFile, Video, VideoFile

CONFIGS = Path(__file__).parents[2] / "configs"
HEIGHT, WIDTH = 96, 160
CLASSES = ["cat", "dog"]


def picture(shade: int = 0) -> np.ndarray:
    """Gray with a white square, uint8 BGR."""
    image = np.full((HEIGHT, WIDTH, 3), 60 + shade, np.uint8)
    image[10:30, 20:40] = 255
    return image


def predict(image: np.ndarray) -> dict[str, Any]:
    """The white square as a dog, its upper half as an unlikely cat."""
    rows, columns = np.nonzero(image[:, :, 0] > 200)
    x1, y1, x2, y2 = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    boxes = torch.tensor([[x1, y1, x2, y2], [x1, y1, x2, (y1 + y2) / 2]], dtype=torch.float32)
    found = Instances(image.shape[:2], pred_boxes=Boxes(boxes))
    found.scores, found.pred_classes = torch.tensor([0.9, 0.6]), torch.tensor([1, 0])
    return {"instances": found}


def test_colours_reach_the_model_as_bgr_and_the_picture_as_they_were(tmp_path: Path) -> None:
    Image.new("RGB", (WIDTH, HEIGHT), (200, 30, 60)).save(tmp_path / "red.png")
    seen: list[list[int]] = []

    def look(image: np.ndarray) -> dict[str, Any]:
        seen.append(image[5, 5].tolist())
        nothing = Instances(image.shape[:2], pred_boxes=Boxes(torch.zeros(0, 4)))
        nothing.scores, nothing.pred_classes = torch.zeros(0), torch.zeros(0, dtype=torch.int64)
        return {"instances": nothing}

    media = find_media([str(tmp_path / "red.png")])
    detect_media(look, media, tmp_path / "out", classes=CLASSES)
    assert seen == [[60, 30, 200]]
    with Image.open(tmp_path / "out" / "red.png") as drawn:
        assert drawn.convert("RGB").getpixel((5, 5)) == (200, 30, 60)


def write_video(path: Path, frames: int) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (WIDTH, HEIGHT))
    for number in range(frames):
        writer.write(picture(5 * number))
    writer.release()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five readable images of different kinds, two that are not, a video, and other files."""
    root = tmp_path / "in"
    (root / "deep").mkdir(parents=True)
    gray = cv2.cvtColor(picture(), cv2.COLOR_BGR2GRAY)
    cv2.imwrite(str(root / "colour.jpg"), picture())
    cv2.imwrite(str(root / "gray.png"), gray)
    cv2.imwrite(str(root / "sixteen.png"), gray.astype(np.uint16) * 257)
    cv2.imwrite(str(root / "deep" / "alpha.png"), np.dstack([picture(), gray]))
    cv2.imwrite(str(root / "deep" / "colour.jpg"), picture())
    whole = (root / "colour.jpg").read_bytes()
    (root / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "text.jpg").write_text("not an image")
    (root / "notes.txt").write_text("not asked for")
    write_video(root / "film.avi", 4)
    return root


def run(inputs: list[Path], output: Path, **options: Any) -> tuple[Any, COCO]:
    media = find_media([str(path) for path in inputs])
    summary = detect_media(predict, media, output, classes=CLASSES, **options)
    return summary, COCO(str(output / "detections.json"))


def test_all_that_can_be_read_is_annotated_and_the_rest_is_named(
    folder: Path, tmp_path: Path
) -> None:
    summary, coco = run([folder], tmp_path / "out")
    assert {item.name for item in summary.unreadable} == {"cut.jpg", "text.jpg"}
    reasons = {item.name: item.reason for item in summary.unreadable}
    assert reasons["text.jpg"] == "not an image of a known format"
    assert summary.pictures == 5 + 4 and summary.detections == 2 * 9
    written = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.*")}
    images = {"colour.jpg", "gray.png", "sixteen.png", "deep/alpha.png", "deep/colour.jpg"}
    assert written == images | {"film.mp4", "detections.json"}
    for name in images:
        drawn = cv2.imread(str(tmp_path / "out" / name)).astype(int)
        changed = np.abs(drawn - picture()).max(axis=2) > 25
        assert changed[9:31, 19:41].any() and not changed[70:, 120:].any(), name
    with Video(tmp_path / "out" / "film.mp4") as film:
        assert len(list(film)) == 4 and film.frames_per_second == 10
    assert len(coco.imgs) == 9


def test_the_json_holds_boxes_scores_and_frames(folder: Path, tmp_path: Path) -> None:
    _, coco = run([folder / "film.avi", folder / "colour.jpg"], tmp_path / "out", min_score=0.7)
    images = list(coco.imgs.values())
    assert [image.get("frame") for image in images] == [0, 1, 2, 3, None]
    assert {(image["width"], image["height"]) for image in images} == {(WIDTH, HEIGHT)}
    for image in images:
        (found,) = coco.imgToAnns[image["id"]]
        assert np.allclose(found["bbox"], [20, 10, 20, 20], atol=1)  # compressed pixels
        assert found["score"] == pytest.approx(0.9)
        assert coco.cats[found["category_id"]]["name"] == "dog"


def test_masks_and_keypoints_are_kept_too(folder: Path, tmp_path: Path) -> None:
    def predict_all(image: np.ndarray) -> dict[str, Any]:
        found = predict(image)["instances"]
        found.pred_masks = torch.zeros(2, HEIGHT, WIDTH, dtype=torch.bool)
        found.pred_masks[:, 10:20, 20:40] = True
        found.pred_keypoints = torch.full((2, 3, 3), 15.5)
        return {"instances": found}

    media = find_media([str(folder / "colour.jpg")])
    detect_media(predict_all, media, tmp_path / "out", classes=CLASSES)
    for found in COCO(str(tmp_path / "out" / "detections.json")).anns.values():
        assert mask.decode(found["segmentation"]).sum() == found["area"] == 200
        assert found["keypoints"] == [15.0, 15.0, 15.5] * 3  # of pixels' middles


def test_folders_are_searched_through_links_and_circles_end(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (folder / "colour.jpg").rename(tmp_path / "far" / "linked.jpg")
    (folder / "link").symlink_to(tmp_path / "far")
    (folder / "deep" / "circle").symlink_to(folder)
    names = [item.name for item in find_media([str(folder)])]
    assert len(names) == len(set(names)) == 8 and "link/linked.jpg" in names


def test_a_name_that_is_not_utf8_is_read_or_reported(folder: Path, tmp_path: Path) -> None:
    """In OpenCV's functions it ends the process."""
    try:
        for name, source in ((b"caf\xe9.jpg", "colour.jpg"), (b"caf\xe9.avi", "film.avi")):
            os.rename(folder / source, os.fsencode(folder) + b"/" + name)
    except OSError:
        pytest.skip("this file system has no such names")
    summary, coco = run([folder], tmp_path / "out")
    assert summary.pictures == 5 and len(coco.imgs) == 5
    assert (tmp_path / "out" / os.fsdecode(b"caf\xe9.jpg")).is_file()
    reasons = {item.name: item.reason for item in summary.unreadable}
    assert "not UTF-8" in reasons[os.fsdecode(b"caf\xe9.avi")]


def test_classes_are_filtered_by_name(folder: Path, tmp_path: Path) -> None:
    _, coco = run([folder / "colour.jpg"], tmp_path / "out", only=["cat"])
    assert [found["category_id"] for found in coco.anns.values()] == [1]
    with pytest.raises(ValueError, match=r"--classes: \['bird'\].*'cat', 'dog'"):
        run([folder / "colour.jpg"], tmp_path / "out", only=["bird"])


def test_frames_can_be_limited(folder: Path, tmp_path: Path) -> None:
    summary, _ = run([folder / "film.avi"], tmp_path / "out", max_frames=2)
    assert summary.pictures == 2 and not summary.unreadable
    for none in (0, -3):
        with pytest.raises(ValueError, match=f"--max-frames: expected 1 or more, got {none}"):
            run([folder / "film.avi"], tmp_path / "out", max_frames=none)


def test_a_video_cut_off_tells_how_much_is_missing(folder: Path, tmp_path: Path) -> None:
    write_video(tmp_path / "long.avi", 30)
    content = (tmp_path / "long.avi").read_bytes()
    (tmp_path / "cut.avi").write_bytes(content[: len(content) // 2])
    summary, _ = run([tmp_path / "cut.avi", folder / "colour.jpg"], tmp_path / "out")
    ((name, reason),) = summary.unreadable
    assert name == "cut.avi" and "30 frames" in reason
    assert 5 < summary.pictures < 30


def test_an_image_beyond_the_limit_is_not_decoded(folder: Path, tmp_path: Path) -> None:
    summary, _ = run([folder / "colour.jpg"], tmp_path / "out", max_pixels=1000)
    assert "160" in summary.unreadable[0].reason and summary.pictures == 0


def test_equal_names_do_not_overwrite_each_other(folder: Path) -> None:
    found = find_media([str(folder / "colour.jpg"), str(folder / "deep"), str(folder / "deep")])
    names = [item.name for item in found]
    assert names == ["colour.jpg", "alpha.png", "colour_2.jpg", "alpha_2.png", "colour_3.jpg"]


def test_videos_of_one_name_do_not_overwrite_each_other(folder: Path, tmp_path: Path) -> None:
    (folder / "film.mkv").write_bytes((folder / "film.avi").read_bytes())
    run([folder / "film.avi", folder / "film.mkv"], tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").glob("*.mp4")) == ["film.mp4", "film_2.mp4"]


@pytest.mark.parametrize("name", ["photo.jfif", "photo"])
def test_an_image_of_another_name_is_written_as_png(
    name: str, folder: Path, tmp_path: Path
) -> None:
    (folder / "colour.jpg").rename(folder / name)
    summary, _ = run([folder / name], tmp_path / "out")
    assert summary.pictures == 1
    assert cv2.imread(str(tmp_path / "out" / f"{name}.png")).shape == (HEIGHT, WIDTH, 3)


def test_originals_are_not_overwritten(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*.*")}
    for inputs, output in (
        ([folder], folder),
        ([folder / "colour.jpg"], folder / "deep" / ".."),
        ([folder / "film.avi", folder / "deep" / "alpha.png"], folder / "deep"),
    ):
        with pytest.raises(ValueError, match=r"--output: .* would be overwritten"):
            run(inputs, output)
    assert {path: path.read_bytes() for path in folder.rglob("*.*")} == before


def test_what_was_found_is_kept_where_the_model_fails(folder: Path, tmp_path: Path) -> None:
    left = [1, 1]

    def failing(image: np.ndarray) -> dict[str, Any]:
        left.pop()  # IndexError at the third picture
        return predict(image)

    media = find_media([str(folder)])
    with pytest.raises(IndexError):
        detect_media(failing, media, tmp_path / "out", classes=CLASSES)
    assert len(COCO(str(tmp_path / "out" / "detections.json")).imgs) == 2


def test_inputs_that_hold_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no image or video"):
        find_media([str(tmp_path)])
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        find_media([str(tmp_path / "nowhere")])


class FakeCamera:
    """Three frames, of which the second cannot be decoded; then the user presses Ctrl-C."""

    def __init__(self, number: int) -> None:
        assert number == 3
        self.grabbed = 0

    def isOpened(self) -> bool:
        return True

    def get(self, what: int) -> float:
        return 0.0

    def grab(self) -> bool:
        self.grabbed += 1
        if self.grabbed == 4:
            raise KeyboardInterrupt
        return True

    def retrieve(self) -> tuple[bool, np.ndarray | None]:
        return (False, None) if self.grabbed == 2 else (True, picture())

    def release(self) -> None:
        pass


def test_a_webcam_is_read_until_the_user_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cv2, "VideoCapture", FakeCamera)
    summary = detect_media(predict, [webcam(3)], tmp_path / "out", classes=CLASSES)
    assert summary.interrupted and summary.pictures == 2
    frames = [image["frame"] for image in COCO(str(tmp_path / "out/detections.json")).imgs.values()]
    assert frames == [0, 2]
    assert (tmp_path / "out" / "webcam3.mp4").stat().st_size > 0


def test_no_camera_is_reported(tmp_path: Path) -> None:
    summary = detect_media(predict, [webcam(63)], tmp_path / "out", classes=CLASSES)
    assert summary.unreadable[0].reason == "no such camera" and not summary.pictures
    assert VideoFile("x", tmp_path / "none.mp4").frames() is None
    assert ImageFile("a", tmp_path / "a") == ("a", tmp_path / "a")


def test_class_names_come_from_the_config_the_catalogs_or_numbers() -> None:
    cfg = load_config(str(CONFIGS / "fsn_Lite0_BCCD.yaml"))
    assert class_names(cfg) == ["RBC", "WBC", "Platelets"]
    assert class_names(cfg, ["a", "b", "c"]) == ["a", "b", "c"]
    with pytest.raises(ValueError, match="2 class names"):
        class_names(cfg, ["a", "b"])
    coco = load_config(str(CONFIGS / "fsn_R50.yaml"))
    assert class_names(coco)[:2] == ["person", "bicycle"]
    cfg.DATASETS.CLASSES = []
    assert class_names(cfg) == ["class 0", "class 1", "class 2"]
    cfg.DATASETS.CLASSES = [0, 10, 20]
    assert class_names(cfg) == ["0", "10", "20"]
    with pytest.raises(ValueError, match="4 class names"):
        class_names(cfg, [1, 2, 3, 4])
    dense = load_config(str(CONFIGS / "fsaf_Lite0_BCCD.yaml"))
    assert class_names(dense) == ["RBC", "WBC", "Platelets"]
