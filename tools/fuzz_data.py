#!/usr/bin/env python
"""Builds data sets with every kind of broken annotation and image, and reads each of them twice: by
the package, and by a literal reader of the tests. Both have to find the same.

A set is refused with all its problems named, or it is registered with all its valid boxes and none
of the broken ones; then its images are loaded as training or evaluation does, and some of the sets
are trained on. A set is a training set or a test set by chance.

    python tools/fuzz_data.py --sets 2000 --seed 0
"""

from __future__ import annotations

import argparse
import io
import logging
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from data.fuzzed_coco import write_fuzzed_coco  # noqa: E402
from data.fuzzed_pictures import MAX_PIXELS, MAX_SIDE  # noqa: E402
from data.fuzzed_voc import write_fuzzed_voc  # noqa: E402
from data.literal_reading import Box, Truth, read_literally  # noqa: E402
from data.small_sets import perfect_ap  # noqa: E402

from fsn_d2.data import TolerantMapper, register_datasets  # noqa: E402
from fsn_d2.data.checking import check_datasets  # noqa: E402
from fsn_d2.engine import Trainer, build_trainer, load_config, train  # noqa: E402

SECONDS = 120  # for one set; one that takes longer hangs
TINY = {
    "MODEL.WEIGHTS": "",
    "MODEL.DEVICE": "cpu",
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
    "MODEL.FPN.OUT_CHANNELS": 32,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 64,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 50,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 20,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 50,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 20,
    "INPUT.MIN_SIZE_TRAIN": (48,),
    "INPUT.MIN_SIZE_TEST": 48,
    "INPUT.MAX_SIZE_TRAIN": MAX_SIDE,
    "INPUT.MAX_SIZE_TEST": MAX_SIDE,
    "INPUT.MAX_PIXELS": MAX_PIXELS,
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.BASE_LR": 1e-5,
    "SOLVER.STEPS": (),
    "SOLVER.MAX_ITER": 2,
    "SEED": 1,
}

# What the package says -> what the literal reader calls it.
PLACES = {
    r"((?:images|annotations|categories)\[\d+\]) ": r"\1",
    r"json: no list '(\w+)'": r"list \1",
    r"json: (id|name) .* occurs \d+ times in '(\w+)'": r"\2 \1 twice",
    r"no annotation's image_id is an id": "image ids",
    r"not a readable json file|json holds a ": "file",
    r"/([^/]*\.xml) does not exist": r"\1",
    r"[Tt]he split file ": "split",
    r"/([^/]*\.xml) is not a readable VOC annotation: (object \d+)": r"\1 \2",
    r"/([^/]*\.xml) is not a readable VOC annotation": r"\1",
    r"lists no image": "lists no image",
    r"none of its \d+ images can be read": "no image",
    r"no class is known": "no class",
    r"has a box to train on": "no box",
    r"can be decoded to its end": "nothing decodes",
}
FINDINGS = {
    "boxes without area": "no area",
    "images that cannot be read": "unreadable",
    "images of more pixels": "too large",
    "images whose short side": "too narrow",
    "images outside": "outside",
    "images whose size": "wrong size",
    "annotations of images that are not listed": "no image",
    "image ids listed more than once": "repeated",
    "areas that are": "area",
    "segmentations that are": "mask",
    "keypoints that are": "keypoints",
}


@dataclass
class Figures:
    """What is printed in the end."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def text(self) -> str:
        c = self.counts
        return (
            f"{c['sets']} data sets ({c['coco']} COCO, {c['voc']} VOC; {c['train']} to train on, "
            f"{c['sets'] - c['train']} to test on), {c['annotations']} annotations\n"
            f"  refused: {c['refused']} sets, {c['problems']} problems, all of them named\n"
            f"  accepted: {c['accepted']} sets; {c['boxes']} valid boxes, all kept; "
            f"{c['broken']} others (broken, or of images that cannot be used), none kept; "
            f"{c['findings']} findings, all counted\n"
            f"  loaded: {c['images']} images; trained on: {c['trained']} sets; "
            f"evaluated: {c['evaluated']} sets\n"
            f"  wrong: {len(self.wrong)} (crashes {c['crashes']}, hangs {c['hangs']}, "
            f"differences {c['differences']})"
        )


class Hang(BaseException):
    """Not an Exception, so that nothing on the way takes it for a broken file."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise Hang

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def make_config(spec: str, truth: Truth, folder: Path, *, train_set: bool) -> CfgNode:
    options = {
        **TINY,
        "MODEL.ROI_HEADS.NUM_CLASSES": max(1, len(truth.classes)),
        "OUTPUT_DIR": str(folder / "output"),
    }
    cfg = load_config(str(ROOT / "configs/fsn_R50.yaml"), [x for o in options.items() for x in o])
    cfg.DATASETS.TRAIN = (spec,) if train_set else ()
    cfg.DATASETS.TEST = () if train_set else (spec,)
    return cfg


def place(text: str) -> str:
    for pattern, name in PLACES.items():
        if match := re.search(pattern, text):
            return match.expand(name)
    return text


def short(finding: str) -> str:
    return next(name for start, name in FINDINGS.items() if finding.startswith(start))


def registered_boxes(spec: str) -> list[Box]:
    kind = spec.partition("://")[0]
    classes = MetadataCatalog.get(spec).thing_classes
    root = MetadataCatalog.get(spec).image_root
    boxes = []
    for record in DatasetCatalog.get(spec):
        name = record["file_name"].removeprefix(f"{root}/")
        size = record["width"], record["height"]
        for annotation in record["annotations"]:
            x, y, w, h = annotation["bbox"]
            corners = (max(x, 0.0), max(y, 0.0), min(x + w, size[0]), min(y + h, size[1]))
            image = name if kind == "coco" else Path(name).stem
            crowd = bool(annotation["iscrowd"])
            boxes.append((image, classes[annotation["category_id"]], corners, crowd))
    return boxes


