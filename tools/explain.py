#!/usr/bin/env python
"""Draws what Feature Selective Networks did for one detection: the RoI and which sub-region map
each bin read, the aspect-ratio map, the attention, and the refined feature beside plain pooling.
"""

from __future__ import annotations

import argparse

from fsn_d2.data import register_digits
from fsn_d2.engine import load_config, one_line_errors
from fsn_d2.media import class_names
from fsn_d2.visualization import explain_detection, save_explanation

EXAMPLE = """example:
  python tools/explain.py --config-file configs/fsn_R50.yaml --image photo.jpg --detection 0 \\
      --output explanation.png MODEL.WEIGHTS output/model_final.pth"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, help="config the model was trained with")
    parser.add_argument("--image", required=True, help="file to detect on")
    parser.add_argument("--detection", type=int, default=0, help="its number, the best first")
    parser.add_argument("--output", default="explanation.png", help="picture to write")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="MODEL.WEIGHTS path, and other keys")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with one_line_errors():
        cfg = load_config(args.config_file, args.opts)
        register_digits()  # whose class names are then known
        classes = class_names(cfg)
        explanation = explain_detection(cfg, args.image, args.detection, classes)
    save_explanation(explanation, args.output)
    x1, y1, x2, y2 = explanation.box
    print(
        f"{args.output}: {explanation.label}, score {explanation.score:.2f}, at x {x1:.0f} to "
        f"{x2:.0f}, y {y1:.0f} to {y2:.0f}"
    )


if __name__ == "__main__":
    main()
