"""What is lost by reading other maps: the maps that are said are those that are read."""

from __future__ import annotations

import json
import runpy
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import wrong_maps
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close
from wrong_maps import reading, readings_of

from fsn_d2.modeling.poolers import Reading
from fsn_d2.modeling.selection import nearest_ratio

ROWS = readings_of(9, 3)


# Merge, activation, and what the banks are computed from: merged by the op, or behind it.
MERGES = [
    ("sum", "sigmoid", "reduced"),
    ("sum", "sigmoid", "feature"),
    ("concat", "sigmoid", "reduced"),
    ("concat", "sigmoid", "feature"),
    ("multiply", "sigmoid", "reduced"),
    ("multiply", "identity", "reduced"),
    ("multiply", "relu", "feature"),
]
Build = Callable[..., nn.Module]


@pytest.fixture
def build(small_cfg: Callable[..., CfgNode]) -> Build:
    """With random maps and biases in both banks, so that no two are alike."""

    def build(
        merge: str = "sum", activation: str = "sigmoid", bank_input: str = "reduced"
    ) -> nn.Module:
        torch.manual_seed(0)
        cfg = small_cfg(
            MODEL__FSN__CHANNELS=5,
            MODEL__FSN__MERGE=merge,
            MODEL__FSN__ACTIVATION=activation,
            MODEL__FSN__BANK_INPUT=bank_input,
        )
        model = build_model(cfg).eval()
        for module in (model.roi_heads.box_banks, model.roi_heads.box_pooler.merge):
            for parameter in module.parameters():
                nn.init.normal_(parameter)
        return model

    return build


@pytest.fixture
def model(build: Build) -> nn.Module:
    return build()


@pytest.fixture
def arguments(random_boxes: Callable[..., Boxes]) -> Callable[[nn.Module], tuple]:
    """What a model's pooler is given, for features and boxes that are always the same."""
    rng = torch.Generator().manual_seed(0)
    sides = {f"p{level}": 256 >> level for level in range(2, 6)}
    features = {name: torch.randn(1, 32, n, n, generator=rng) for name, n in sides.items()}
    boxes = random_boxes(20, 256, 256)

    def of(model: nn.Module) -> tuple:
        return list(model.roi_heads.box_banks(features, [(256, 256)]).values()), [boxes]

    return of


@pytest.fixture
def read(arguments: Callable[[nn.Module], tuple]) -> Callable[[nn.Module], Reading]:
    return lambda model: model.roi_heads.box_pooler.read(*arguments(model))


