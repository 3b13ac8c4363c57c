#!/usr/bin/env python
"""Measures what FSAF costs: joint inference beside the anchors alone, and its loss in training.

Both sides of a comparison take turns in one process. Weights are random; the scores are shifted so
that each branch has as many candidates above the threshold as asked for. The tables go to the
screen, everything to a JSON file:

  facts      machine, versions, commit, command line
  settings   of the scene
  rows       name, bound (what the ratio has to stay below), rounds, and
             seconds  label -> {median, q1, q3}
             ratio    {median, q1, q3}: the second label's time / the first one's
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from harness.detectors import draw_batch, inference, still_optimizer, training_step
from harness.machine import facts
from harness.timing import Contender, clock_of, ratio, spread, take_turns
from torch import Tensor

from fsn_d2.engine import load_config, one_line_errors
from fsn_d2.modeling.meta_arch import FSAF

ROOT = Path(__file__).resolve().parents[1]
BOUND = 0.10  # of the anchors' inference, and of a training step
EXAMPLE = """examples:
  python benchmarks/fsaf.py
  python benchmarks/fsaf.py --device cuda --height 800 --width 1333 --images 4
  python benchmarks/fsaf.py --quick"""


@dataclass(frozen=True)
class Scene:
    """What is measured on.

    Attributes:
        config: config file.
        device: "cpu" or "cuda".
        threads: CPU threads.
        height, width: of every image, pixels.
        images: per training step; inference takes one.
        instances: per image.
        candidates: scores above the threshold, per image and branch.
        rounds: of every comparison.
    """

    config: str
    device: str
    threads: int
    height: int
    width: int
    images: int
    instances: int
    candidates: int
    rounds: int


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", default=str(ROOT / "configs" / "fsaf_R50_joint.yaml"))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--height", type=int, default=480, help="pixels (default 480)")
    parser.add_argument("--width", type=int, default=640, help="pixels (default 640)")
    parser.add_argument("--images", type=int, default=1, help="per training step (default 1)")
    parser.add_argument("--instances", type=int, default=100, help="per image (default 100)")
    parser.add_argument("--candidates", type=int, default=1000, help="per branch (default 1000)")
    parser.add_argument("--rounds", type=int, default=15, help="at least 2 (default 15)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: checks that it runs")
    parser.add_argument("--out", type=Path, default=Path("output/benchmark_fsaf.json"))
    return parser.parse_args()


def scene_of(args: argparse.Namespace) -> Scene:
    """Raises ValueError for arguments that this machine cannot serve."""
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no GPU; leave it out to measure the CPU.")
    for name in ("threads", "height", "width", "images", "instances", "candidates"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(args, name)}.")
    if args.rounds < 2:
        raise ValueError(f"--rounds must be at least 2, got {args.rounds}.")
    values = {name: getattr(args, name) for name in Scene.__annotations__ if name != "config"}
    if args.quick:
        values |= {"height": 64, "width": 96, "instances": 5, "candidates": 50, "rounds": 2}
    return Scene(config=args.config_file, **values)


# ---------------------------------------------------------------------------- models and data


def build(scene: Scene, mode: str) -> FSAF:
    """The same random weights for every mode, as far as the modes share them.

    Raises:
        FileNotFoundError: there is no such config file.
        ValueError: its model is another.
    """
    opts = ["MODEL.WEIGHTS", "", "MODEL.DEVICE", scene.device, "MODEL.FSAF.MODE", mode]
    cfg: CfgNode = load_config(scene.config, opts)
    torch.manual_seed(0)
    model = build_model(cfg)
    if not isinstance(model, FSAF):
        raise ValueError(f"--config-file {scene.config}: its model must be an FSAF, as fsaf_*'s")
    return model


@torch.no_grad()
def shift_scores(model: FSAF, sample: dict, candidates: int) -> None:
    """Moves each branch's class bias so that `candidates` scores of the sample are above the
    threshold.
    """
    logits: dict[torch.nn.Conv2d, list[Tensor]] = {}
    layers = [layer for name, layer in model.named_modules() if name.endswith("cls_score")]
    hooks = [
        layer.register_forward_hook(lambda it, _, out: logits.setdefault(it, []).append(out))
        for layer in layers
    ]
    model.eval()([sample])
    for hook in hooks:
        hook.remove()
    threshold = math.log(model.test_score_thresh / (1 - model.test_score_thresh))
    for layer, levels in logits.items():
        scores = torch.cat([level.flatten() for level in levels])
        assert layer.bias is not None
        layer.bias += threshold - scores.topk(min(candidates, len(scores))).values[-1]


# ---------------------------------------------------------------------------- comparisons


def compare_inference(scene: Scene) -> tuple[str, dict[str, Callable[[], Any]]]:
    sample = draw_batch(1, scene.height, scene.width, scene.instances)[0]
    calls: dict[str, Callable[[], Any]] = {}
    for mode in ("anchors", "joint"):
        model = build(scene, mode).eval()
        shift_scores(model, sample, scene.candidates)
        calls[mode] = inference(model, [sample])
    return "inference: joint beside the anchors alone", calls


def training(scene: Scene, mode: str) -> tuple[str, dict[str, Callable[[], Any]]]:
    """A whole step, and what of it is the branch's assignment, selection and losses."""
    batch = draw_batch(scene.images, scene.height, scene.width, scene.instances)
    model = build(scene, mode).train()
    assert model.branch is not None
    branch, kept = model.branch, []
    hook = branch.register_forward_hook(lambda module, inputs, out: kept.append(out))
    with EventStorage(), torch.no_grad():
        model(batch)
    hook.remove()
    instances = [sample["instances"].to(model.device) for sample in batch]
    leaves = kept[0]._replace(
        logits=[level.detach().requires_grad_() for level in kept[0].logits],
        distances=[level.detach().requires_grad_() for level in kept[0].distances],
    )

    step = training_step(model, still_optimizer(model), batch)

    def losses() -> None:
        with EventStorage():
            sum(branch.losses(leaves, instances).values()).backward()

    return f"training, {mode}: the branch's loss and assignment", {"step": step, "loss": losses}


