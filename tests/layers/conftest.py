"""Poolings of all kinds as arguments of the ops, for the tests that compare their kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

SIZES = ((16, 22), (8, 11), (4, 6))  # cells of the levels of an image of 64 x 88 pixels
SCALES = (1 / 4, 1 / 8, 1 / 16)
IMAGES = 2
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 2e-3,  # one rounding
    torch.bfloat16: 1.6e-2,
}


class Pooling(NamedTuple):
    """The arguments of `torch.ops.fsn_d2.selective_roi_align`."""

    inputs: list[Tensor]
    rois: Tensor
    levels: Tensor | None
    bank_indices: list[Tensor]
    origins: list[int]
    output_size: list[int]
    spatial_scales: list[float]
    sampling_ratio: int
    merge: str

    def to(self, device: torch.device | str) -> Pooling:
        def move(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.to(device)
            return [move(v) for v in value] if isinstance(value, list) else value

        return Pooling(*map(move, self))


def draw_rois(count: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """In and around the images: without extent, flipped, far away, huge, on the border."""
    image_size = torch.tensor([88.0, 64.0])
    centers = (torch.rand(count, 2, generator=generator) * 1.4 - 0.2) * image_size
    sides = torch.rand(count, 2, generator=generator) ** 2 * image_size
    kind = torch.arange(count) % 12
    sides[kind == 0] = 0
    sides[kind == 1, 0] = 0
    sides[kind == 2] *= -1
    centers[kind == 3] += 500
    sides[kind == 4] *= 40
    sides[kind == 5] *= 1e5 if dtype == torch.float64 else 100  # exact to a fraction of a cell
    corners = torch.cat([centers - sides / 2, centers + sides / 2], 1)
    corners[kind == 6] = torch.cat([torch.zeros(2), image_size])
    corners[kind == 7] = (corners[kind == 7] / 4).round() * 4 + 2  # samples on cells
    rois = torch.cat([torch.arange(count)[:, None] % IMAGES, corners], 1)
    return rois.to(torch.promote_types(dtype, torch.float32))


def draw_pooling(
    merge: str,
    *,
    dtype: torch.dtype = torch.float32,
    num_levels: int = 3,
    shifted: bool = True,
    cells: bool = True,
    one_map: bool = False,
    channels: int = 8,
    bins: tuple[int, int] = (3, 4),
    sampling_ratio: int = 0,
    count: int = 60,
) -> Pooling:
    """An RoI feature, a bank of 9 that is read by bin, and one of 3 that is read by RoI.

    With `one_map` a bank's maps are one in memory, read from different origins.
    """
    generator = torch.Generator().manual_seed(count)

    def bank(maps: int, margin: int, size: tuple[int, int]) -> Tensor:
        height, width = (side + margin for side in size)
        values = torch.randn(IMAGES, height, width, maps, channels, generator=generator)
        values = values.to(dtype).permute(0, 3, 4, 1, 2)
        if one_map:
            return values[:, :1].expand_as(values)
        return values if cells else values.contiguous()

    def integers(limit: int, *shape: int) -> Tensor:
        return torch.randint(limit, shape, generator=generator)

    margins = (0, 4 * shifted, 0)
    origins = [0, 0, *integers(5, 9 * 2).tolist(), *[0] * 6] if shifted else []
    return Pooling(
        [
            bank(m, s, z)
            for m, s in zip((1, 9, 3), margins, strict=True)
            for z in SIZES[:num_levels]
        ],
        draw_rois(count, dtype, generator),
        integers(num_levels, count) if num_levels > 1 else None,
        [torch.tensor(0), integers(9, *bins), integers(3, count, 1, 1).to(torch.int32)],
        origins,
        list(bins),
        list(SCALES[:num_levels]),
        sampling_ratio,
        merge,
    )


def pool_and_back(
    ops: Any,
    pooling: Pooling,
    planes: bool = False,
    deterministic: bool = False,
    grad_output: Tensor | None = None,
) -> list[Tensor]:
    """The pooled features and the gradients of all inputs, by the kernels of `ops`."""
    pooled = ops.selective_roi_align(*pooling)
    if grad_output is None:
        generator = torch.Generator().manual_seed(pooled.numel())
        grad_output = torch.randn(pooled.shape, generator=generator).to(pooled)
    inputs, rois, levels, indices, origins, _, *rest = pooling
    sizes = [n for x in inputs for n in x.shape]
    kept = inputs if pooling.merge.startswith("multiply") else []
    grads = ops.selective_roi_align_backward(
        grad_output, kept, sizes, planes, deterministic, rois, levels, indices, origins, *rest
    )
    for grad in grads:
        assert grad.is_contiguous() if planes else grad.permute(0, 3, 4, 1, 2).is_contiguous()
    return [pooled, *grads]


def assert_equal_up_to_rounding(actual: list[Tensor], expected: list[Tensor]) -> None:
    """Per tensor, up to TOLERANCE of its largest value."""
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape and a.dtype == e.dtype
        assert e.count_nonzero() > 0, "an oracle of zeros shows nothing"
        scale = max(1.0, e.abs().max().item())
        torch.testing.assert_close(a.cpu(), e, rtol=0, atol=TOLERANCE[e.dtype] * scale)


class BinPooling(NamedTuple):
    """The arguments of `torch.ops.fsn_d2.selective_roi_pool`."""

    inputs: list[Tensor]
    rois: Tensor
    levels: Tensor | None
    bank_index: Tensor
    output_size: list[int]
    spatial_scales: list[float]
    mode: str

    def to(self, device: torch.device | str) -> BinPooling:
        return BinPooling(
            [x.to(device) for x in self.inputs],
            self.rois.to(device),
            None if self.levels is None else self.levels.to(device),
            self.bank_index.to(device),
            *self[4:],
        )


def draw_bin_pooling(mode: str, **options: Any) -> BinPooling:
    """A bank of 9 that is read by bin; options as of `draw_pooling`."""
    drawn = draw_pooling("sum", shifted=False, **options)
    levels = len(drawn.spatial_scales)
    return BinPooling(
        drawn.inputs[levels : 2 * levels],
        drawn.rois,
        drawn.levels,
        drawn.bank_indices[1],
        drawn.output_size,
        drawn.spatial_scales,
        mode,
    )


def pool_bins_and_back(
    ops: Any,
    pooling: BinPooling,
    planes: bool = False,
    deterministic: bool = False,
    grad_output: Tensor | None = None,
) -> list[Tensor]:
    """The pooled features and the gradients of all inputs, by the kernels of `ops`."""
    pooled = ops.selective_roi_pool(*pooling)
    if grad_output is None:
        generator = torch.Generator().manual_seed(pooled.numel())
        grad_output = torch.randn(pooled.shape, generator=generator).to(pooled)
    inputs, rois, levels, index, _, *rest = pooling
    sizes = [n for x in inputs for n in x.shape]
    kept = inputs if pooling.mode == "max" else []
    grads = ops.selective_roi_pool_backward(
        grad_output, kept, sizes, planes, deterministic, rois, levels, index, *rest
    )
    for grad in grads:
        assert grad.is_contiguous() if planes else grad.permute(0, 3, 4, 1, 2).is_contiguous()
    return [pooled, *grads]


class Comparison(NamedTuple):
    """What a test module of a device needs; modules cannot import one another."""

    draw: Callable[..., Pooling]
    run: Callable[..., list[Tensor]]
    draw_bins: Callable[..., BinPooling]
    run_bins: Callable[..., list[Tensor]]
    check: Callable[[list[Tensor], list[Tensor]], None]


@pytest.fixture(scope="session")
def comparison() -> Comparison:
    return Comparison(
        draw_pooling,
        pool_and_back,
        draw_bin_pooling,
        pool_bins_and_back,
        assert_equal_up_to_rounding,
    )
