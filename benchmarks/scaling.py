#!/usr/bin/env python
"""Works out, on paper, how long a training takes on 1 to 512 GPUs, and what it costs in GPU hours.

From the time of a step on one GPU, which is to be measured or taken from elsewhere, and the bytes
that data-parallel training sends: every step reduces the gradients of all learnt parameters, once
over the fast links within a machine and once over the network between machines (ring all-reduce,
2 (n - 1) / n of the bytes over each link). Two bounds are given: all of that hidden behind the
backward pass, and none of it. Stragglers, evaluation and loading are not in it.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from detectron2.modeling import build_model

from fsn_d2.engine import load_config, one_line_errors

ROOT = Path(__file__).resolve().parents[1]
GPUS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
BYTES_PER_VALUE = 4
COCO_IMAGES = 118_287


@dataclass(frozen=True)
class Setting:
    """What the table follows from.

    Attributes:
        step: seconds of a step on one GPU.
        images: per GPU and step.
        gradients: bytes.
        machine: GPUs of a machine.
        inside, between: bytes per second of a link between GPUs, and of a machine's network.
        epochs: of COCO's training set.
    """

    step: float
    images: int
    gradients: int
    machine: int
    inside: float
    between: float
    epochs: float


@dataclass(frozen=True)
class Estimate:
    """Of one number of GPUs. `reduce`: seconds that the gradients take; hours at best and worst."""

    gpus: int
    batch: int
    iterations: int
    reduce: float
    best_hours: float
    worst_hours: float
    images_per_second: float


def reduce_seconds(setting: Setting, gpus: int) -> float:
    """Seconds of a hierarchical ring all-reduce of the gradients."""
    inside = min(gpus, setting.machine)
    machines = -(-gpus // setting.machine)
    over_links = 2 * (inside - 1) / inside * setting.gradients / setting.inside
    over_network = 2 * (machines - 1) / machines * setting.gradients / setting.between
    return over_links + over_network


def estimate(setting: Setting, gpus: int) -> Estimate:
    batch = gpus * setting.images
    iterations = round(setting.epochs * COCO_IMAGES / batch)
    reduce = reduce_seconds(setting, gpus)
    worst = setting.step + reduce
    return Estimate(
        gpus,
        batch,
        iterations,
        reduce,
        iterations * setting.step / 3600,
        iterations * worst / 3600,
        batch / worst,
    )


def table(setting: Setting) -> str:
    head = "| GPUs | batch | iterations | all-reduce, ms | hours | GPU hours | images / s |"
    lines = [head, "|---" * 7 + "|"]
    for gpus in GPUS:
        row = estimate(setting, gpus)
        hours = f"{row.best_hours:.2f} to {row.worst_hours:.2f}"
        gpu_hours = f"{gpus * row.best_hours:.0f} to {gpus * row.worst_hours:.0f}"
        lines.append(
            f"| {gpus} | {row.batch} | {row.iterations} | {row.reduce * 1000:.1f} | {hours} | "
            f"{gpu_hours} | {row.images_per_second:.0f} |"
        )
    return "\n".join(lines)


def learnt_parameters(config: str) -> int:
    model = build_model(load_config(config, ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu"]))
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-file", default=str(ROOT / "configs" / "fsn_R50.yaml"))
    parser.add_argument("--step", type=float, required=True, help="seconds of a step on one GPU")
    parser.add_argument("--images", type=int, default=2, help="per GPU and step (default 2)")
    parser.add_argument("--machine", type=int, default=8, help="GPUs of a machine (default 8)")
    parser.add_argument("--inside", type=float, default=200.0, help="GB/s between GPUs")
    parser.add_argument("--between", type=float, default=12.5, help="GB/s of a machine's network")
    parser.add_argument("--epochs", type=float, default=12.17, help="default: the 1x schedule")
    args = parser.parse_args()
    for name, value in vars(args).items():
        if name != "config_file" and not value > 0:
            parser.error(f"--{name} must be more than 0, got {value}")
    with one_line_errors():
        parameters = learnt_parameters(args.config_file)
    setting = Setting(
        args.step,
        args.images,
        BYTES_PER_VALUE * parameters,
        args.machine,
        args.inside * 1e9,
        args.between * 1e9,
        args.epochs,
    )
    print(f"{parameters:,} learnt parameters, {setting.gradients / 1e6:.0f} MB of gradients\n")
    print(table(setting))


if __name__ == "__main__":
    main()
