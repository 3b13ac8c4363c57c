#!/usr/bin/env python
"""Detects on images, folders, videos or a webcam, and writes them with what was found.

Everything goes to the output folder: pictures and videos under their names, and detections.json, a
COCO data set whose annotations have scores. What cannot be read is listed at the end and the rest
is done; the exit status is 2 where nothing could be read.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fsn_d2.data import register_digits
from fsn_d2.data.wording import printable
from fsn_d2.engine import Predictor, load_config, one_line_errors
from fsn_d2.media import Summary, class_names, detect_media, find_media, webcam

EXAMPLE = """examples:
  python tools/demo.py --config-file configs/fsn_R50.yaml --input a.jpg photos film.mp4 \\
      --output found MODEL.WEIGHTS output/model_final.pth
  python tools/demo.py --config-file configs/fsn_R50.yaml --webcam 0 --output found \\
      --classes person car --min-score 0.7 MODEL.WEIGHTS output/model_final.pth"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, help="config the model was trained with")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", nargs="+", metavar="PATH", help="images, videos or folders")
    source.add_argument("--webcam", type=int, metavar="NUMBER", help="until Ctrl-C")
    parser.add_argument("--output", type=Path, default=Path("output/demo_media"), help="folder")
    parser.add_argument("--min-score", type=float, default=0.5, help="of a detection (default 0.5)")
    parser.add_argument("--classes", nargs="+", default=[], metavar="NAME", help="these alone")
    parser.add_argument(
        "--class-names", nargs="+", metavar="NAME", help="of all of the model's classes, in order"
    )
    parser.add_argument("--max-frames", type=int, help="of every video or webcam")
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        help="MODEL.WEIGHTS path, and other keys; put -- before them behind a list of names",
    )
    args = parser.parse_args()
    args.opts = args.opts[1:] if args.opts[:1] == ["--"] else args.opts
    return args


def report(summary: Summary, output: Path) -> str:
    lines = [f"{summary.detections} detections on {summary.pictures} pictures, in {output}"]
    if summary.interrupted:
        lines.append("ended early by the user")
    if summary.unreadable:
        lines.append(f"not read, or not all of it: {len(summary.unreadable)}")
        lines += [f"  {name}: {reason}" for name, reason in summary.unreadable]
    return printable("\n".join(lines))


def main() -> None:
    args = parse_args()
    with one_line_errors():
        media = find_media(args.input) if args.input else [webcam(args.webcam)]
        cfg = load_config(args.config_file, args.opts)
        register_digits()  # whose class names are then known
        classes = class_names(cfg, args.class_names)
        predictor = Predictor(cfg)
        summary = detect_media(
            predictor,
            media,
            args.output,
            classes=classes,
            only=args.classes,
            min_score=args.min_score,
            max_pixels=cfg.INPUT.MAX_PIXELS,
            max_frames=args.max_frames,
        )
    print(report(summary, args.output))
    if not summary.pictures:
        sys.exit(2)


if __name__ == "__main__":
    main()
