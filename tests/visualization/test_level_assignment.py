"""The picture of levels: colours by level, both sides, and the command that writes it."""

from __future__ import annotations

import runpy
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from fsn_d2.engine import setup
from fsn_d2.modeling.fsaf import AnchorFreeBranch
from fsn_d2.visualization.level_assignment import (
    COLORS,
    compare_levels,
    draw_levels,
    save_level_picture,
)

TOOL = Path(__file__).parents[2] / "tools" / "show_levels.py"


def test_every_box_has_the_colour_of_its_level() -> None:
    gray = np.full((120, 260, 3), 128, np.uint8)
    boxes = np.array([[20.0, 30, 80, 100], [120, 40, 240, 90]])
    picture = draw_levels(gray, boxes, [2, 0], ["p3", "p4", "p5"], "title")
    assert picture.shape == (160, 260, 3)
    body = picture[40:]
    assert tuple(body[100, 50]) == COLORS[2]  # lower sides
    assert tuple(body[90, 180]) == COLORS[0]
    assert (body[110:, :] == 128).all()
    assert (gray == 128).all()  # the image itself is not drawn on


class FixedChoice(nn.Module):
    """A detector whose objects choose the levels that are given."""

    def __init__(self, levels: list[int]) -> None:
        super().__init__()
        self.levels = levels
        self.branch = AnchorFreeBranch(in_channels=4, num_classes=1, strides=[8, 16, 32])

    def choose_levels(self, batch: list[dict]) -> list[Tensor]:
        return [torch.tensor(self.levels)]


def test_both_rules_are_compared() -> None:
    boxes = Boxes(torch.tensor([[0.0, 0, 30, 30], [0, 0, 300, 300]]))
    sample = {"instances": Instances((400, 400), gt_boxes=boxes)}
    by_losses, by_size = compare_levels(FixedChoice([1, 2]), sample)
    assert (by_losses.tolist(), by_size.tolist()) == ([1, 2], [0, 2])


@pytest.fixture
def args(tiny_args: Callable[..., Namespace]) -> Namespace:
    return tiny_args("fsaf_R50.yaml", small=True)


def test_the_command_writes_the_picture(
    args: Namespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "new" / "levels.png"
    options = ["--config-file", args.config_file, "--image", "1", "--output", str(path)]
    monkeypatch.setattr(sys, "argv", ["show_levels.py", *options, *args.opts])
    runpy.run_path(str(TOOL), run_name="__main__")
    assert "2 objects" in capsys.readouterr().out
    picture = cv2.imread(str(path))[:, :, ::-1]
    half = picture.shape[1] // 2
    for side in (picture[40:, :half], picture[40:, half:]):
        drawn = [(side == color).all(axis=2).any() for color in COLORS]
        assert 1 <= sum(drawn) <= 2  # two objects


def test_what_cannot_be_drawn_is_refused(args: Namespace, tmp_path: Path) -> None:
    cfg = setup(args)
    (name,) = cfg.DATASETS.TEST
    with pytest.raises(ValueError, match="0 to 2, got 3"):
        save_level_picture(cfg, name, 3, tmp_path / "x.png")
    cfg.defrost()
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    with pytest.raises(ValueError, match=r"MODEL\.META_ARCHITECTURE"):
        save_level_picture(cfg, name, 0, tmp_path / "x.png")
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.FSAF.MODE = "FSAF", "anchors"
    with pytest.raises(ValueError, match=r"MODEL\.FSAF\.MODE"):
        save_level_picture(cfg, name, 0, tmp_path / "x.png")
