"""Blood cell photographs and a detector trained on them for a minute or two, for the slow tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from torch import Tensor, nn

from fsn_d2.data import TolerantMapper, register_datasets
from fsn_d2.engine import load_config, load_weights

ROOT = Path(__file__).resolve().parents[2]
BCCD = Path(os.environ.get("FSN_BCCD", ROOT.parent / "shared/data/bccd")) / "BCCD"
CONFIG = "configs/fsn_Lite0_BCCD.yaml"


class Trained(NamedTuple):
    """A detector, its config, and all test images as it sees them."""

    cfg: CfgNode
    model: nn.Module
    images: list[Tensor]


@pytest.fixture(scope="session")
def bccd_detector(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """From the checkpoint FSN_BCCD_WEIGHTS, or trained for 100 iterations."""
    if not BCCD.is_dir():
        pytest.skip(f"no BCCD photographs in {BCCD}")
    output = tmp_path_factory.mktemp("bccd")
    sets = ["DATASETS.TRAIN", f"('voc://{BCCD}:trainval',)", "DATASETS.TEST"]
    options = [*sets, f"('voc://{BCCD}:test',)", "OUTPUT_DIR", str(output)]
    weights = os.environ.get("FSN_BCCD_WEIGHTS")
    if not weights:
        train = [sys.executable, "train_net.py", "--config-file", CONFIG, *options]
        subprocess.run(
            [*train, "SOLVER.MAX_ITER", "100", "SOLVER.STEPS", "()"], cwd=ROOT, check=True
        )
        weights = str(output / "model_final.pth")
    cfg = load_config(str(ROOT / CONFIG), [*options, "MODEL.WEIGHTS", weights])
    register_datasets(cfg, eval_only=True)
    model = build_model(cfg)
    load_weights(model, weights)
    mapper = TolerantMapper(cfg, is_train=False)
    records = DatasetCatalog.get(cfg.DATASETS.TEST[0])
    return Trained(cfg, model.eval(), [mapper(record)["image"].float() for record in records])


@pytest.fixture
def small_detector(
    small_cfg: Callable[..., CfgNode],
) -> Callable[..., tuple[CfgNode, nn.Module]]:
    """(config, model) of any architecture with random weights; scores and boxes differ clearly."""

    def build(config: str, *, score: float = 0.0, **changes: object) -> tuple[CfgNode, nn.Module]:
        thin = {"NUM_CONVS": 1, "TOPK_CANDIDATES_TEST": 50, "SCORE_THRESH_TEST": score}
        thin = {f"MODEL__RETINANET__{key}": value for key, value in thin.items()}
        cfg = small_cfg(config, MODEL__ROI_HEADS__SCORE_THRESH_TEST=score, **thin, **changes)
        torch.manual_seed(0)
        model = build_model(cfg).eval()
        for name, parameter in model.named_parameters():
            if name.endswith(("cls_score.weight", "objectness_logits.weight")):
                nn.init.normal_(parameter, std=0.2)
            elif name.endswith("bbox_pred.weight"):
                nn.init.normal_(parameter, std=0.05 if hasattr(model, "roi_heads") else 0.2)
        return cfg, model

    return build
