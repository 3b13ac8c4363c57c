#!/usr/bin/env python
"""Kills trainings with SIGKILL, resumes them, and compares their ends with an uninterrupted one's.

Every run trains a small FSN on the CPU with 2 data loader workers, aspect-ratio grouping and
augmentation, is killed once, and goes on with --resume. Some are killed at a random time, the
others while a checkpoint is being written. What they end with (weights, optimizer, random states,
place in the data) has to be equal bit for bit.

    python tools/check_resume.py --runs 20 --in-write 5
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
FORMAT = argparse.RawDescriptionHelpFormatter
PERIOD = 4  # iterations from one checkpoint to the next
OPTS = {
    "MODEL.WEIGHTS": "",
    "MODEL.DEVICE": "cpu",
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
    "MODEL.RESNETS.NORM": "BN",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.FPN.OUT_CHANNELS": 32,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 64,
    "MODEL.ROI_HEADS.NUM_CLASSES": 2,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 50,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 20,
    "INPUT.MIN_SIZE_TRAIN": (48, 56, 64),
    "INPUT.MAX_SIZE_TRAIN": 96,
    "INPUT.CROP.ENABLED": True,
    "DATALOADER.NUM_WORKERS": 2,
    "DATALOADER.ASPECT_RATIO_GROUPING": True,
    "DATASETS.TEST": (),
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.BASE_LR": 0.002,
    "SOLVER.STEPS": (),
    "SOLVER.CHECKPOINT_PERIOD": PERIOD,
    "SEED": 7,
}


@dataclass
class Outcome:
    """One killed and resumed run."""

    in_write: bool
    resumed_from: int  # iterations that the last whole checkpoint had; 0: there was none
    equal: bool

    def __str__(self) -> str:
        where = "inside a checkpoint write" if self.in_write else "at a random time"
        found = f"resumed after iteration {self.resumed_from}" if self.resumed_from else "restarted"
        return f"killed {where}, {found}: {'equal' if self.equal else 'DIFFERENT'}"


def write_images(folder: Path, count: int = 12) -> str:
    """Upright and lying images with a filled box each; returns the set's spec string."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(1, count + 1):
        height, width = (64, 80) if number % 3 else (88, 56)
        x, y, w, h = (int(v) for v in (*rng.integers(2, 20, 2), *rng.integers(16, 32, 2)))
        pixels = rng.integers(0, 80, (height, width, 3), dtype=np.uint8)
        pixels[y : y + h, x : x + w] += np.uint8(100)
        name = f"{number}.png"
        Image.fromarray(pixels).save(folder / name)
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        box = {"bbox": [x, y, w, h], "area": w * h, "iscrowd": 0, "category_id": 1 + number % 2}
        annotations.append({"id": number, "image_id": number, **box})
    categories = [{"id": 1, "name": "one"}, {"id": 2, "name": "two"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "data.json").write_text(json.dumps(content))
    return f"coco://{folder / 'data.json'}:{folder}"


class Training:
    """train_net.py as a process of its own, with an output folder of its own."""

    def __init__(self, spec: str, output: Path, iterations: int) -> None:
        changes = {
            "DATASETS.TRAIN": (spec,),
            "OUTPUT_DIR": output,
            "SOLVER.MAX_ITER": iterations,
        }
        opts = [str(item) for pair in (OPTS | changes).items() for item in pair]
        self.output = output
        self._command = [sys.executable, "train_net.py", "--config-file", "configs/fsn_R50.yaml"]
        self._command += ["--resume", *opts]
        self._environment = os.environ | {
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }

    def start(self) -> subprocess.Popen[bytes]:
        """Starts, or goes on from the last checkpoint."""
        self.output.mkdir(exist_ok=True)
        with open(self.output / "output.txt", "ab") as log:
            return subprocess.Popen(
                self._command, cwd=ROOT, env=self._environment, stdout=log, stderr=log
            )

    def finish(self) -> tuple[dict[str, Any], float]:
        """Trains to the end; returns what the last checkpoint holds, and the seconds it took."""
        process = self.start()
        wait_for(self.trains, process)
        began = time.monotonic()
        if process.wait() != 0:
            sys.exit(f"error: a training failed, see {self.output / 'output.txt'}")
        result = torch.load(self.output / "model_final.pth", weights_only=True)
        return result, time.monotonic() - began

    def trains(self) -> bool:
        log = self.output / "output.txt"
        return "Starting training" in log.read_text(errors="replace")

    def partial(self) -> Path | None:
        """The checkpoint that is being written, or was when the training was killed."""
        return next(self.output.glob("*.pth.partial"), None)

    def iterations_saved(self) -> int:
        last = self.output / "last_checkpoint"
        if not last.is_file():
            return 0
        path = self.output / last.read_text()
        return torch.load(path, weights_only=True)["iteration"] + 1


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None and not condition():
        time.sleep(0.0005)


def kill(process: subprocess.Popen[bytes]) -> bool:
    """Tells whether the process was still there to be killed."""
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def kill_at_random_time(training: Training, seconds: float) -> bool:
    """Kills within the given time from the start of training on; False if it had ended."""
    process = training.start()
    wait_for(training.trains, process)
    time.sleep(random.uniform(0, seconds))
    return kill(process)


def kill_in_write(training: Training, writes: int) -> bool:
    """Kills inside one of so many checkpoint writes; False if the kill came too late."""
    process = training.start()
    chosen, seen = random.randint(1, writes), set()

    def writing() -> bool:
        seen.add(training.partial())
        return len(seen - {None}) == chosen

    wait_for(writing, process)
    time.sleep(random.uniform(0, 0.02))  # a write takes longer than that
    return kill(process) and training.partial() is not None


def same(first: Any, second: Any) -> bool:
    """Equal to the last bit, containers and all."""
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and first.equal(second)
    if isinstance(first, dict):
        return list(first) == list(second) and all(same(first[k], second[k]) for k in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def check(folder: Path, runs: int, in_write: int, iterations: int) -> list[Outcome]:
    """Trains once without interruption, then the given number of times with a kill."""
    (folder / "images").mkdir()
    spec = write_images(folder / "images")
    reference = Training(spec, folder / "reference", iterations)
    expected, seconds = reference.finish()
    print(f"uninterrupted: {iterations} iterations in {seconds:.0f} s of training", flush=True)
    outcomes: list[Outcome] = []
    while len(outcomes) < runs:
        training = Training(spec, folder / "interrupted", iterations)
        if len(outcomes) < in_write:
            killed = kill_in_write(training, iterations // PERIOD)
        else:
            killed = kill_at_random_time(training, seconds)
        if killed:
            outcomes.append(resume(training, expected))
            print(f"run {len(outcomes)}: {outcomes[-1]}", flush=True)
        shutil.rmtree(training.output)
    return outcomes


def resume(training: Training, expected: dict[str, Any]) -> Outcome:
    in_write, saved = training.partial() is not None, training.iterations_saved()
    result, _ = training.finish()
    return Outcome(in_write, saved, same(result, expected))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=FORMAT)
    parser.add_argument("--runs", type=int, default=20, help="killed trainings")
    parser.add_argument("--in-write", type=int, default=5, help="of these, inside a write")
    parser.add_argument("--iterations", type=int, default=24, help="of each training")
    parser.add_argument("--seed", type=int, default=0, help="of the times of the kills")
    args = parser.parse_args()
    random.seed(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        outcomes = check(Path(folder), args.runs, args.in_write, args.iterations)
    equal, in_write = sum(o.equal for o in outcomes), sum(o.in_write for o in outcomes)
    print(f"{len(outcomes)} killed, {in_write} inside a checkpoint write, {equal} end equal")
    if equal < len(outcomes):
        sys.exit("error: a resumed training ended with something else")


if __name__ == "__main__":
    main()
