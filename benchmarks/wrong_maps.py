#!/usr/bin/env python
"""Measures what trained FSN weights lose when bins read other maps than they learnt to read.

The maps of a bank change places, with the directions in which they look, and the weights are
evaluated again on DATASETS.TEST. What that costs shows how far the detector relies on the
selection. It is not what the selection gains: a detector that is trained without banks finds other
ways (benchmarks/compare.py). Beside AP stands how large a part of the refined RoI feature comes of
the attention at all. The table goes to the screen, everything to a JSON file:

  facts     machine, versions, commit, command line
  settings  what of the config is not Detectron2's default
  rows      what is read -> {AP, AP50, AP75, attention: 0..1 of the feature}
"""

from __future__ import annotations

import argparse
import copy
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from comparison.report import table
from comparison.results import write_json
from comparison.settings import settings_of_config
from detectron2.config import CfgNode
from harness.machine import facts
from torch import Tensor, nn

from fsn_d2.data import register_datasets, register_digits
from fsn_d2.engine import build_trained_model, evaluate, load_config, one_line_errors
from fsn_d2.layers import ShiftedConv2d
from fsn_d2.modeling import SelectiveROIPooler
from fsn_d2.modeling.merges import Merge

METRICS = ("AP", "AP50", "AP75")
EXAMPLE = """example, of a training that wrote to output/demo:
  python benchmarks/wrong_maps.py --config-file output/demo/config.yaml \\
      MODEL.WEIGHTS output/demo/model_final.pth"""


class Reading(NamedTuple):
    """Which map is read in the place of each; `silent`: the attention changes nothing."""

    sub_regions: Sequence[int]
    ratios: Sequence[int]
    silent: bool = False


def readings_of(regions: int, ratios: int) -> dict[str, Reading]:
    """The rows.

    Args:
        regions, ratios: maps of each bank, in the order of space and of height / width; odd, so
            that one is in the middle.
    """
    own_region, own_ratio = range(regions), range(ratios)
    opposite_region, opposite_ratio = own_region[::-1], own_ratio[::-1]
    return {
        "every bin its own maps, as learnt": Reading(own_region, own_ratio),
        "the opposite sub-region's": Reading(opposite_region, own_ratio),
        "the middle sub-region's": Reading([regions // 2] * regions, own_ratio),
        "the opposite aspect ratio's": Reading(own_region, opposite_ratio),
        "the middle aspect ratio's": Reading(own_region, [ratios // 2] * ratios),
        "both opposite": Reading(opposite_region, opposite_ratio),
        "both in the middle": Reading([regions // 2] * regions, [ratios // 2] * ratios),
        "nothing of the banks": Reading(own_region, own_ratio, silent=True),
    }


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, help="with which the weights were trained")
    parser.add_argument("--out", type=Path, default=Path("output/wrong_maps.json"))
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="MODEL.WEIGHTS and other keys")
    return parser.parse_args()


class Parts(NamedTuple):
    """What of a model is exchanged or watched here."""

    sub_region: ShiftedConv2d
    aspect_ratio: nn.Conv2d
    pooler: SelectiveROIPooler


def parts_of(model: nn.Module) -> Parts:
    """Raises ValueError for a model that lacks one of them."""
    banks = getattr(model.roi_heads, "box_banks", None)
    pooler = getattr(model.roi_heads, "box_pooler", None)
    sub_region = getattr(banks, "sub_region", None)
    aspect_ratio = getattr(banks, "aspect_ratio", None)
    if (
        isinstance(sub_region, ShiftedConv2d)
        and isinstance(aspect_ratio, nn.Conv2d)
        and isinstance(pooler, SelectiveROIPooler)
    ):
        return Parts(sub_region, aspect_ratio, pooler)
    raise ValueError(
        "the config must have FSN box features (MODEL.ROI_HEADS.NAME FSNROIHeads) with both banks"
    )


class WatchedMerge(Merge):
    """Another merge, and what part of the refined RoI features comes of the attention.

    Attributes:
        share: the norm of the difference that the attention makes to the refined features, over
            that of the features, of all that were refined.
    """

    def __init__(self, merge: Merge, *, silent: bool) -> None:
        """
        Args:
            merge: what refines.
            silent: whether it is given the attention that changes nothing.
        """
        super().__init__()
        self.merge = merge
        self.silent = silent
        self._difference = self._refined = 0.0  # sums of squares

    @property
    def share(self) -> float:
        return math.sqrt(self._difference / self._refined) if self._refined else 0.0

    def forward(self, roi: Tensor, attention: list[Tensor]) -> Tensor:
        # The attentions count by their sum, or, to "concat", by how far they are from zero.
        neutral = [torch.full_like(attention[0], self.merge.start or 0.0)]
        neutral += [torch.zeros_like(other) for other in attention[1:]]
        without = self.merge(roi, neutral)
        refined = without if self.silent else self.merge(roi, attention)
        self._difference += (refined - without).square().sum().item()
        self._refined += refined.square().sum().item()
        return refined

    def finish(self, pooled: Tensor) -> Tensor:
        roi, *attention = pooled.chunk(3, dim=1)  # of two banks
        return self(roi, attention)


@torch.no_grad()
def reading(model: nn.Module, how: Reading) -> nn.Module:
    """A copy of the model that reads so, its merge a `WatchedMerge`."""
    model = copy.deepcopy(model)
    sub_region, aspect_ratio, pooler = parts_of(model)
    _exchange(sub_region.conv, how.sub_regions)
    sub_region.origins = [sub_region.origins[b] for b in how.sub_regions]
    _exchange(aspect_ratio, how.ratios)
    pooler.merge = WatchedMerge(pooler.merge, silent=how.silent)
    return model


def _exchange(conv: nn.Conv2d, maps: Sequence[int]) -> None:
    for values in conv.parameters():
        values.copy_(values.unflatten(0, (len(maps), -1))[list(maps)].flatten(0, 1))


def measure(cfg: CfgNode) -> dict[str, dict[str, float]]:
    """Row -> metrics, and the attention's share."""
    model = build_trained_model(cfg)
    regions = len(parts_of(model).sub_region.origins)
    rows = readings_of(regions, len(cfg.MODEL.FSN.RATIOS))
    return {name: _metrics(cfg, reading(model, how)) for name, how in rows.items()}


def _metrics(cfg: CfgNode, model: nn.Module) -> dict[str, float]:
    found = evaluate(cfg, model)["bbox"]
    share = parts_of(model).pooler.merge.share
    return {**{metric: found[metric] for metric in METRICS}, "attention": share}


def report(rows: Mapping[str, Mapping[str, float]]) -> str:
    cells = [
        [name, *(f"{row[metric]:.1f}" for metric in METRICS), f"{row['attention']:.1%}"]
        for name, row in rows.items()
    ]
    return table(["bins read", *METRICS, "attention in the feature"], cells)


def main() -> None:
    args = parse_args()
    with one_line_errors(), tempfile.TemporaryDirectory() as folder:
        cfg = load_config(args.config_file, [*args.opts, "OUTPUT_DIR", folder])
        register_digits()
        register_datasets(cfg, eval_only=True)
        about = {"facts": facts(torch.device(cfg.MODEL.DEVICE).type, torch.get_num_threads())}
        rows = measure(cfg)
    write_json(args.out, {**about, "settings": settings_of_config(cfg), "rows": rows})
    print(f"{report(rows)}\n{args.out} written")


if __name__ == "__main__":
    main()
