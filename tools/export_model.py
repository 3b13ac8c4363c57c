#!/usr/bin/env python
"""Exports a trained model to TorchScript and compares it with eager on images of its test set."""

from __future__ import annotations

import argparse
import sys

from fsn_d2.engine import one_line_errors, setup
from fsn_d2.export import export_and_compare

EXAMPLE = """example:
  python tools/export_model.py --config-file configs/fsn_R50.yaml --output model.ts \\
      MODEL.WEIGHTS output/model_final.pth"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, help="config the model was trained with")
    parser.add_argument("--output", default="model.ts", help="file to write")
    parser.add_argument("--images", type=int, default=20, help="test images to compare on")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="MODEL.WEIGHTS path, and other keys")
    parser.set_defaults(eval_only=True)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with one_line_errors():
        cfg = setup(args)
        difference = export_and_compare(cfg, args.output, args.images)
    print(f"{args.output}: {difference}")
    if not difference.within():
        sys.exit("error: the exported model differs from the eager one")


if __name__ == "__main__":
    main()
