#!/usr/bin/env python
"""Writes a report of an evaluation: one HTML file, for any browser, without server or network."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from detectron2.config import CfgNode

from fsn_d2.engine import one_line_errors, setup
from fsn_d2.evaluation import evaluation_folder, first_test_set
from fsn_d2.report import build_facts, read_evaluated, render_page

EXAMPLE = """example:
  python tools/report.py --config-file configs/fsn_Lite0_BCCD.yaml --output report.html"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, help="config of the evaluation")
    parser.add_argument(
        "--detections",
        metavar="FILE",
        help="json of the evaluation (coco_instances_results.json in OUTPUT_DIR/inference)",
    )
    parser.add_argument("--dataset", help="name of the set (the first of DATASETS.TEST)")
    parser.add_argument("--images", type=int, default=12, help="of the best and of the worst (12)")
    parser.add_argument("--output", default="report.html", help="file to write (report.html)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config keys and values")
    parser.set_defaults(eval_only=True)
    return parser.parse_args()


def choose(dataset: str | None, cfg: CfgNode) -> str:
    first, test = first_test_set(cfg), list(cfg.DATASETS.TEST)
    if dataset not in [None, *test]:
        raise ValueError(f"--dataset: expected one of DATASETS.TEST, {test}, got {dataset!r}.")
    return dataset or first


def write(path: Path, page: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8", newline="\n")
    except OSError as error:
        raise ValueError(f"--output: {path} cannot be written ({error}).") from error


def main() -> None:
    args = parse_args()
    with one_line_errors():
        cfg = setup(args)
        dataset = choose(args.dataset, cfg)
        written = os.path.join(evaluation_folder(cfg, dataset), "coco_instances_results.json")
        evaluated = read_evaluated(dataset, args.detections or written)
        facts = build_facts(evaluated, images=args.images, max_pixels=cfg.INPUT.MAX_PIXELS)
        path = Path(args.output)
        write(path, render_page(facts))
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, AP {facts['ap'][-1]}")


if __name__ == "__main__":
    main()