def same_boxes(found: list[Box], expected: list[Box]) -> bool:
    if len(found) != len(expected):
        return False
    return all(
        (a[0], a[1], a[3]) == (b[0], b[1], b[3])
        and max(abs(p - q) for p, q in zip(a[2], b[2], strict=True)) < 1e-6
        for a, b in zip(sorted(found), sorted(expected), strict=True)
    )


def load_all(cfg: CfgNode, spec: str, *, train_set: bool) -> int:
    """Maps images as the trainer does; returns how many."""
    if train_set:
        stream = iter(Trainer.build_train_loader(cfg))
        samples = [sample for _ in range(3) for sample in next(stream)]
        for sample in samples:
            boxes = sample["instances"].gt_boxes
            assert bool(torch.isfinite(boxes.tensor).all()) and bool(boxes.nonempty().all())
        return len(samples)
    mapper = TolerantMapper(cfg, is_train=False)
    return sum(mapper(record) is not None for record in DatasetCatalog.get(spec))


def expect(what: str, found: Any, expected: Any) -> None:
    if found != expected:
        raise AssertionError(f"{what}: found {found}, expected {expected}")


def check_set(
    spec: str, truth: Truth, folder: Path, figures: Figures, *, train_set: bool, train_every: int
) -> None:
    """Raises AssertionError where the package finds something else than the truth."""
    c = figures.counts
    cfg = make_config(spec, truth, folder, train_set=train_set)
    sets, problems = check_datasets(cfg, eval_only=not train_set)
    expect("problems", Counter(place(p.text) for p in problems), truth.problems)
    try:
        register_datasets(cfg, eval_only=not train_set)
    except (FileNotFoundError, ValueError):
        expect("refused", bool(problems), True)
        c["refused"] += 1
        c["problems"] += len(problems)
        return
    expect("refused", bool(problems), False)
    found = Counter({short(k): len(v) for k, v in sets[spec].findings.items()})
    expect("findings", found, +truth.findings)
    kept = registered_boxes(spec)
    if not same_boxes(kept, truth.boxes):
        raise AssertionError(f"boxes: found {sorted(kept)}, expected {sorted(truth.boxes)}")
    c["accepted"] += 1
    c["findings"] += sum(found.values())
    c["boxes"] += len(kept)
    c["broken"] += truth.annotations - len(kept)
    c["images"] += load_all(cfg, spec, train_set=train_set)
    usable = [box for box in kept if not box[3]]
    if not train_set and usable and len(usable) == len(kept):
        expect("AP of the annotations themselves", round(perfect_ap(spec)["AP"], 3), 100.0)
        c["evaluated"] += 1
    if train_set and train_every and c["trainable"] % train_every == 0:
        cfg.DATASETS.TEST = (spec,) if all(truth.images.values()) else ()
        register_datasets(cfg)
        train(build_trainer(cfg))
        c["trained"] += 1
    c["trainable"] += train_set


def forget(spec: str) -> None:
    for catalog in (DatasetCatalog, MetadataCatalog):
        if spec in catalog:
            catalog.remove(spec)


def run_one(number: int, seed: int, figures: Figures, *, train_every: int) -> None:
    """Builds, reads and checks one set; what goes wrong is kept in the figures."""
    rng = random.Random(f"{seed} {number}")
    case = Path(tempfile.mkdtemp(prefix="fuzz_data_"))
    write = rng.choice((write_fuzzed_coco, write_fuzzed_voc))
    train_set = rng.random() < 0.5
    spec, pictures = write(case / "set", rng)
    truth = read_literally(spec, pictures, train=train_set)
    c = figures.counts
    c.update(("sets", spec.partition("://")[0], *(["train"] if train_set else [])))
    c["annotations"] += truth.annotations
    try:
        with time_limit(SECONDS), redirect_stdout(io.StringIO()):
            check_set(spec, truth, case, figures, train_set=train_set, train_every=train_every)
    except (Exception, Hang, SystemExit) as error:
        kinds = {AssertionError: "differences", Hang: "hangs"}
        c[kinds.get(type(error), "crashes")] += 1
        figures.wrong.append(f"set {number} ({case}): {type(error).__name__}: {error}")
        print(figures.wrong[-1][:2000], flush=True)
    else:
        shutil.rmtree(case)
    forget(spec)


def fuzz(sets: int, seed: int, *, train_every: int = 20, first: int = 0) -> Figures:
    """Returns the figures of `sets` sets, from number `first` on."""
    figures, started = Figures(), time.monotonic()
    for number in range(first, first + sets):
        run_one(number, seed, figures, train_every=train_every)
        if (number + 1) % 200 == 0:
            passed = time.monotonic() - started
            print(f"{number + 1} sets, {len(figures.wrong)} wrong, {passed:.0f} s", flush=True)
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--sets", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first set")
    parser.add_argument(
        "--train-every",
        type=int,
        default=20,
        help="train on every n-th accepted training set; 0: on none",
    )
    args = parser.parse_args()
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    figures = fuzz(args.sets, args.seed, train_every=args.train_every, first=args.first)
    print(figures.text())
    return int(bool(figures.wrong))


if __name__ == "__main__":
    sys.exit(main())
