#!/usr/bin/env python
"""Exports a trained model to TorchScript and compares it with eager on images of its test set.

    python tools/export_model.py --config-file configs/fsn_R50.yaml --output model.ts \\
        MODEL.WEIGHTS output/model_final.pth
"""

from __future__ import annotations

import argparse
import sys

from detectron2.data import DatasetCatalog

from fsn_d2.data import TolerantMapper
from fsn_d2.engine import load_weights, setup
from fsn_d2.engine.trainer import Trainer
from fsn_d2.export import compare_export, export_torchscript


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, help="the config the model was trained with")
    parser.add_argument("--output", default="model.ts", help="file to write")
    parser.add_argument("--images", type=int, default=20, help="test images to compare on")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="MODEL.WEIGHTS path, and other keys")
    parser.set_defaults(eval_only=True)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    cfg = setup(args)
    model = Trainer.build_model(cfg)
    load_weights(model, cfg.MODEL.WEIGHTS)
    mapper = TolerantMapper(cfg, is_train=False)
    records = DatasetCatalog.get(cfg.DATASETS.TEST[0])[: args.images]
    images = [mapper(record)["image"].float() for record in records]
    exported = export_torchscript(cfg, model, images[0], args.output)
    difference = compare_export(model, exported, images)
    print(f"{args.output}: {difference}")
    if not difference.within():
        sys.exit("error: the exported model differs from the eager one")


if __name__ == "__main__":
    main()
