#!/usr/bin/env python
"""Draws on which pyramid level a trained FSAF learns each object of an image, beside the level that
the object's size alone would choose.
"""

from __future__ import annotations

import argparse

from fsn_d2.engine import one_line_errors, setup
from fsn_d2.evaluation import first_test_set
from fsn_d2.visualization import save_level_picture

EXAMPLE = """example:
  python tools/show_levels.py --config-file configs/fsaf_Lite0_BCCD.yaml --image 3 \\
      --output levels.png MODEL.WEIGHTS output/bccd_fsaf/model_final.pth"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, help="config the model was trained with")
    parser.add_argument("--image", type=int, default=0, help="number of the test image, from 0")
    parser.add_argument("--output", default="levels.png", help="picture to write")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="MODEL.WEIGHTS path, and other keys")
    parser.set_defaults(eval_only=True)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with one_line_errors():
        cfg = setup(args)
        counts = save_level_picture(cfg, first_test_set(cfg), args.image, args.output)
    print(f"{args.output}: {counts['objects']} objects, size agrees for {counts['agree']}")


if __name__ == "__main__":
    main()
