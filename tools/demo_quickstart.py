#!/usr/bin/env python
"""`make demo`: trains FSN on handwritten digits, evaluates, exports, and draws what it found.

Run again after an interruption it goes on from the last checkpoint.
"""

from __future__ import annotations

import sys
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.engine import default_argument_parser

from fsn_d2.data import TolerantMapper
from fsn_d2.engine import load_weights, setup, train
from fsn_d2.engine.trainer import Trainer
from fsn_d2.export import compare_export, export_torchscript
from fsn_d2.visualization import save_detection_sheet

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "fsn_Lite0_digits.yaml"
COMPARED_IMAGES = 20


def with_weights(cfg: CfgNode, path: Path) -> CfgNode:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(path)
    cfg.freeze()
    return cfg


def export(cfg: CfgNode, path: Path) -> None:
    """Exports the model of MODEL.WEIGHTS and compares it with eager on test images."""
    model = Trainer.build_model(cfg)
    load_weights(model, cfg.MODEL.WEIGHTS)
    mapper = TolerantMapper(cfg, is_train=False)
    records = DatasetCatalog.get(cfg.DATASETS.TEST[0])[:COMPARED_IMAGES]
    images = [mapper(record)["image"].float() for record in records]
    difference = compare_export(model, export_torchscript(cfg, model, images[0], path), images)
    print(f"export: {path}, against eager: {difference}")
    if not difference.within():
        sys.exit("error: the exported model differs from the eager one")


def main() -> None:
    args = default_argument_parser().parse_args()
    args.config_file = args.config_file or str(CONFIG)
    cfg = setup(args)
    output = Path(cfg.OUTPUT_DIR)
    results = train(cfg, resume=True)
    cfg = with_weights(cfg, output / "model_final.pth")
    export(cfg, output / "model.ts")
    save_detection_sheet(cfg, cfg.DATASETS.TEST[0], output / "detections.png")
    print(f"AP50 {results['bbox']['AP50']:.1f}; results in {output}/:")
    print("  metrics.json, model_final.pth, model.ts, detections.png")


if __name__ == "__main__":
    main()
