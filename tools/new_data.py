#!/usr/bin/env python
"""Looks at a data set in COCO or VOC layout, says what is in it and what is suspicious, writes a
config for it and this machine, and says how to go on.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import reduce
from operator import getitem
from pathlib import Path

from detectron2.config import CfgNode

from fsn_d2.data.config_delta import Setting, to_yaml
from fsn_d2.data.problems import raise_problems
from fsn_d2.data.specs import SPEC_SYNTAX, parse_spec
from fsn_d2.data.splitting import split_coco
from fsn_d2.data.suggestion import base_config, suggest
from fsn_d2.data.survey import Survey, equal_images, survey_datasets
from fsn_d2.data.survey_text import survey_text
from fsn_d2.data.writing import write_json, write_text
from fsn_d2.engine import load_config, one_line_errors
from fsn_d2.machine import Machine
from fsn_d2.visualization.samples import SUFFIXES, save_sample_sheet

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
PARTS = ("train", "test")  # of --test-fraction
OPTIONS = {"DATASETS.TRAIN": "--train", "DATASETS.TEST": "--test", "DATASETS.CLASSES": "--classes"}
EXAMPLE = """examples:
  python tools/new_data.py --train coco://data/train.json:data/images \\
      --test coco://data/val.json:data/images --sheet samples.png
  python tools/new_data.py --train voc://data/VOC:trainval --test-fraction 0.2 \\
      --output configs/cells.yaml"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", nargs="+", required=True, metavar="SPEC", help=SPEC_SYNTAX)
    parser.add_argument("--test", nargs="+", default=[], metavar="SPEC", help="the same")
    parser.add_argument(
        "--test-fraction",
        type=float,
        metavar="F",
        help="without --test: split this part of the training images off, at random",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the split and the samples")
    parser.add_argument(
        "--classes", nargs="+", default=[], metavar="NAME", help="all of them, in order"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("configs/my_data.yaml"),
        help="config to write (default %(default)s)",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace an --output, its parts and --sheet, that exist",
    )
    parser.add_argument("--sheet", type=Path, help="picture of samples to write, .png or .jpg")
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        help="DATASETS.ALLOW_OUTSIDE True, and other keys: the data is read by them, and they are "
        "written; put -- before them behind a list of names",
    )
    args = parser.parse_args()
    args.opts = args.opts[1:] if args.opts[:1] == ["--"] else args.opts
    return args


def check_args(args: argparse.Namespace) -> None:
    """Raises ValueError before anything is read."""
    for name in (*args.train, *args.test):
        if parse_spec(name) is None:
            raise ValueError(f"{name!r} is no data set of your own; use {SPEC_SYNTAX}.")
    written = {args.output: "--output"}
    if args.test_fraction is not None:
        written |= {part_path(args.output, part): "--output" for part in PARTS}
    if args.sheet:
        written[args.sheet] = "--sheet"
    for path in filter(Path.exists, written):
        option = written[path]
        if name := next((n for n in (*args.train, *args.test) if is_file_of(n, path)), None):
            raise ValueError(
                f"{path} would be replaced, and {name!r} reads it: name another {option}."
            )
        if not args.overwrite:
            raise ValueError(f"{path} exists: name another {option}, or add --overwrite.")
    if args.sheet and args.sheet.suffix.lower() not in SUFFIXES:
        raise ValueError(f"--sheet {args.sheet}: give a name that ends in .png or .jpg.")
    if args.test_fraction is not None and (args.test or len(args.train) > 1):
        raise ValueError("--test-fraction splits one --train set, and needs no --test.")
    for key in set(args.opts[::2]) & OPTIONS.keys():
        raise ValueError(f"{key} is given by {OPTIONS[key]}, not as a key.")


def is_file_of(name: str, path: Path) -> bool:
    """Whether a spec reads its annotations from this file, which exists, under whatever name."""
    spec = parse_spec(name)
    return spec is not None and spec.path.exists() and spec.path.samefile(path)


def part_path(output: Path, part: str) -> Path:
    """Where --test-fraction writes a part, which is one of PARTS."""
    return output.with_name(f"{output.stem}_{part}.json")


def survey(given: CfgNode, args: argparse.Namespace) -> Survey:
    cfg = given.clone()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = tuple(args.train), tuple(args.test)
    cfg.DATASETS.CLASSES = list(args.classes)
    return survey_datasets(cfg)


def split(found: Survey, args: argparse.Namespace) -> None:
    """Writes both parts beside the config, and puts their specs in place of the set's."""
    cleaned = found.train[0].cleaned
    parts = split_coco(
        cleaned.coco, args.test_fraction, seed=args.seed, together=equal_images(cleaned)
    )
    specs = []
    for part, name in zip(parts, PARTS, strict=True):
        path = write_json(part, part_path(args.output, name))
        specs.append(f"coco://{path}:{cleaned.source.image_root}")
        print(f"Split: {len(part['images'])} images to {name} on, in {path}")
    args.train, args.test = specs[:1], specs[1:]


def given_settings(given: CfgNode, opts: Sequence[str]) -> list[Setting]:
    """The keys of the command line, with their values of the loaded config."""
    values = [(key, reduce(getitem, key.split("."), given)) for key in opts[::2]]
    return [Setting(key, value, "as given on the command line") for key, value in values]


def next_steps(args: argparse.Namespace, machine: Machine) -> str:
    gpus = f" --num-gpus {machine.gpus}" if machine.gpus > 1 else ""
    lines = [f"Written: {', '.join(map(str, filter(None, [args.output, args.sheet])))}"]
    if not args.test:
        lines.append(
            "There is no test set: the training ends without a figure. --test names one, "
            "--test-fraction 0.2 splits off a fifth of the images."
        )
    return "\n".join([*lines, f"Next: python train_net.py --config-file {args.output}{gpus}"])


def main() -> None:
    args, machine = parse_args(), Machine.here()
    with one_line_errors():
        check_args(args)
        path = CONFIGS / base_config(machine)
        base, given = load_config(str(path)), load_config(str(path), args.opts)
        own = given_settings(given, args.opts)
        found = survey(given, args)
        if text := survey_text(found, given.INPUT.MIN_SIZE_TEST, given.INPUT.MAX_SIZE_TEST):
            print(text)
        raise_problems(found.problems, args.output.with_suffix(".problems.txt"))
        if args.test_fraction is not None:
            split(found, args)
            found = survey(given, args)
            raise_problems(found.problems, args.output.with_suffix(".problems.txt"))
        settings = suggest(
            found,
            machine,
            base,
            train=args.train,
            test=args.test,
            output_dir=f"output/{args.output.stem}",
        )
        heading = f"Written by tools/new_data.py for {machine}; every value is a suggestion"
        write_text(to_yaml([*settings, *own], path, args.output, heading), args.output)
        load_config(str(args.output))
        if args.sheet:
            sets = [each.cleaned for each in found.train + found.test]
            save_sample_sheet(sets, found.classes, args.sheet, seed=args.seed)
    print(next_steps(args, machine))


if __name__ == "__main__":
    main()
