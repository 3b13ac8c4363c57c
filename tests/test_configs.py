"""Every config trains, and an FSN config differs from its counterpart in the RoI heads alone."""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
from detectron2 import model_zoo
from detectron2.config import CfgNode, get_cfg

from fsn_d2 import add_fsn_config
from fsn_d2.engine import Trainer, setup

CONFIGS = Path(__file__).parents[1] / "configs"
NAMES = sorted(p.name for p in CONFIGS.glob("*.yaml") if not p.name.startswith("Base-"))
FSN_NAMES = [name for name in NAMES if name.startswith("fsn_")]
# One of each family: head, backbone, number of levels.
FAST = {
    "faster_rcnn_R50.yaml",
    "fsn_R50.yaml",
    "fsn_R50_C4.yaml",
    "fsn_R50_DC5_VOC.yaml",
    "fsn_cascade_R50.yaml",
    "fsn_mask_R50.yaml",
    "fsn_GoogLeNet.yaml",
    "fsn_VGG16_VOC.yaml",
    "faster_rcnn_Lite0_BCCD.yaml",
    "fsn_Lite0_digits.yaml",
    "rfcn_R50.yaml",
    "rfcn_Lite0_BCCD.yaml",
    "lighthead_Lite0_digits.yaml",
    "faster_rcnn_Lite0_BCCD_fast_roipool.yaml",
    "retinanet_R50.yaml",
    "fsaf_R50_joint.yaml",
    "fsaf_R50_stride4.yaml",
    "fsaf_Lite0_BCCD.yaml",
}


@pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in NAMES]
)
def test_it_trains_and_every_parameter_has_a_gradient(
    name: str, tiny_args: Callable[..., Namespace]
) -> None:
    cfg = setup(tiny_args(name, DATASETS__TEST=()))
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    losses = [value for value, _ in trainer.storage.history("total_loss").values()]
    assert len(losses) == 2
    assert all(math.isfinite(loss) for loss in losses)
    trainable = [(n, p) for n, p in trainer.model.named_parameters() if p.requires_grad]
    assert trainable
    assert not [n for n, p in trainable if p.grad is None]


def merged(name: str | Path) -> dict[str, object]:
    cfg = get_cfg()
    add_fsn_config(cfg)
    cfg.merge_from_file(str(CONFIGS / name))
    return dict(flat(cfg))


LONGER = {"SOLVER.MAX_ITER", "SOLVER.STEPS"}
UNREAD_IN_DC5 = {"MODEL.FPN.IN_FEATURES"}
UNREAD_IN_C4 = {*UNREAD_IN_DC5, "MODEL.ROI_BOX_HEAD.NAME", "MODEL.ROI_BOX_HEAD.NUM_FC"}


@pytest.mark.parametrize(
    ("name", "theirs", "apart"),
    [
        ("faster_rcnn_R50", "COCO-Detection/faster_rcnn_R_50_FPN_1x", set()),
        ("faster_rcnn_R101", "COCO-Detection/faster_rcnn_R_101_FPN_3x", LONGER),
        ("faster_rcnn_R50_C4", "COCO-Detection/faster_rcnn_R_50_C4_1x", UNREAD_IN_C4),
        (
            "faster_rcnn_R50_DC5",
            "COCO-Detection/faster_rcnn_R_50_DC5_1x",
            {"MODEL.FPN.IN_FEATURES"},
        ),
        ("faster_rcnn_R50_VOC", "PascalVOC-Detection/faster_rcnn_R_50_FPN", set()),
        ("mask_rcnn_R50", "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x", set()),
        ("cascade_rcnn_R50", "Misc/cascade_mask_rcnn_R_50_FPN_1x", {"MODEL.MASK_ON"}),
    ],
)
def test_a_counterpart_is_that_of_detectron2s_model_zoo(
    name: str, theirs: str, apart: set[str]
) -> None:
    ours, zoo = merged(f"{name}.yaml"), merged(model_zoo.get_config_file(f"{theirs}.yaml"))
    assert {key for key in ours if ours[key] != zoo[key]} == apart


def flat(node: CfgNode, prefix: str = ""):
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def counterpart(name: str) -> str:
    model = name.removeprefix("fsn_")
    for kind in ("cascade", "mask"):
        if model.startswith(f"{kind}_"):
            return model.replace(f"{kind}_", f"{kind}_rcnn_")
    return f"faster_rcnn_{model}"


@pytest.mark.parametrize("name", FSN_NAMES)
def test_an_fsn_config_differs_from_its_counterpart_in_the_roi_heads_alone(name: str) -> None:
    ours, theirs = merged(name), merged(counterpart(name))
    assert ours.keys() == theirs.keys()
    different = {key for key in ours if ours[key] != theirs[key]}
    assert "MODEL.ROI_HEADS.NAME" in different
    allowed = {"MODEL.ROI_HEADS.NAME", "OUTPUT_DIR"}
    parts = ("MODEL.FSN.", "MODEL.ROI_BOX_HEAD.")
    assert not [key for key in different if key not in allowed and not key.startswith(parts)]


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith("fsaf_Lite0_")])
def test_an_fsaf_config_for_the_cpu_differs_from_retinanet_in_its_mode_alone(name: str) -> None:
    ours, theirs = merged(name), merged(name.replace("fsaf_", "retinanet_"))
    different = {key for key in ours if ours[key] != theirs[key]}
    assert different == {"MODEL.FSAF.MODE", "OUTPUT_DIR"}
    assert theirs["MODEL.FSAF.MODE"] == "anchors"


@pytest.mark.parametrize("backbone", ["R50", "R101", "X101"])
def test_fsaf_differs_from_retinanet_and_joint_from_fsaf_in_one_key(backbone: str) -> None:
    retinanet, fsaf, joint = (
        merged(f"{name}.yaml")
        for name in (f"retinanet_{backbone}", f"fsaf_{backbone}", f"fsaf_{backbone}_joint")
    )
    keys = {key for key in fsaf if fsaf[key] != retinanet[key]}
    assert keys == {"MODEL.META_ARCHITECTURE"}
    assert {key for key in fsaf if fsaf[key] != joint[key]} == {"MODEL.FSAF.MODE"}


@pytest.mark.parametrize("name", [n for n in NAMES if "fast_roipool" in n])
def test_a_fast_roipool_config_differs_from_detectron2s_roipool_in_the_heads_alone(
    name: str,
) -> None:
    ours, theirs = merged(name), merged(name.replace("fast_roipool", "roipool"))
    different = {key for key in ours if ours[key] != theirs[key]}
    assert different - {"OUTPUT_DIR"} == {"MODEL.ROI_HEADS.NAME"}


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith(("rfcn_", "lighthead_"))])
def test_a_peers_config_names_its_heads_and_shares_one_box_among_the_classes(name: str) -> None:
    values = merged(name)
    heads = {"rfcn": "RFCNROIHeads", "lighthead": "LightHeadROIHeads"}[name.split("_")[0]]
    assert values["MODEL.ROI_HEADS.NAME"] == heads
    assert values["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG"] is True


def test_there_are_configs_to_test() -> None:
    assert set(NAMES) >= FAST
    assert len(FSN_NAMES) >= 10


def test_two_configs_that_name_an_output_folder_do_not_share_it() -> None:
    default = get_cfg().OUTPUT_DIR
    folders = [folder for n in NAMES if (folder := merged(n)["OUTPUT_DIR"]) != default]
    assert len(set(folders)) == len(folders)
