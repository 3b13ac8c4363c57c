"""Shared fixtures: tiny COCO-format data, configs shrunk so that a step takes about a second, and
the process-wide state that Detectron2's set-up changes, put back after each test.
"""

from __future__ import annotations

import json
import logging
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser
from detectron2.modeling import build_model
from detectron2.structures import Boxes
from hypothesis import settings
from PIL import Image
from torch import nn

from fsn_d2.engine import load_config

# The same examples in every run, however slow the machine is.
settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")

CONFIGS = Path(__file__).parents[1] / "configs"
HEIGHT, WIDTH = 64, 80  # pixels of the synthetic images
LOGGERS = ("detectron2", "fvcore", "fsn_d2")

# No weights are read or downloaded, and every number that costs time is small.
TINY = {
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "",
    "MODEL.TIMM.PRETRAINED": "",
    "MODEL.GOOGLENET.PRETRAINED": "",
    # Random weights behind identity norms let activations grow; a small input keeps them finite.
    "MODEL.PIXEL_STD": [1000.0, 1000.0, 1000.0],
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 50,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 50,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 20,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 20,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 32,
    "INPUT.MIN_SIZE_TRAIN": (HEIGHT,),
    "INPUT.MAX_SIZE_TRAIN": 96,
    "INPUT.MIN_SIZE_TEST": HEIGHT,
    "INPUT.MAX_SIZE_TEST": 96,
    "TEST.DETECTIONS_PER_IMAGE": 20,
    "DATALOADER.NUM_WORKERS": 0,
    "DATASETS.CLASSES": [],
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.BASE_LR": 1e-4,
    "SOLVER.STEPS": (),
    "SOLVER.MAX_ITER": 2,
    "SEED": 1,
}

# The same architecture, a smaller network.
SMALL = {
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
    "MODEL.FPN.OUT_CHANNELS": 32,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 64,
    "MODEL.ROI_HEADS.NUM_CLASSES": 3,
    "MODEL.RETINANET.NUM_CLASSES": 3,
    "MODEL.PIXEL_STD": [57.0, 57.0, 57.0],
}


def _opts(values: dict) -> list[str]:
    return [str(item) for pair in values.items() for item in pair]


@pytest.fixture(autouse=True)
def process_state() -> Iterator[None]:
    """Detectron2's set-up adds handlers to loggers, ends their propagation and seeds everything."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(log.level, log.propagate, list(log.handlers)) for log in loggers]
    yield
    for log, (level, propagate, handlers) in zip(loggers, before, strict=True):
        for handler in set(log.handlers) - set(handlers):
            log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagate


def _annotation(number: int, image: int, category: int, box: list[int]) -> dict:
    x, y, w, h = box
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": box,
        "area": w * h,
        "iscrowd": 0,
        "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
    }


@pytest.fixture
def coco_spec(tmp_path: Path) -> Callable[..., str]:
    """Writes a COCO-format set of noise images with filled rectangles; returns its spec string."""

    def write(num_classes: int = 3, *, images: int = 3, name: str = "data") -> str:
        rng = np.random.default_rng(0)
        folder = tmp_path / name
        folder.mkdir()
        entries, annotations = [], []
        for image in range(1, images + 1):
            pixels = rng.integers(0, 80, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            for _ in range(2):
                w, h = (int(v) for v in rng.integers(16, 40, 2))
                x, y = int(rng.integers(0, WIDTH - w)), int(rng.integers(0, HEIGHT - h))
                category = int(rng.integers(num_classes))
                pixels[y : y + h, x : x + w] = 100 + 30 * np.array([category, 1, 2]) % 156
                number = len(annotations) + 1
                annotations.append(_annotation(number, image, category + 1, [x, y, w, h]))
            Image.fromarray(pixels).save(folder / f"{image}.png")
            entry = {"id": image, "file_name": f"{image}.png", "width": WIDTH, "height": HEIGHT}
            entries.append(entry)
        categories = [{"id": i + 1, "name": f"class{i:02}"} for i in range(num_classes)]
        path = tmp_path / f"{name}.json"
        content = {"images": entries, "annotations": annotations, "categories": categories}
        path.write_text(json.dumps(content))
        return f"coco://{path}:{folder}"

    return write


@pytest.fixture
def tiny_opts() -> Callable[..., list[str]]:
    """Overrides, as on a command line, that make any config of the project tiny."""

    def opts(*, small: bool = False, **changes: object) -> list[str]:
        """`small` also takes a small network; changes are keys with "__" for the dot."""
        named = {key.replace("__", "."): value for key, value in changes.items()}
        return _opts({**TINY, **(SMALL if small else {}), **named})

    return opts


def _num_classes(cfg: CfgNode) -> int:
    two_stages = cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN"
    return cfg.MODEL["ROI_HEADS" if two_stages else "RETINANET"].NUM_CLASSES


@pytest.fixture
def tiny_args(
    tiny_opts: Callable[..., list[str]], coco_spec: Callable[..., str], tmp_path: Path
) -> Callable[..., Namespace]:
    """Arguments of train_net.py for a tiny training of a config on synthetic data."""
    specs: dict[int, str] = {}

    def build(config: str, *flags: str, small: bool = False, **changes: object) -> Namespace:
        path = str(CONFIGS / config)
        classes = 3 if small else _num_classes(load_config(path))
        if classes not in specs:
            specs[classes] = coco_spec(classes, name=f"data{classes}")
        sets = {"DATASETS__TRAIN": (specs[classes],), "DATASETS__TEST": (specs[classes],)}
        output = {"OUTPUT_DIR": tmp_path / "output"}
        opts = tiny_opts(small=small, **{**sets, **output, **changes})
        return default_argument_parser().parse_args(["--config-file", path, *flags, *opts])

    return build


@pytest.fixture
def small_cfg(tiny_opts: Callable[..., list[str]]) -> Callable[..., CfgNode]:
    """A config with a small network that needs no data."""

    def build(config: str = "fsn_R50.yaml", **changes: object) -> CfgNode:
        return load_config(str(CONFIGS / config), tiny_opts(small=True, **changes))

    return build


@pytest.fixture
def detector() -> Callable[[CfgNode], nn.Module]:
    """Builds a model with random weights whose detections differ clearly in score and place."""

    def build(cfg: CfgNode) -> nn.Module:
        torch.manual_seed(0)
        model = build_model(cfg).eval()
        heads = model.roi_heads.box_predictor
        for predictor in heads if isinstance(heads, nn.ModuleList) else [heads]:
            nn.init.normal_(predictor.cls_score.weight, std=0.2)
            nn.init.normal_(predictor.bbox_pred.weight, std=0.05)
        nn.init.normal_(model.proposal_generator.rpn_head.objectness_logits.weight, std=0.2)
        return model

    return build


@pytest.fixture
def random_image() -> torch.Tensor:
    """uint8 Tensor[3, H, W]."""
    rng = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, HEIGHT, WIDTH), generator=rng, dtype=torch.uint8)


@pytest.fixture
def random_boxes() -> Callable[..., Boxes]:
    """Boxes of log-uniform sizes inside an image, in pixels."""

    def draw(count: int, height: int, width: int, *, least: float = 4.0, seed: int = 0) -> Boxes:
        rng = torch.Generator().manual_seed(seed)
        sides = torch.tensor([width, height], dtype=torch.float32)
        size = least * (sides / least) ** torch.rand(count, 2, generator=rng)
        corner = torch.rand(count, 2, generator=rng) * (sides - size)
        return Boxes(torch.cat([corner, corner + size], dim=1))

    return draw
