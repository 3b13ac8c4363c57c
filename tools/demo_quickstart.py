#!/usr/bin/env python
"""`make demo`: trains FSN on handwritten digits, evaluates, exports, and draws what it found.

Run again after an interruption it goes on from the last checkpoint. Config keys can be overridden
as for train_net.py.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from detectron2.config import CfgNode

from fsn_d2.engine import build_trainer, one_line_errors, setup, train
from fsn_d2.export import export_and_compare
from fsn_d2.visualization import save_detection_sheet

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "fsn_Lite0_digits.yaml"


def with_weights(cfg: CfgNode, path: Path) -> CfgNode:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(path)
    cfg.freeze()
    return cfg


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", default=str(CONFIG))
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config keys and values")
    parser.set_defaults(eval_only=False)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with one_line_errors():
        cfg = setup(args)
        trainer = build_trainer(cfg, resume=True)
    output = Path(cfg.OUTPUT_DIR)
    results = train(trainer)
    del trainer  # its optimizer and data are no longer needed
    cfg = with_weights(cfg, output / "model_final.pth")
    difference = export_and_compare(cfg, output / "model.ts")
    save_detection_sheet(cfg, cfg.DATASETS.TEST[0], output / "detections.png")
    print(f"AP50 on {cfg.DATASETS.TEST[0]}: {results['bbox']['AP50']:.1f}")
    print(f"model.ts against eager: {difference}")
    print(f"In {output}: metrics.json, model_final.pth, model.ts, detections.png")
    if not difference.within():
        sys.exit("error: the exported model differs from the eager one")


if __name__ == "__main__":
    main()
