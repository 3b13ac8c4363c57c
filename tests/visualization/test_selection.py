"""The figure of a detection: what it shows is what the model did."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from matplotlib.figure import Figure

from fsn_d2.engine import Predictor, Trainer, load_config
from fsn_d2.visualization.selection import change, explain_detection, magnitude, save_explanation

CONFIGS = Path(__file__).parents[2] / "configs"
CLASSES = ["a", "b", "c"]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "noise.png"
    pixels = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    cv2.imwrite(str(path), cv2.resize(pixels, (180, 120)))
    return path


def trained(folder: Path, *opts: str, config: str = "fsn_Lite0_BCCD") -> CfgNode:
    """A config whose weights are random and find something everywhere."""
    small = ["MODEL.TIMM.PRETRAINED", "", "INPUT.MIN_SIZE_TEST", "96"]
    cfg = load_config(
        str(CONFIGS / f"{config}.yaml"), [*small, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", *opts]
    )
    torch.manual_seed(0)
    torch.save({"model": Trainer.build_model(cfg).state_dict()}, folder / "model.pth")
    cfg.MODEL.WEIGHTS = str(folder / "model.pth")
    return cfg


def test_the_box_is_the_detection_and_the_reading_is_its(image: Path, tmp_path: Path) -> None:
    cfg = trained(tmp_path)
    explanation = explain_detection(cfg, image, 1, CLASSES)
    found = Predictor(cfg)(cv2.imread(str(image)))["instances"]
    assert explanation.box == pytest.approx(found.pred_boxes.tensor[1].numpy(), abs=1e-3)
    assert explanation.score == pytest.approx(float(found.scores[1]), abs=1e-6)
    assert explanation.label == CLASSES[int(found.pred_classes[1])]
    assert explanation.image.shape == (120, 180, 3)
    reading = explanation.reading
    assert reading.roi.shape == reading.refined.shape == (1, 40, 7, 7)
    assert len(reading.attention) == len(reading.bank_index) == 2


def test_length_and_change_by_hand() -> None:
    from fsn_d2.modeling.poolers import Reading

    plain = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)
    refined = torch.tensor([3.0, 5.0]).view(1, 2, 1, 1)
    assert magnitude(plain).tolist() == [[5.0]]
    assert change(Reading(plain, [], [], refined)).item() == pytest.approx(0.2)


@pytest.mark.parametrize(
    "opts",
    [
        [],
        ["MODEL.FSN.SUB_REGION", "image"],
        ["MODEL.FSN.SUB_REGION", "none"],
        ["MODEL.FSN.RATIOS", "[]"],
        ["MODEL.FSN.RATIOS", "[]", "MODEL.FSN.SUB_REGION", "none"],
        ["MODEL.FSN.POOLING", "composed", "MODEL.FSN.MERGE", "sum"],
    ],
    ids=["both", "image", "ratios", "sub-regions", "no bank", "composed"],
)
def test_the_figure_is_drawn_for_every_choice_of_banks(
    opts: list[str], image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k))
    )
    explanation = explain_detection(trained(tmp_path, *opts), image, 0, CLASSES)
    save_explanation(explanation, tmp_path / "deep" / "figure.png")
    assert cv2.imread(str(tmp_path / "deep" / "figure.png")).std() > 10
    maps = figures[0].axes[0]
    numbers = [text.get_text() for text in maps.texts]
    if "no sub-region" in maps.get_title():
        assert not numbers
    else:
        index = explanation.reading.bank_index[0][0].flatten().tolist()
        assert numbers == [str(number) for number in index]


def test_what_cannot_be_explained_is_refused(image: Path, tmp_path: Path) -> None:
    cfg = trained(tmp_path)
    with pytest.raises(ValueError, match="there is no number 100000"):
        explain_detection(cfg, image, 100000, CLASSES)
    with pytest.raises(FileNotFoundError, match=r"none\.png cannot be read"):
        explain_detection(cfg, tmp_path / "none.png", 0, CLASSES)
    with pytest.raises(ValueError, match="'StandardROIHeads'"):
        explain_detection(trained(tmp_path, config="faster_rcnn_Lite0_BCCD"), image, 0, CLASSES)
