#!/usr/bin/env python
"""Measures what FSN saves from end to end: Faster R-CNN and FSN take turns in one process.

Faster R-CNN is there twice: as Detectron2 has it, and with this project's pooling op, so that what
the op saves can be told from what FSN saves. So is FSN: with banks computed from the reduced
feature, the default, and from the pyramid's.

Inference, a training step, and the RoI stage alone, which is everything between the pyramid and the
predictions. Two parts of it are listed: what FSN does before pooling, and from pooling to the
merge, where its banks are convolved if that was left until then. Weights are random, so what the
region proposal network finds is replaced, when it has done its work, by the same boxes everywhere.
The tables go to the screen, everything to a JSON file:

  facts       machine, versions, commit, command line
  settings    of the scene
  parameters  of the RoI stage and of what follows the pooling, per model
  rows        name, rounds, memory (bytes at once beyond those before, per model), and
              seconds  model or part -> {median, q1, q3}
              ratios   model -> {median, q1, q3}: its time / FSN's
  scaling     pooling to merge alone: model, proposals, grid and seconds {median, q1, q3}
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.modeling import GeneralizedRCNN, build_model
from detectron2.structures import Boxes, ImageList, Instances
from harness.detectors import draw_batch, inference, still_optimizer, training_step
from harness.machine import facts
from harness.memory import memory_of
from harness.proposals import draw_proposals
from harness.timing import Contender, clock_of, ratio, spread, take_turns
from torch import Tensor, nn

from fsn_d2.engine import load_config

ROOT = Path(__file__).resolve().parents[1]
MODELS: dict[str, tuple[str, list[str]]] = {  # config and keys of its own
    "faster_rcnn": ("faster_rcnn_R50.yaml", []),
    "faster_rcnn_fast": (
        "faster_rcnn_R50.yaml",
        ["MODEL.ROI_HEADS.NAME", "FastPoolingROIHeads"],
    ),
    "fsn": ("fsn_R50.yaml", []),
    "fsn_feature": ("fsn_R50.yaml", ["MODEL.FSN.BANK_INPUT", "feature"]),
}
FSN = [name for name in MODELS if name.startswith("fsn")]
OTHERS = [name for name in MODELS if name != "fsn"]
MULTIPLES = (0.5, 1, 2, 4)  # of the proposals
GRIDS = (1, 3, 5)
MIB = 2**20
EXAMPLE = """examples:
  python benchmarks/model.py
  python benchmarks/model.py --height 800 --width 1333
  python benchmarks/model.py --device cuda --images 2 MODEL.FSN.CHANNELS 64
  python benchmarks/model.py --quick"""


@dataclass(frozen=True)
class Scene:
    """What is measured on.

    Attributes:
        device: "cpu" or "cuda".
        threads: CPU threads.
        height, width: of every image, pixels.
        images: per training step; inference takes one.
        proposals: per image in inference.
        rounds: of every comparison.
        opts: config keys and values for every model.
    """

    device: str
    threads: int
    height: int
    width: int
    images: int
    proposals: int
    rounds: int
    opts: list[str]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--height", type=int, default=480, help="pixels (default 480)")
    parser.add_argument("--width", type=int, default=640, help="pixels (default 640)")
    parser.add_argument("--images", type=int, default=1, help="per training step (default 1)")
    parser.add_argument("--proposals", type=int, default=1000, help="per image (default 1000)")
    parser.add_argument("--rounds", type=int, default=9, help="at least 2 (default 9)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: checks that it runs")
    parser.add_argument("--out", type=Path, default=Path("output/benchmark_model.json"))
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, help="config keys and values for every model"
    )
    return parser.parse_args()


def scene_of(args: argparse.Namespace) -> Scene:
    """Raises ValueError for arguments that this machine cannot serve."""
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no GPU; leave it out to measure the CPU.")
    for name in ("threads", "height", "width", "images", "proposals"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(args, name)}.")
    if args.rounds < 2:
        raise ValueError(f"--rounds must be at least 2, got {args.rounds}.")
    values = {name: getattr(args, name) for name in Scene.__annotations__}
    if args.quick:
        values |= {"height": 64, "width": 96, "proposals": 20, "rounds": 2}
    return Scene(**values)


def build(scene: Scene, name: str, *opts: str) -> GeneralizedRCNN:
    """One of `MODELS` whose heads are given `scene.proposals` boxes per image, in training too."""
    fixed = ["MODEL.WEIGHTS", "", "MODEL.DEVICE", scene.device]
    config, own = MODELS[name]
    path = str(ROOT / "configs" / config)
    torch.manual_seed(0)
    model = build_model(load_config(path, [*fixed, *own, *scene.opts, *opts]))
    given = propose(scene, scene.proposals)

    def replace(_network: nn.Module, _inputs: Any, output: tuple[list, dict]) -> tuple[list, dict]:
        proposals, losses = output
        return [given] * len(proposals), losses

    model.proposal_generator.register_forward_hook(replace)
    return model


def propose(scene: Scene, count: int) -> Instances:
    """Proposals for one image."""
    proposal = Instances((scene.height, scene.width))
    boxes = draw_proposals(count, scene.height, scene.width)
    proposal.proposal_boxes = Boxes(boxes.to(scene.device))
    proposal.objectness_logits = torch.zeros(count, device=scene.device)
    return proposal


# ---------------------------------------------------------------------------- the RoI stage


class Stage:
    """A detector's RoI heads on a given pyramid and given proposals."""

    def __init__(self, model: GeneralizedRCNN, scene: Scene, proposals: int) -> None:
        self.heads = model.roi_heads
        size = (scene.height, scene.width)
        rng = torch.Generator().manual_seed(0)
        image = torch.rand(1, 3, *size, generator=rng).to(scene.device)
        self.images = ImageList.from_tensors([image[0]], model.backbone.size_divisibility)
        with torch.no_grad():
            self.features = model.backbone(self.images.tensor)
        self.proposals = [propose(scene, proposals)]

    def whole(self) -> Any:
        """From the pyramid to detections."""
        with torch.no_grad():
            return self.heads(self.images, self.features, self.proposals)

    def banks(self) -> Any:
        """What FSN does before pooling, alone."""
        with torch.no_grad():
            chosen = {name: self.features[name] for name in self.heads.box_in_features}
            return self.heads.box_banks(chosen, self.images.image_sizes)

    def pooling(self) -> Callable[[], Tensor]:
        """From pooling to the merge, alone."""
        maps = self.banks() if hasattr(self.heads, "box_banks") else self.features
        levels = [maps[name] for name in self.heads.box_in_features]
        boxes = [p.proposal_boxes for p in self.proposals]

        def pool() -> Tensor:
            with torch.no_grad():
                return self.heads.box_pooler(levels, boxes)

        return pool


