"""The whole op in plain PyTorch, for several banks and pyramid levels: one bank and level after the
other by the reference for one, then the merge.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .reference import (
    INTEGERS,
    check_shapes,
    computed_in,
    selective_roi_align_backward_reference,
    selective_roi_align_reference,
)

MERGES = ("stack", "sum", "multiply", "multiply_relu")


class Request(NamedTuple):
    """What forward and backward of the op share, with the op's own names and order.

    S sources and L levels; a list of tensors per source and level goes source by source.

    Attributes:
        rois: Tensor[K, 5] of (batch index, x1, y1, x2, y2).
        levels: int64 Tensor[K] in [0, L); None for one level.
        bank_indices: per source an integer tensor that broadcasts to [K, PH, PW].
        origins: the (row, column) at which every map of every source starts, flat; empty: (0, 0).
        spatial_scales: per level, 1 / stride.
        sampling_ratio: samples along each side of a bin; 0: one per cell.
        merge: one of `MERGES`.
        op: the op that errors name.
    """

    rois: Tensor
    levels: Tensor | None
    bank_indices: Sequence[Tensor]
    origins: Sequence[int]
    spatial_scales: Sequence[float]
    sampling_ratio: int
    merge: str
    op: str = "selective_roi_align"

    def slots(self) -> list[int]:
        """Per source, the slot into which it is pooled; sources of one slot are added."""
        sources = range(len(self.bank_indices))
        if self.merge == "stack":
            return list(sources)
        return [int(s > 0 and self.merge != "sum") for s in sources]

    def output_channels(self, channels: int) -> int:
        return channels * len(self.bank_indices) if self.merge == "stack" else channels

    def channels_last(self) -> bool:
        """Whether the output is so in memory, else contiguous."""
        return self.merge == "stack"

    def check(self, condition: bool, message: str) -> None:
        """Raises RuntimeError with the op's name and `message` unless the condition holds."""
        if not condition:
            raise RuntimeError(f"{self.op}: {message}")


