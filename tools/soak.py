#!/usr/bin/env python
"""Trains, then detects on images of random sizes, and watches whether the memory grows.

The training is the ordinary one: data loader worker, augmentation, checkpoints, evaluations. Each
of the two parts is a process of its own, with its workers; its memory is sampled a hundred times,
and has to be at the end what it was at one tenth, within --limit percent: medians of the five
samples up to each. The exit status is 1 where it is more. Linux alone.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context, get_start_method, set_start_method
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from tqdm import tqdm

from fsn_d2.engine import (
    Predictor,
    build_trainer,
    load_config,
    one_line_errors,
    setup,
    train,
)
from fsn_d2.engine.memory import resident_memory_mib

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "fsn_Lite0_digits.yaml"
EXAMPLE = """examples:
  python tools/soak.py --iterations 3000 --inferences 5000 --output soak.json
  python tools/soak.py --config-file configs/fsaf_Lite0_digits.yaml SOLVER.IMS_PER_BATCH 4"""
TICKS = 100  # samples of each part
EVALUATIONS = 30  # some before the first tenth, which take their memory
LONGEST_SIDE = 320  # pixels of the images to detect on
SMALL = {
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.BASE_LR": 0.002,
    "SOLVER.STEPS": (),
    "INPUT.MIN_SIZE_TRAIN": (80, 96, 112),
    "INPUT.MAX_SIZE_TRAIN": 160,
    "INPUT.MIN_SIZE_TEST": 96,
    "INPUT.MAX_SIZE_TEST": 160,
    "WATCH.LOSS_IMAGES": 4,
}


@dataclass
class Memory:
    """Samples of one part of the run.

    Attributes:
        part: its name.
        count: steps that it has.
        samples: (steps done, MiB held).
    """

    part: str
    count: int
    samples: list[tuple[int, float]] = field(default_factory=list)

    def at(self, fraction: float) -> float:
        """Median of the samples in the twentieth of the steps before a fraction of them."""
        first, last = (fraction - 0.05) * self.count, fraction * self.count
        return median(mib for done, mib in self.samples if first < done <= last)

    @property
    def growth(self) -> float:
        """Of the memory from one tenth to the end, in percent."""
        return 100 * (self.at(1.0) / self.at(0.1) - 1)

    def __str__(self) -> str:
        return (
            f"{self.part}: {self.at(0.1):.0f} MiB after {self.count // 10} of {self.count}, "
            f"{self.at(1.0):.0f} at the end, {self.growth:+.1f} %"
        )


class MemoryWatch(HookBase):
    """Samples the memory as steps are done, and shows how far they are; a training's last hook."""

    def __init__(self, part: str, count: int) -> None:
        self.memory = Memory(part, count)
        self._done = 0
        self._bar = tqdm(total=count, desc=part, mininterval=10, file=sys.stdout)

    def after_step(self) -> None:
        self._done += 1
        self._bar.update()
        if self._done % max(self.memory.count // TICKS, 1) == 0:
            self.memory.samples.append((self._done, resident_memory_mib()))

    def after_train(self) -> None:
        self._bar.close()


def run_training(args: argparse.Namespace, folder: str) -> Memory:
    with one_line_errors():
        resident_memory_mib()
        cfg = prepare(args, folder)
        quieten()
        trainer = build_trainer(cfg)
    watch = MemoryWatch("training", args.iterations)
    trainer.register_hooks([watch])
    train(trainer)
    return watch.memory


def run_inference(args: argparse.Namespace, folder: str) -> Memory:
    """With the trained model, on images at their own size."""
    opts = ["MODEL.WEIGHTS", f"{folder}/model_final.pth", "INPUT.MIN_SIZE_TEST", "0"]
    detect = Predictor(load_config(f"{folder}/config.yaml", opts))
    return detect_watched(detect, args.inferences, args.seed)


def detect_watched(detect: Callable[[np.ndarray], Any], count: int, seed: int) -> Memory:
    """Calls `detect` with random uint8 images [H, W, 3]."""
    rng = np.random.default_rng(seed)
    watch = MemoryWatch("inference", count)
    for _ in range(count):
        height, width = rng.integers(1, LONGEST_SIDE, 2, endpoint=True)
        detect(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        watch.after_step()
    watch.after_train()
    return watch.memory


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", default=str(CONFIG), help="default: the quick start's")
    parser.add_argument("--iterations", type=int, default=3000, help="of training (3000)")
    parser.add_argument("--inferences", type=int, default=5000, help="after it (5000)")
    parser.add_argument("--seed", type=int, default=0, help="of both parts")
    parser.add_argument("--limit", type=float, default=5.0, help="growth allowed, percent (5)")
    parser.add_argument("--output", type=Path, help="json file of the samples to write")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config keys and values")
    parser.set_defaults(eval_only=False)
    args = parser.parse_args()
    if min(args.iterations, args.inferences) < 10:
        parser.error("--iterations, --inferences: 10 at least, for one tenth to be one")
    return args


def prepare(args: argparse.Namespace, folder: str) -> CfgNode:
    """The config of the training: small images, checkpoints and many evaluations."""
    changes = SMALL | {
        "SEED": args.seed,
        "SOLVER.MAX_ITER": args.iterations,
        "SOLVER.CHECKPOINT_PERIOD": max(args.iterations // 10, 1),
        "TEST.EVAL_PERIOD": max(args.iterations // EVALUATIONS, 1),
        "OUTPUT_DIR": folder,
    }
    args.opts = [str(item) for pair in changes.items() for item in pair] + args.opts
    return setup(args)


def quieten() -> None:
    """Leaves the console to the progress; the log file keeps everything."""
    for name in ("detectron2", "fvcore", "fsn_d2"):
        for handler in logging.getLogger(name).handlers:
            if getattr(handler, "stream", None) is sys.stdout:
                handler.setLevel(logging.WARNING)


def require_steady(parts: Sequence[Memory], limit: float) -> None:
    """Ends the program with status 1 where one grew by more than so many percent."""
    if grown := [part.part for part in parts if part.growth > limit]:
        sys.exit(f"error: the memory of {' and '.join(grown)} grew by more than {limit} %")


def in_own_process(
    run: Callable[[argparse.Namespace, str], Memory], args: argparse.Namespace, folder: str
) -> Memory:
    """A new process, which starts data loader workers as any program does: not as it was itself."""
    with ProcessPoolExecutor(
        1,
        mp_context=get_context("spawn"),
        initializer=set_start_method,
        initargs=(get_start_method(), True),
    ) as pool:
        return pool.submit(run, args, folder).result()


def main() -> None:
    args = parse_args()
    with tempfile.TemporaryDirectory() as folder:
        parts = [in_own_process(run, args, folder) for run in (run_training, run_inference)]
    if args.output:
        args.output.write_text(json.dumps([asdict(part) for part in parts]))
    print(*parts, sep="\n")
    require_steady(parts, args.limit)


if __name__ == "__main__":
    main()