def parameters_of(model: GeneralizedRCNN) -> dict[str, int]:
    """Of the whole RoI stage, and of what follows the pooling."""
    heads = model.roi_heads
    behind = [heads.box_head, heads.box_predictor]
    return {
        "stage": sum(p.numel() for p in heads.parameters()),
        "behind pooling": sum(p.numel() for part in behind for p in part.parameters()),
    }


# ---------------------------------------------------------------------------- comparisons


def compare(scene: Scene, name: str, calls: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    """Times the calls in turns; those of `MODELS` are compared with FSN's."""
    for call in calls.values():
        call()
    contenders = {label: Contender(call, scene.threads) for label, call in calls.items()}
    times = take_turns(contenders, clock_of(scene.device), 0.0, (scene.rounds, scene.rounds))
    peaks = {label: memory_of(call, scene.device).peak for label, call in calls.items()}
    return {
        "name": name,
        "rounds": scene.rounds,
        "seconds": {label: spread(values)._asdict() for label, values in times.items()},
        "ratios": {name: ratio(times[name], times["fsn"])._asdict() for name in OTHERS},
        "memory": peaks,
    }


def compare_models(scene: Scene, models: dict[str, GeneralizedRCNN]) -> list[dict[str, Any]]:
    batch = draw_batch(scene.images, scene.height, scene.width, instances=20)
    for model in models.values():
        model.eval()
    detect = {name: inference(model, batch[:1]) for name, model in models.items()}
    rows = [compare(scene, "inference", detect)]
    stages = {name: Stage(model, scene, scene.proposals) for name, model in models.items()}
    whole = {name: stage.whole for name, stage in stages.items()}
    parts = {f"{name}: pooling": stages[name].pooling() for name in MODELS}
    parts |= {f"{name}: before pooling": stages[name].banks for name in FSN}
    rows.append(compare(scene, "RoI stage", {**whole, **parts}))
    for model in models.values():
        model.train()
    steps = {
        name: training_step(model, still_optimizer(model), batch) for name, model in models.items()
    }
    return [*rows, compare(scene, "training step", steps)]


def scaling(scene: Scene) -> list[dict[str, Any]]:
    """Pooling to merge by the number of proposals, and by the number of sub-regions."""
    calls: dict[tuple[str, int, int], Callable[[], Any]] = {}
    for name in FSN:
        for grid in GRIDS:
            model = build(scene, name, "MODEL.FSN.GRID", str(grid)).eval()
            for multiple in MULTIPLES if grid == 3 else (1,):
                count = max(int(multiple * scene.proposals), 1)
                calls[name, count, grid] = Stage(model, scene, count).pooling()
    for call in calls.values():
        call()
    contenders = {str(key): Contender(call, scene.threads) for key, call in calls.items()}
    rounds = 3 * scene.rounds
    times = take_turns(contenders, clock_of(scene.device), 0.0, (rounds, rounds))
    return [
        {
            "model": name,
            "proposals": count,
            "grid": grid,
            "seconds": spread(times[str((name, count, grid))])._asdict(),
        }
        for name, count, grid in calls
    ]


# ---------------------------------------------------------------------------- report


def show(values: dict[str, float]) -> str:
    return f"{values['median']:.4f} ({values['q1']:.4f}-{values['q3']:.4f})"


def lines_of(row: dict[str, Any]) -> list[str]:
    lines = [f"{row['name']}   ({row['rounds']} rounds; median and quartiles)"]
    for label, seconds in row["seconds"].items():
        lines.append(f"  {label:25} {show(seconds)} s   {row['memory'][label] / MIB:8.1f} MiB")
    return lines + [f"  {f'{name} / fsn':25} {show(row['ratios'][name])}" for name in OTHERS]


def scaling_lines(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["pooling to merge alone"]
    for row in rows:
        count, grid, seconds = row["proposals"], row["grid"], row["seconds"]["median"]
        each = seconds / count * 1e6
        lines.append(
            f"  {row['model']:11} {grid} x {grid} sub-regions, {count:5} proposals: "
            f"{seconds * 1e3:.2f} ms, {each:.2f} us each"
        )
    return lines


def main() -> None:
    args = parse_args()
    try:
        scene = scene_of(args)
        models = {name: build(scene, name) for name in MODELS}
    except ValueError as error:
        sys.exit(f"error: {error}")
    torch.set_num_threads(scene.threads)
    about = facts(scene.device, scene.threads)
    print(f"{about['gpu'] or about['cpu']}, threads {scene.threads}; torch {about['torch']}")
    parameters = {name: parameters_of(model) for name, model in models.items()}
    for name, counts in parameters.items():
        print(f"parameters of {name}: " + ", ".join(f"{k} {v:,}" for k, v in counts.items()))
    rows = compare_models(scene, models)
    by_size = scaling(scene)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    report = {
        "facts": about,
        "settings": asdict(scene),
        "parameters": parameters,
        "rows": rows,
        "scaling": by_size,
    }
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    print("\n".join([line for row in rows for line in lines_of(row)] + scaling_lines(by_size)))
    print(f"{args.out} written")


if __name__ == "__main__":
    main()