def measure(scene: Scene, name: str, calls: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    for call in calls.values():
        for _ in range(2):
            call()
    contenders = {label: Contender(call, scene.threads) for label, call in calls.items()}
    rounds = (scene.rounds, scene.rounds)
    times = take_turns(contenders, clock_of(scene.device), 0.0, rounds)
    first, second = times
    return {
        "name": name,
        "bound": 1 + BOUND if first == "anchors" else BOUND,
        "rounds": scene.rounds,
        "seconds": {label: spread(values)._asdict() for label, values in times.items()},
        "ratio": ratio(times[second], times[first])._asdict(),
    }


def lines_of(row: dict[str, Any]) -> list[str]:
    def quartiles(values: dict[str, float]) -> str:
        return f"{values['median']:.4f} ({values['q1']:.4f}-{values['q3']:.4f})"

    lines = [f"{row['name']}   ({row['rounds']} rounds; median and quartiles)"]
    lines += [f"  {label:8} {quartiles(values)} s" for label, values in row["seconds"].items()]
    verdict = "holds" if row["ratio"]["median"] <= row["bound"] else "IS BROKEN"
    lines.append(f"  ratio    {quartiles(row['ratio'])}; the bound {row['bound']:.2f} {verdict}")
    return lines


def main() -> None:
    args = parse_args()
    with one_line_errors():
        scene = scene_of(args)
        build(scene, "joint")
    torch.set_num_threads(scene.threads)
    about = facts(scene.device, scene.threads)
    print(f"{about['gpu'] or about['cpu']}, threads {scene.threads}; torch {about['torch']}")
    rows = []
    for comparison in (
        lambda: compare_inference(scene),
        lambda: training(scene, "anchor_free"),
        lambda: training(scene, "joint"),
    ):
        rows.append(measure(scene, *comparison()))
        print("\n".join(lines_of(rows[-1])), flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    report = {"facts": about, "settings": asdict(scene), "rows": rows}
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{args.out} written")


if __name__ == "__main__":
    main()
