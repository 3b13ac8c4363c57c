"""The work that is measured, ours and each peer's, as functions of the same tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fsn_d2.layers import Source, merged_roi_align, selective_roi_align, selective_roi_pool

from . import peers
from .scene import RATIOS, Setting, conv_output, in_layout, proposals, ratio_index, sub_region_index

OURS = "ours"
GRID = 3
MERGES = ("multiply", "sum", "multiply_relu", "concat")
TOLERANCE = 1e-4  # of the largest value (or of 1), and of a gradient's norm
# Of a gradient's norm behind a ReLU: a few of millions of values round to the other side of its
# corner, and their terms come or go.
KINKED_TOLERANCE = 5e-3


def _as_it_is(x: Tensor) -> Tensor:
    return x


@dataclass
class Task:
    """One contender's work.

    Attributes:
        forward: from the inputs to Tensor[K, C, PH, PW].
        inputs: what it is differentiated by.
        as_ours: brings a gradient into the order of our inputs'.
    """

    forward: Callable[..., Tensor]
    inputs: Sequence[Tensor]
    as_ours: Callable[[Tensor], Tensor] = _as_it_is
    grad_output: Tensor | None = None

    def run_forward(self) -> Tensor:
        with torch.no_grad():
            return self.forward(*self.inputs)

    def run_both(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Forward and backward: the output and the gradients."""
        output = self.forward(*self.inputs)
        if self.grad_output is None:
            self.grad_output = torch.randn(
                output.shape, generator=torch.Generator().manual_seed(9)
            ).to(output.device)
        return output.detach(), torch.autograd.grad(output, self.inputs, self.grad_output)

    def call(self, backward: bool) -> Callable[[], Any]:
        return self.run_both if backward else self.run_forward


@dataclass
class Comparison:
    """Tasks of the same work, ours first; they give the same result.

    Attributes:
        tasks: by name.
        shared: tensors beside the inputs that the work reads.
        product: whether the backward needs the inputs' values.
        kinked: whether a ReLU follows the pooling.
        unlike: tasks that do as much but round otherwise, so their results are not compared.
    """

    tasks: dict[str, Task]
    shared: Sequence[Tensor] = field(default_factory=list)
    product: bool = False
    kinked: bool = False
    unlike: frozenset[str] = frozenset()

    @property
    def ours(self) -> Task:
        return self.tasks[OURS]

    def check(self, backward: bool) -> None:
        """Runs every task once.

        Raises:
            RuntimeError: a peer's results differ from ours.
        """
        error_of = _error_of_gradient if backward else _error_of_output
        allowed = KINKED_TOLERANCE if backward and self.kinked else TOLERANCE
        ours = _results(self.ours, backward)
        for name in self.tasks.keys() - self.unlike:
            task = self.tasks[name]
            for mine, theirs in zip(ours, _results(task, backward), strict=True):
                error = error_of(mine, theirs)
                if not error <= allowed:
                    raise RuntimeError(
                        f"{name} differs from ours by {error:.2g}, allowed: {allowed}"
                    )

    def moved_bytes(self, backward: bool) -> int:
        """The least traffic with memory: everything read is read once, results are written once."""
        inputs = sum(x.nbytes for x in self.ours.inputs)
        shared = sum(x.nbytes for x in self.shared)
        result = self.ours.run_forward().nbytes
        forward = inputs + shared + result
        again = inputs if self.product else 0
        return forward + (again + shared + result + inputs if backward else 0)


def _error_of_output(mine: Tensor, theirs: Tensor) -> float:
    return ((mine - theirs).abs().max() / mine.abs().max().clamp(min=1)).item()


def _error_of_gradient(mine: Tensor, theirs: Tensor) -> float:
    return ((mine - theirs).norm() / mine.norm().clamp(min=1)).item()


def _results(task: Task, backward: bool) -> list[Tensor]:
    if not backward:
        return [task.run_forward()]
    _, gradients = task.run_both()
    return [task.as_ours(grad) for grad in gradients]


def _leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_()


def _op(x: Tensor, *, rois: Tensor, index: Tensor, maps: int, setting: Setting) -> Tensor:
    return selective_roi_align(
        x.unflatten(1, (maps, -1)),
        rois,
        index,
        setting.output_size,
        setting.scale,
        setting.sampling_ratio,
    )


def _pool(
    x: Tensor, *, rois: Tensor, index: Tensor, maps: int, mode: str, setting: Setting
) -> Tensor:
    return selective_roi_pool(
        x.unflatten(1, (maps, -1)), rois, index, setting.output_size, setting.scale, mode
    )


def _bag(x: Tensor, *, rois: Tensor, index: Tensor, maps: int, setting: Setting) -> Tensor:
    return peers.Bags(rois, setting).pool(x, index, maps).contiguous()


