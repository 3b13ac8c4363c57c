"""Pictures: what is drawn where."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances

from fsn_d2.engine import setup
from fsn_d2.visualization import draw_detections, draw_ground_truth, save_detection_sheet
from fsn_d2.visualization.writing import write_image

HEIGHT, WIDTH = 120, 160
# Far from the lower right quarter, so that neither frame nor label reaches it.
BOX = [10.0, 20.0, 60.0, 50.0]


@pytest.fixture
def metadata() -> Metadata:
    return Metadata(name="set_of_this_test", thing_classes=["thing"])


@pytest.fixture
def gray() -> np.ndarray:
    return np.full((HEIGHT, WIDTH, 3), 128, np.uint8)


def changed(picture: np.ndarray, image: np.ndarray) -> np.ndarray:
    assert picture.shape == image.shape
    return np.abs(picture.astype(int) - image).max(axis=2) > 10


def detections(scores: list[float]) -> Instances:
    boxes = Boxes(torch.tensor([BOX] * len(scores)))
    classes = torch.zeros(len(scores), dtype=torch.int64)
    return Instances(
        (HEIGHT, WIDTH), pred_boxes=boxes, scores=torch.tensor(scores), pred_classes=classes
    )


def drawn_around_the_box(mask: np.ndarray) -> bool:
    # On the middle of the lower edge, and nowhere in the lower right quarter.
    return bool(mask[48:53, 35].any()) and not mask[HEIGHT // 2 + 10 :, WIDTH // 2 + 10 :].any()


def test_ground_truth_is_drawn_around_its_box(gray: np.ndarray, metadata: Metadata) -> None:
    annotation = {"bbox": BOX, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    picture = draw_ground_truth(gray, {"annotations": [annotation]}, metadata)
    assert drawn_around_the_box(changed(picture, gray))


def test_detections_below_the_score_are_not_drawn(gray: np.ndarray, metadata: Metadata) -> None:
    drawn = draw_detections(gray, detections([0.5]), metadata, min_score=0.5)
    assert drawn_around_the_box(changed(drawn, gray))
    left_out = draw_detections(gray, detections([0.49, 0.1]), metadata, min_score=0.5)
    assert not changed(left_out, gray).any()


@pytest.mark.parametrize("name", ["$5 to $10", r"$\foo$", "$_$"])
def test_a_name_is_no_formula(gray: np.ndarray, name: str) -> None:
    shown = Metadata(name="dollars", thing_classes=[name])
    drawn = draw_detections(gray, detections([0.5]), shown, min_score=0.5)
    assert changed(drawn, gray).any()


def test_what_only_some_annotations_have_is_not_drawn(gray: np.ndarray, metadata: Metadata) -> None:
    box = {"bbox": BOX, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    mask = {**box, "segmentation": [[80, 70, 150, 70, 150, 110, 80, 110]]}
    picture = draw_ground_truth(gray, {"annotations": [mask, box]}, metadata)
    assert drawn_around_the_box(changed(picture, gray))
    both = draw_ground_truth(gray, {"annotations": [mask, mask]}, metadata)
    assert changed(both, gray)[90, 100]


def test_an_unknown_format_is_an_error_of_the_file(gray: np.ndarray, tmp_path: Path) -> None:
    for name in ("picture", "picture.abc"):
        with pytest.raises(OSError, match=r"picture.*Let the name end with \.png"):
            write_image(tmp_path / name, gray)


def test_the_sheet_shows_ground_truth_beside_detections(
    tiny_args: Callable[..., Namespace], tmp_path: Path
) -> None:
    cfg = setup(tiny_args("fsn_R50.yaml", small=True))
    (name,) = cfg.DATASETS.TEST
    path = tmp_path / "new" / "sheet.png"
    save_detection_sheet(cfg, name, path, images=2, min_score=2.0)  # no score is that high
    sheet = cv2.imread(str(path))
    image = cv2.imread(DatasetCatalog.get(name)[0]["file_name"])
    height, width = image.shape[:2]
    assert sheet.shape[1] == 2 * width
    rows, rest = divmod(sheet.shape[0], 2)
    assert rest == 0 and rows > height
    caption = rows - height
    left, right = sheet[caption:rows, :width], sheet[caption:rows, width:]
    assert not changed(right, image).any()  # colours are those of the file
    assert changed(left, image).any()


def test_the_model_is_shown_bgr(
    tiny_args: Callable[..., Namespace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = setup(tiny_args("fsn_R50.yaml", small=True))
    (name,) = cfg.DATASETS.TEST
    seen: list[np.ndarray] = []

    def look(image: np.ndarray) -> dict:
        seen.append(image.copy())
        return {"instances": Instances(image.shape[:2])[:0]}

    monkeypatch.setattr("fsn_d2.visualization.detections.Predictor", lambda cfg: look)
    monkeypatch.setattr("fsn_d2.visualization.detections.draw_detections", lambda rgb, *others: rgb)
    save_detection_sheet(cfg, name, tmp_path / "sheet.png", images=1)
    assert np.array_equal(seen[0], cv2.imread(DatasetCatalog.get(name)[0]["file_name"]))


def test_a_set_of_fewer_images_than_rows(
    tiny_args: Callable[..., Namespace], tmp_path: Path
) -> None:
    cfg = setup(tiny_args("fsn_R50.yaml", small=True))
    (name,) = cfg.DATASETS.TEST
    assert MetadataCatalog.get(name).thing_classes
    save_detection_sheet(cfg, name, tmp_path / "sheet.png", images=50)
    three = cv2.imread(str(tmp_path / "sheet.png")).shape[0]
    save_detection_sheet(cfg, name, tmp_path / "one.png", images=1)
    assert three == 3 * cv2.imread(str(tmp_path / "one.png")).shape[0]
