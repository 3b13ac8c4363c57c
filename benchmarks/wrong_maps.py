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
from torch.nn import functional as F

from fsn_d2.data import register_datasets, register_digits
from fsn_d2.engine import build_trained_model, evaluate, load_config, one_line_errors
from fsn_d2.layers import ShiftedConv2d
from fsn_d2.modeling import SelectiveROIPooler
from fsn_d2.modeling.merges import ConcatMerge

METRICS = ("AP", "AP50", "AP75")
EXAMPLE = """example, of a training that wrote to output/demo:
  python benchmarks/wrong_maps.py --config-file output/demo/config.yaml \\
      MODEL.WEIGHTS output/demo/model_final.pth"""


class Reading(NamedTuple):
    """Which map is read in the place of each; `silent`: none reaches the merge."""

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
    merge: ConcatMerge


def parts_of(model: nn.Module) -> Parts:
    """Raises ValueError for a model that lacks one of them."""
    banks = getattr(model.roi_heads, "box_banks", None)
    pooler = getattr(model.roi_heads, "box_pooler", None)
    sub_region = getattr(banks, "sub_region", None)
    aspect_ratio = getattr(banks, "aspect_ratio", None)
    merge = getattr(pooler, "merge", None)
    if (
        isinstance(sub_region, ShiftedConv2d)
        and isinstance(aspect_ratio, nn.Conv2d)
        and isinstance(pooler, SelectiveROIPooler)
        and isinstance(merge, ConcatMerge)
    ):
        return Parts(sub_region, aspect_ratio, pooler, merge)
    raise ValueError(
        "the config must have FSN box features (MODEL.ROI_HEADS.NAME FSNROIHeads) with both banks "
        "and MODEL.FSN.MERGE 'concat'"
    )


@torch.no_grad()
def reading(model: nn.Module, how: Reading) -> nn.Module:
    """A copy of the model that reads so."""
    model = copy.deepcopy(model)
    sub_region, aspect_ratio, _, merge = parts_of(model)
    _exchange(sub_region.conv, how.sub_regions)
    sub_region.origins = [sub_region.origins[b] for b in how.sub_regions]
    _exchange(aspect_ratio, how.ratios)
    if how.silent:
        merge.conv.weight[:, merge.conv.out_channels :] = 0  # the RoI feature's part stays
    return model


def _exchange(conv: nn.Conv2d, maps: Sequence[int]) -> None:
    for values in conv.parameters():
        values.copy_(values.unflatten(0, (len(maps), -1))[list(maps)].flatten(0, 1))


class AttentionShare:
    """What part of the refined RoI features comes of the attention, from now on.

    The norm of what the merge adds of the attention, over that of the refined feature.
    """

    def __init__(self, model: nn.Module) -> None:
        self._attention = self._refined = 0.0  # sums of squares
        parts = parts_of(model)
        parts.merge.conv.register_forward_hook(self._count_attention)
        parts.pooler.register_forward_hook(self._count_refined)

    @property
    def value(self) -> float:
        return math.sqrt(self._attention / self._refined) if self._refined else 0.0

    def _count_attention(self, conv: nn.Conv2d, inputs: tuple[Tensor], output: Tensor) -> None:
        roi, attention = inputs[0].tensor_split([conv.out_channels], dim=1)
        of_attention = conv.weight[:, roi.shape[1] :]
        self._attention += F.conv2d(attention, of_attention).square().sum().item()

    def _count_refined(self, pooler: nn.Module, inputs: tuple, output: Tensor) -> None:
        self._refined += output.square().sum().item()


def measure(cfg: CfgNode) -> dict[str, dict[str, float]]:
    """Row -> metrics."""
    model = build_trained_model(cfg)
    regions = len(parts_of(model).sub_region.origins)
    rows = readings_of(regions, len(cfg.MODEL.FSN.RATIOS))
    return {name: _metrics(cfg, reading(model, how)) for name, how in rows.items()}


def _metrics(cfg: CfgNode, model: nn.Module) -> dict[str, float]:
    share = AttentionShare(model)
    found = evaluate(cfg, model)["bbox"]
    return {**{metric: found[metric] for metric in METRICS}, "attention": share.value}


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