def _compare(
    setting: Setting, rois: Tensor, index: Tensor, maps: int, theirs: dict[str, Callable[..., Any]]
) -> Comparison:
    x = _leaf(conv_output(setting, maps, seed=1))
    bank: dict[str, Any] = {"rois": rois, "index": index, "maps": maps, "setting": setting}
    tasks = {OURS: Task(partial(_op, **bank), [x])}
    tasks |= {name: Task(forward, [x]) for name, forward in theirs.items()}
    if setting.sampling_ratio > 0:
        tasks["embedding_bag"] = Task(partial(_bag, **bank), [x])
    return Comparison(tasks, [rois, index])


def plain(setting: Setting) -> Comparison:
    """RoIAlign of one map."""
    rois = proposals(setting)
    index = torch.zeros(1, 1, 1, dtype=torch.int64, device=setting.device)
    align = partial(peers.plain, rois=rois, setting=setting)
    return _compare(setting, rois, index, 1, {"torchvision roi_align": align})


def position_sensitive(setting: Setting) -> Comparison:
    """Every bin from a map of its own. The peer gets its channels in its own order for nothing."""
    rois, maps = proposals(setting), setting.bins**2
    comparison = _compare(setting, rois, sub_region_index(setting, setting.bins), maps, {})
    x = in_layout(peers.class_major(comparison.ours.inputs[0].detach(), maps), setting)
    align = partial(peers.position_sensitive, rois=rois, setting=setting)
    back = partial(peers.bank_major, maps=maps)
    comparison.tasks["torchvision ps_roi_align"] = Task(align, [_leaf(x)], back)
    return comparison


def max_pooling(setting: Setting) -> Comparison:
    """RoI max pooling of one map."""
    rois = proposals(setting)
    index = torch.zeros(1, 1, 1, dtype=torch.int64, device=setting.device)
    x = _leaf(conv_output(setting, 1, seed=1))
    ours = partial(_pool, rois=rois, index=index, maps=1, mode="max", setting=setting)
    theirs = partial(peers.max_pooling, rois=rois, setting=setting)
    tasks = {OURS: Task(ours, [x]), "torchvision roi_pool": Task(theirs, [x])}
    return Comparison(tasks, [rois, index], product=True)


def average_pooling(setting: Setting) -> Comparison:
    """R-FCN's pooling: the average of every bin from a map of its own."""
    rois, maps = proposals(setting), setting.bins**2
    index = sub_region_index(setting, setting.bins)
    x = _leaf(conv_output(setting, maps, seed=1))
    y = _leaf(in_layout(peers.class_major(x.detach(), maps), setting))
    ours = partial(_pool, rois=rois, index=index, maps=maps, mode="avg", setting=setting)
    theirs = partial(peers.position_sensitive_average, rois=rois, setting=setting)
    peer = "torchvision ps_roi_pool"
    tasks = {OURS: Task(ours, [x]), peer: Task(theirs, [y])}
    return Comparison(tasks, [rois, index], unlike=frozenset({peer}))


def sub_region_bank(setting: Setting, grid: int = GRID, naive: bool = True) -> Comparison:
    """A bank of grid * grid maps, read by the bin's place in its RoI."""
    rois, index, maps = proposals(setting), sub_region_index(setting, grid), grid * grid
    theirs: dict[str, Callable[..., Any]] = {
        "RoIAlign per block": partial(
            peers.blocks_sub_region, rois=rois, grid=grid, setting=setting
        ),
    }
    if naive:
        theirs["naive gather"] = partial(
            peers.naive, rois=rois, index=index, maps=maps, setting=setting
        )
    return _compare(setting, rois, index, maps, theirs)


def ratio_bank(setting: Setting) -> Comparison:
    """A bank of a map per aspect ratio, read by the RoI's shape."""
    rois, maps = proposals(setting), len(RATIOS)
    index = ratio_index(rois)
    bank: dict[str, Any] = {"rois": rois, "index": index, "maps": maps, "setting": setting}
    theirs: dict[str, Callable[..., Any]] = {
        "RoIAlign per ratio": partial(peers.groups_ratio, **bank),
        "naive gather": partial(peers.naive, **bank),
    }
    return _compare(setting, rois, index, maps, theirs)


