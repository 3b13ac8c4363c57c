"""Keypoints of a user's own data: names, mirroring, what is refused, and a training."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import create_keypoint_hflip_indices

import train_net
from fsn_d2.data import register_datasets

from .small_sets import coco_dict, write_coco

NAMES = ["nose", "left_eye", "left_ear", "right_eye", "right_hand"]  # one pair alone
POINTS = [5, 6, 2, 7, 8, 1, 0, 0, 0, 9, 4, 2, 3, 4, 2]  # four of them are labelled


def keypoint_dict() -> dict[str, Any]:
    """Both categories have the keypoints; annotations do not count them."""
    data = coco_dict()
    for category in data["categories"]:
        category["keypoints"] = NAMES
    for annotation in data["annotations"]:
        annotation["keypoints"] = POINTS
        annotation.pop("num_keypoints", None)
    return data


def keypoint_cfg(make_cfg: Callable[..., CfgNode], *specs: str, **keys: Any) -> CfgNode:
    cfg = make_cfg(specs, specs[:1], **keys)
    cfg.MODEL.KEYPOINT_ON = True
    cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS = len(NAMES)
    cfg.TEST.KEYPOINT_OKS_SIGMAS = [0.05] * len(NAMES)
    return cfg


@pytest.mark.parametrize("classes", [[], ["dog", "cat"]])  # as they are, and in another order
def test_names_come_from_the_categories(tmp_path: Path, make_cfg, classes: list[str]) -> None:
    spec = write_coco(tmp_path, keypoint_dict())
    register_datasets(keypoint_cfg(make_cfg, spec, classes=classes))
    metadata = MetadataCatalog.get(spec)
    assert metadata.keypoint_names == NAMES
    assert create_keypoint_hflip_indices([spec]) == [0, 3, 2, 1, 4]  # the eyes change places
    written = json.loads(Path(metadata.json_file).read_text())
    assert [a["num_keypoints"] for a in written["annotations"]] == [4, 4]


def change(data: dict[str, Any], what: str) -> None:
    category, annotation = data["categories"][0], data["annotations"][1]
    match what:
        case "no names":
            for each in data["categories"]:
                del each["keypoints"]
        case "another list":
            category["keypoints"] = NAMES[::-1]
        case "a name twice":
            for each in data["categories"]:
                each["keypoints"] = ["nose"] * len(NAMES)
        case "no text":
            for each in data["categories"]:
                each["keypoints"] = 5
        case "no keypoints":
            del annotation["keypoints"]
        case "too few":
            annotation["keypoints"] = POINTS[3:]
        case "malformed":
            annotation["keypoints"] = "x" * len(POINTS)


NUMBER = r"names 0 keypoints \(none\), and MODEL\.ROI_KEYPOINT_HEAD\.NUM_KEYPOINTS is 5"
MISSING = r"annotation \(id 12\) of image 9 has no usable keypoints, 5 times x, y and visibility"


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no names", NUMBER),
        ("another list", NUMBER),
        ("a name twice", NUMBER),
        ("no text", NUMBER),
        ("no keypoints", MISSING),
        ("too few", MISSING),
        ("malformed", MISSING),
    ],
)
def test_what_a_model_with_keypoints_cannot_use_is_refused(
    tmp_path: Path, make_cfg, what: str, message: str
) -> None:
    data = keypoint_dict()
    change(data, what)
    cfg = keypoint_cfg(make_cfg, write_coco(tmp_path, data))
    with pytest.raises(ValueError, match=message):
        register_datasets(cfg)
    cfg.MODEL.KEYPOINT_ON = False
    register_datasets(cfg)


def test_sets_with_other_names_and_settings_of_other_numbers_are_refused(
    tmp_path: Path, make_cfg
) -> None:
    data = keypoint_dict()
    spec = write_coco(tmp_path, data)
    for category in data["categories"]:
        category["keypoints"] = NAMES[::-1]
    other = write_coco(tmp_path, data, name="other.json")
    with pytest.raises(ValueError, match=r"has the keypoints \['right_hand'.*another one \['nose'"):
        register_datasets(keypoint_cfg(make_cfg, spec, other))
    cfg = keypoint_cfg(make_cfg, spec)
    cfg.TEST.KEYPOINT_OKS_SIGMAS = []
    with pytest.raises(ValueError, match=r"TEST\.KEYPOINT_OKS_SIGMAS stands for 17 keypoints, and"):
        register_datasets(cfg)
    cfg.DATASETS.TEST = ()
    register_datasets(cfg)
    cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS = 4
    with pytest.raises(ValueError, match=r"names 5 keypoints \(.*NUM_KEYPOINTS is 4"):
        register_datasets(cfg)


def test_a_model_with_keypoints_is_trained_and_measured(
    coco_spec: Callable[..., str], tiny_args: Callable[..., Namespace]
) -> None:
    spec = coco_spec(3)
    path = Path(spec.removeprefix("coco://").rpartition(":")[0])
    data = json.loads(path.read_text())
    for category in data["categories"]:
        category["keypoints"] = ["left_top", "right_top", "low"]
    for annotation in data["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["keypoints"] = [x, y, 2, x + w - 1, y, 2, x, y + h - 1, 1]
    path.write_text(json.dumps(data))
    args = tiny_args(
        "fsn_R50.yaml",
        small=True,
        DATASETS__TRAIN=(spec,),
        DATASETS__TEST=(spec,),
        MODEL__KEYPOINT_ON=True,
        MODEL__ROI_KEYPOINT_HEAD__NUM_KEYPOINTS=3,
        MODEL__ROI_KEYPOINT_HEAD__CONV_DIMS=(8,),
        TEST__KEYPOINT_OKS_SIGMAS=[0.05, 0.05, 0.05],
    )
    results = train_net.main(args)
    assert {"bbox", "keypoints"} <= set(results)
    weights = Path(args.opts[args.opts.index("OUTPUT_DIR") + 1], "model_final.pth")
    for absent in (("coco:///nowhere/a.json:/nowhere",), ()):
        changes = ["DATASETS.TRAIN", str(absent), "MODEL.WEIGHTS", str(weights)]
        again = Namespace(**{**vars(args), "eval_only": True, "opts": [*args.opts, *changes]})
        assert {"bbox", "keypoints"} <= set(train_net.main(again))
    lines = Path(args.opts[args.opts.index("OUTPUT_DIR") + 1], "metrics.json").read_text()
    assert "loss_keypoint" in lines