def check_request(
    sizes: Sequence[Sequence[int]], output_size: Sequence[int], request: Request
) -> None:
    """Raises RuntimeError naming the argument whose shape does not fit; reads no values.

    Args:
        sizes: (N, B, C, H, W) per source and level.
        output_size: bins (PH, PW).
    """
    sources, levels = len(request.bank_indices), len(request.spatial_scales)
    request.check(levels >= 1, "spatial_scales must hold one number per level, got none")
    request.check(sources >= 1, "bank_indices must hold one tensor per source, got none")
    request.check(
        len(sizes) == sources * levels,
        f"there must be one input per source and level, {sources} x {levels}, got {len(sizes)}",
    )
    request.check(request.merge in MERGES, f"merge must be one of {MERGES}, got {request.merge!r}")
    request.check(
        sources >= 2 or not request.merge.startswith("multiply"),
        f"merge {request.merge!r} needs at least two sources, got one",
    )
    for i, size in enumerate(sizes):
        index = request.bank_indices[i // levels]
        check_shapes(request.op, list(size), request.rois, index, list(output_size))
        first = sizes[i // levels * levels]
        request.check(
            size[0] == sizes[0][0] and size[2] == sizes[0][2] and size[1] == first[1],
            "every input must have the same N and C, and one source's levels the same B; "
            f"input {i} has {list(size)}",
        )
    maps = sum(int(size[1]) for size in sizes[::levels])
    request.check(
        len(request.origins) in (0, 2 * maps),
        f"origins must be empty or hold {2 * maps} numbers, a (row, column) pair for every map of "
        f"every source, got {len(request.origins)}",
    )
    if request.levels is None:
        request.check(
            levels == 1, "levels must name the level of each RoI when there are several levels"
        )
    else:
        request.check(
            tuple(request.levels.shape) == (request.rois.shape[0],),
            f"levels must have the shape [K], got {list(request.levels.shape)}",
        )


def _origins(request: Request, sizes: Sequence[Sequence[int]]) -> list[list[tuple[int, int]]]:
    """Per source, where its maps start."""
    maps = [size[1] for size in sizes[:: len(request.spatial_scales)]]
    given = zip(request.origins[::2], request.origins[1::2], strict=True)
    pairs = given if request.origins else itertools.repeat((0, 0))
    return [list(itertools.islice(pairs, count)) for count in maps]


def _extent(
    request: Request, bank: Tensor, origins: list[tuple[int, int]], size: Sequence[int]
) -> Tensor:
    """The sampled extent of every map: Tensor[N, B, C, *size[3:]]."""
    height, width = size[3:]
    for row, column in origins:
        request.check(
            row >= 0
            and column >= 0
            and row + height <= bank.shape[3]
            and column + width <= bank.shape[4],
            f"input of {list(bank.shape[3:])} cells is too small for {height} x {width} cells from "
            f"the origin {(row, column)}",
        )
    if not any(map(any, origins)):
        return bank[..., :height, :width]
    return torch.stack(
        [bank[:, b, :, y : y + height, x : x + width] for b, (y, x) in enumerate(origins)], dim=1
    )


def rois_of_levels(request: Request) -> list[Tensor]:
    """Per level, int64 Tensor of the RoIs that lie on it."""
    count, num_levels = request.rois.shape[0], len(request.spatial_scales)
    if request.levels is None:
        return [torch.arange(count, device=request.rois.device)]
    levels = request.levels
    request.check(levels.dtype in INTEGERS, f"levels must be an integer tensor, got {levels.dtype}")
    request.check(
        levels.device == request.rois.device,
        "input, rois, levels and bank_index must be on the same device",
    )
    request.check(
        bool(((levels >= 0) & (levels < num_levels)).all()),
        f"levels must lie in [0, {num_levels}), the number of levels",
    )
    return [(levels == level).nonzero().squeeze(1) for level in range(num_levels)]


def _pool_slots(inputs: Sequence[Tensor], output_size: list[int], request: Request) -> list[Tensor]:
    """Per slot, Tensor[K, C, PH, PW] in the dtype that is computed with."""
    sizes = [tuple(x.shape) for x in inputs]
    check_request(sizes, output_size, request)
    request.check(
        all(x.dtype == inputs[0].dtype for x in inputs),
        "input must have one dtype in every source and level",
    )
    request.check(
        inputs[0].is_floating_point(),
        f"input must be of a floating dtype, got {inputs[0].dtype}",
    )
    num_levels = len(request.spatial_scales)
    here = rois_of_levels(request)
    back = torch.cat(here).argsort()
    slots: dict[int, Tensor] = {}
    for source, (slot, origins) in enumerate(
        zip(request.slots(), _origins(request, sizes), strict=True)
    ):
        index = request.bank_indices[source].expand(len(request.rois), *output_size)
        pooled = torch.cat(
            [
                selective_roi_align_reference(
                    _extent(request, bank, origins, sizes[level]).to(computed_in(bank.dtype)),
                    request.rois[here[level]],
                    index[here[level]],
                    output_size,
                    request.spatial_scales[level],
                    request.sampling_ratio,
                )
                for level, bank in enumerate(inputs[source * num_levels :][:num_levels])
            ]
        )[back]
        slots[slot] = slots[slot] + pooled if slot in slots else pooled
    return list(slots.values())


def _factor(attention: Tensor, merge: str) -> Tensor:
    return attention.relu() if merge == "multiply_relu" else attention


def merged_roi_align_reference(
    inputs: Sequence[Tensor], output_size: Sequence[int], request: Request
) -> Tensor:
    """The op in plain PyTorch, differentiable in `inputs`.

    Args:
        inputs: Tensor[N, B, C, H, W] per source and level; B differs by source, H and W by level.
        output_size: bins (PH, PW).
        request: the other arguments of the op.

    Raises:
        RuntimeError: naming the argument that does not fit.
    """
    slots = _pool_slots(inputs, list(output_size), request)
    if request.merge.startswith("multiply"):
        slots = [slots[0] * _factor(slots[1], request.merge)]
    merged = torch.cat(slots, dim=1).to(inputs[0].dtype)
    layout = torch.channels_last if request.channels_last() else torch.contiguous_format
    return merged.contiguous(memory_format=layout)


def _slot_gradients(
    grad_output: Tensor, inputs: Sequence[Tensor], request: Request
) -> Sequence[Tensor]:
    if request.merge == "stack":
        return grad_output.chunk(len(request.bank_indices), dim=1)
    if request.merge == "sum":
        return [grad_output]
    roi, attention = _pool_slots(inputs, list(grad_output.shape[2:]), request)
    if request.merge == "multiply_relu":
        grad_output = grad_output * (attention > 0)
    return [grad_output * attention, grad_output * roi]


def merged_roi_align_backward_reference(
    grad_output: Tensor, inputs: Sequence[Tensor], sizes: Sequence[Sequence[int]], request: Request
) -> list[Tensor]:
    """The gradients with respect to the inputs, Tensor[N, B, C, H, W] each.

    Args:
        grad_output: Tensor[K, S * C or C, PH, PW].
        inputs: the op's, needed for the gradient of a product; else they may be empty.
        sizes: their sizes.
        request: as in the forward.
    """
    check_request(sizes, grad_output.shape[2:], request)
    num_levels = len(request.spatial_scales)
    compute = computed_in(grad_output.dtype)
    slots = _slot_gradients(grad_output.to(compute), [x.to(compute) for x in inputs], request)
    here = rois_of_levels(request)
    origins = _origins(request, sizes)
    grads = []
    for i, size in enumerate(sizes):
        source, level = divmod(i, num_levels)
        index = request.bank_indices[source].expand(len(request.rois), *grad_output.shape[2:])
        extent = [*size[:3], *sizes[level][3:]]
        grad = selective_roi_align_backward_reference(
            slots[request.slots()[source]][here[level]],
            request.rois[here[level]],
            index[here[level]],
            extent,
            request.spatial_scales[level],
            request.sampling_ratio,
        )
        grads.append(_embed(grad, origins[source], size).to(grad_output.dtype))
    return grads


def _embed(grad: Tensor, origins: list[tuple[int, int]], size: Sequence[int]) -> Tensor:
    """The transpose of `_extent`."""
    if grad.shape[3:] == torch.Size(size[3:]):
        return grad
    images, maps, channels, height, width = size
    whole = grad.new_zeros(images, height, width, maps, channels).permute(0, 3, 4, 1, 2)
    for b, (y, x) in enumerate(origins):
        whole[:, b, :, y : y + grad.shape[3], x : x + grad.shape[4]] = grad[:, b]
    return whole
