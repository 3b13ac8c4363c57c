#!/usr/bin/env python
"""Exports a trained model to TorchScript, ONNX or both, compares each file with eager on images of
the test set, measures them side by side, and writes a model card.

That is done on the CPU, where the files then run; with MODEL.DEVICE cuda on a GPU, for a
TorchScript file that is to run there.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from detectron2.config import CfgNode

from fsn_d2.engine import one_line_errors, setup
from fsn_d2.export import FORMATS, export_files, model_card

EXAMPLE = """example:
  python tools/export_model.py --config-file configs/fsn_R50.yaml --format both \\
      --output model.ts MODEL.WEIGHTS output/model_final.pth
writes model.ts, model.onnx and model.md. docs/export.md has more."""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, help="config the model was trained with")
    parser.add_argument("--format", choices=[*FORMATS, "both"], default="torchscript")
    parser.add_argument(
        "--output",
        help="file to write, default model.ts or model.onnx; of both, and of the model "
        "card, the suffix is replaced",
    )
    parser.add_argument("--images", type=int, default=20, help="test images to compare on")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="MODEL.WEIGHTS path, and other keys")
    parser.set_defaults(eval_only=True)
    return parser.parse_args()


def on_cpu_unless_asked(cfg: CfgNode, opts: list[str]) -> CfgNode:
    """Where files are made. The config that `setup` keeps beside the weights stays as it is."""
    if "MODEL.DEVICE" in opts:
        return cfg
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    cfg.freeze()
    return cfg


def files_to_write(format: str, output: str | None) -> dict[str, Path]:
    """Format -> path."""
    if format != "both":
        return {format: Path(output or f"model{FORMATS[format].suffix}")}
    name = Path(output or "model")
    return {each: name.with_suffix(FORMATS[each].suffix) for each in FORMATS}


def main() -> None:
    args = parse_args()
    paths = files_to_write(args.format, args.output)
    card = next(iter(paths.values())).with_suffix(".md")
    with one_line_errors():
        if card in paths.values():
            raise ValueError(f"--output: {card} is where the model card goes, name the model .ts.")
        cfg = on_cpu_unless_asked(setup(args), args.opts)
        shipment = export_files(cfg, paths, args.images)
    card.write_text(model_card(cfg, shipment, card.stem), encoding="utf-8")
    print(shipment.table())
    print(
        f"Compared on {shipment.files[0].difference.images} images. Written: "
        f"{', '.join(map(str, [*paths.values(), card]))}"
    )
    for file in shipment.files:
        if not file.difference.within():
            sys.exit(f"error: {file.path} differs from the eager model: {file.difference}")


if __name__ == "__main__":
    main()