@dataclass
class Stage:
    """FSN's whole RoI stage: the RoI feature, both banks, and their merge.

    Every way of it is a function of the three convolutions' outputs and, for "concat", the weight
    and bias of the merge's 1x1 convolution.
    """

    setting: Setting
    merge: str

    def __post_init__(self) -> None:
        self.rois = proposals(self.setting)
        self.only = torch.zeros(1, 1, 1, dtype=torch.int64, device=self.setting.device)
        self.regions = sub_region_index(self.setting, GRID)
        self.ratios = ratio_index(self.rois)

    def inputs(self) -> list[Tensor]:
        maps = (1, GRID * GRID, len(RATIOS))
        banks = [conv_output(self.setting, count, seed) for seed, count in enumerate(maps)]
        return [_leaf(x) for x in banks + self._convolution()]

    def _convolution(self) -> list[Tensor]:
        if self.merge != "concat":
            return []
        channels, generator = self.setting.channels, torch.Generator().manual_seed(8)
        weight = torch.randn(channels, 3 * channels, 1, 1, generator=generator) * 0.01
        bias = torch.zeros(channels)
        return [x.to(self.setting.device) for x in (weight, bias)]

    def ours(self, feature: Tensor, sub_region: Tensor, ratio: Tensor, *conv: Tensor) -> Tensor:
        sources = [
            Source([feature.unflatten(1, (1, -1))], self.only),
            Source([sub_region.unflatten(1, (GRID * GRID, -1))], self.regions),
            Source([ratio.unflatten(1, (len(RATIOS), -1))], self.ratios),
        ]
        merged = merged_roi_align(
            sources,
            self.rois,
            None,
            self.setting.output_size,
            [self.setting.scale],
            self.setting.sampling_ratio,
            "stack" if self.merge == "concat" else self.merge,
        )
        return self._convolve(merged, *conv) if self.merge == "concat" else merged

    def _convolve(self, stacked: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        # Every contender hands over the same layout: none is spared a copy that another makes.
        merged = stacked[:, : self.setting.channels] + F.conv2d(F.relu(stacked), weight, bias)
        return merged.contiguous()

    def _merged(self, parts: list[Tensor], conv: Sequence[Tensor]) -> Tensor:
        """The merge of what stock ops pooled, Tensor[K, C, PH, PW] each."""
        if self.merge == "concat":
            return self._convolve(torch.cat(parts, dim=1), *conv)
        return self._with_attention(parts[0], parts[1] + parts[2])

    def _with_attention(self, roi: Tensor, attention: Tensor) -> Tensor:
        if self.merge == "sum":
            return roi + attention
        return roi * (attention.relu() if self.merge == "multiply_relu" else attention)

    def blocks(self, feature: Tensor, sub_region: Tensor, ratio: Tensor, *conv: Tensor) -> Tensor:
        rois, setting = self.rois, self.setting
        parts = [
            peers.plain(feature, rois, setting),
            peers.blocks_sub_region(sub_region, rois, GRID, setting),
            peers.groups_ratio(ratio, rois, self.ratios, len(RATIOS), setting),
        ]
        return self._merged(parts, conv)

    def summed(self, feature: Tensor, sub_region: Tensor, ratio: Tensor) -> Tensor:
        rois, setting = self.rois, self.setting
        if self.merge == "sum":
            ratio = ratio + feature.repeat(1, len(RATIOS), 1, 1)
            return peers.summed_maps(sub_region, ratio, rois, self.ratios, GRID, setting)
        attention = peers.summed_maps(sub_region, ratio, rois, self.ratios, GRID, setting)
        return self._with_attention(peers.plain(feature, rois, setting), attention)

    def bags(self, feature: Tensor, sub_region: Tensor, ratio: Tensor, *conv: Tensor) -> Tensor:
        bags = peers.Bags(self.rois, self.setting)
        parts = [
            bags.pool(feature, self.only, 1),
            bags.pool(sub_region, self.regions, GRID * GRID),
            bags.pool(ratio, self.ratios, len(RATIOS)),
        ]
        return self._merged(parts, conv).contiguous()

    def naive(self, feature: Tensor, sub_region: Tensor, ratio: Tensor, *conv: Tensor) -> Tensor:
        rois, setting = self.rois, self.setting
        parts = [
            peers.plain(feature, rois, setting),
            peers.naive(sub_region, rois, self.regions, GRID * GRID, setting),
            peers.naive(ratio, rois, self.ratios, len(RATIOS), setting),
        ]
        return self._merged(parts, conv)


def stage(setting: Setting, merge: str = "multiply", naive: bool = True) -> Comparison:
    work = Stage(setting, merge)
    forwards: dict[str, Callable[..., Tensor]] = {
        OURS: work.ours,
        "RoIAligns by block, ratio": work.blocks,
    }
    if merge != "concat":
        forwards["RoIAligns of summed maps"] = work.summed
    if setting.sampling_ratio > 0:
        forwards["embedding_bags"] = work.bags
    if naive:
        forwards["naive gather"] = work.naive
    inputs = work.inputs()
    tasks = {name: Task(forward, inputs) for name, forward in forwards.items()}
    shared = [work.rois, work.regions, work.ratios]
    return Comparison(
        tasks,
        shared,
        product=merge.startswith("multiply"),
        kinked=merge in ("multiply_relu", "concat"),
    )