OWN, MIDDLE, OPPOSITE = [0, 1, 2, 3, 4, 5, 6, 7, 8], [4] * 9, [8, 7, 6, 5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize(
    ("row", "regions", "ratios"),
    [
        ("every bin its own maps, as learnt", OWN, [0, 1, 2]),
        ("the opposite sub-region's", OPPOSITE, [0, 1, 2]),
        ("the middle sub-region's", MIDDLE, [0, 1, 2]),
        ("the opposite aspect ratio's", OWN, [2, 1, 0]),
        ("the middle aspect ratio's", OWN, [1, 1, 1]),
        ("both opposite", OPPOSITE, [2, 1, 0]),
        ("both in the middle", MIDDLE, [1, 1, 1]),
    ],
)
@torch.no_grad()
def test_maps_that_change_places_are_read_as_by_another_index(
    row: str,
    regions: list[int],
    ratios: list[int],
    model: nn.Module,
    read: Callable[[nn.Module], Reading],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = read(reading(model, ROWS[row]))
    pooler = model.roi_heads.box_pooler
    pooler.bin_index = torch.tensor(regions)[pooler.bin_index]
    monkeypatch.setattr(
        "fsn_d2.modeling.poolers.nearest_ratio",
        lambda *arguments: torch.tensor(ratios)[nearest_ratio(*arguments)],
    )
    expected = read(model)
    assert_close(found.attention, expected.attention)
    assert_close(found.refined, expected.refined)


@torch.no_grad()
def test_the_model_itself_stays_as_it_is(
    model: nn.Module, read: Callable[[nn.Module], Reading]
) -> None:
    before = read(model)
    changed = read(reading(model, ROWS["both opposite"]))
    assert_close(read(model).refined, before.refined, rtol=0, atol=0)
    assert not torch.allclose(changed.refined, before.refined)


@torch.no_grad()
def test_silent_banks_leave_the_roi_feature_and_its_convolution(
    build: Build, read: Callable[[nn.Module], Reading]
) -> None:
    model = build("concat")
    conv = model.roi_heads.box_pooler.merge.conv
    roi = read(model).roi
    alone = roi + F.conv2d(F.relu(roi), conv.weight[:, :5], conv.bias)
    assert_close(read(reading(model, ROWS["nothing of the banks"])).refined, alone)


@pytest.mark.parametrize(
    ("merge", "activation", "bank_input"), [names for names in MERGES if names[0] != "concat"]
)
@torch.no_grad()
def test_silent_banks_leave_plain_pooling(
    merge: str,
    activation: str,
    bank_input: str,
    build: Build,
    arguments: Callable[[nn.Module], tuple],
    read: Callable[[nn.Module], Reading],
) -> None:
    model = build(merge, activation, bank_input)
    silent = reading(model, ROWS["nothing of the banks"])
    assert_close(silent.roi_heads.box_pooler(*arguments(silent)), read(model).roi)


@pytest.mark.parametrize(("merge", "activation", "bank_input"), MERGES)
@torch.no_grad()
def test_the_attention_makes_what_is_lost_without_it(
    merge: str,
    activation: str,
    bank_input: str,
    build: Build,
    arguments: Callable[[nn.Module], tuple],
) -> None:
    model = build(merge, activation, bank_input)
    refined = model.roi_heads.box_pooler(*arguments(model))
    silent, watched = (
        reading(model, ROWS[row]).roi_heads.box_pooler
        for row in ("nothing of the banks", "every bin its own maps, as learnt")
    )
    lost = refined - silent(*arguments(model))
    assert_close(watched(*arguments(model)), refined)
    assert watched.merge.share == pytest.approx((lost.norm() / refined.norm()).item())
    assert silent.merge.share == 0


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        ("faster_rcnn_R50.yaml", {}),
        ("fsn_R50.yaml", {"MODEL__FSN__RATIOS": []}),
        ("fsn_R50.yaml", {"MODEL__FSN__SUB_REGION": "none"}),
    ],
)
def test_models_without_both_banks_are_refused(
    config: str, changes: dict, small_cfg: Callable[..., CfgNode]
) -> None:
    with pytest.raises(ValueError, match="both banks"):
        wrong_maps.parts_of(build_model(small_cfg(config, **changes)))


def test_the_command_evaluates_every_reading(
    tiny_args: Callable[..., Namespace],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    args = tiny_args("fsn_R50.yaml", small=True)
    weights = tmp_path / "weights.pth"
    torch.save(
        {"model": build_model(wrong_maps.load_config(args.config_file, args.opts)).state_dict()},
        weights,
    )
    out = tmp_path / "wrong_maps.json"
    words = ["--config-file", args.config_file, "--out", str(out), *args.opts]
    monkeypatch.setattr(sys, "argv", ["wrong_maps.py", *words, "MODEL.WEIGHTS", str(weights)])
    runpy.run_path(wrong_maps.__file__, run_name="__main__")
    content = json.loads(out.read_text())
    assert list(content["rows"]) == list(ROWS)
    assert all(set(row) == {"AP", "AP50", "AP75", "attention"} for row in content["rows"].values())
    shares = {name: row["attention"] for name, row in content["rows"].items()}
    assert shares.pop("nothing of the banks") == 0 < min(shares.values()) < 1
    assert content["settings"]["MODEL.FSN.GRID"] == "3" and content["facts"]["torch"]
    assert capsys.readouterr().out.count("| the opposite") == 2
