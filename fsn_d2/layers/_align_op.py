"""`torch.ops.fsn_d2.selective_roi_align` in Python: its kernel in plain PyTorch, its shapes and its
gradients.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._library import Op, fake_backward, in_fives, reads_planes, register
from .merged_reference import (
    Request,
    check_request,
    merged_roi_align_backward_reference,
    merged_roi_align_reference,
)


def _forward(
    inputs: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    bank_indices: Sequence[Tensor],
    origins: Sequence[int],
    output_size: Sequence[int],
    spatial_scales: Sequence[float],
    sampling_ratio: int,
    merge: str,
) -> Tensor:
    request = Request(rois, levels, bank_indices, origins, spatial_scales, sampling_ratio, merge)
    return merged_roi_align_reference(inputs, output_size, request)


def _backward(
    grad_output: Tensor,
    inputs: Sequence[Tensor],
    input_sizes: Sequence[int],
    planes: bool,
    deterministic: bool,
    *request,
) -> list[Tensor]:
    grads = merged_roi_align_backward_reference(
        grad_output, inputs, in_fives(input_sizes), Request(*request)
    )
    return [grad.contiguous() if planes else grad for grad in grads]


def _fake_forward(
    inputs: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    bank_indices: Sequence[Tensor],
    origins: Sequence[int],
    output_size: Sequence[int],
    spatial_scales: Sequence[float],
    sampling_ratio: int,
    merge: str,
) -> Tensor:
    request = Request(rois, levels, bank_indices, origins, spatial_scales, sampling_ratio, merge)
    check_request([x.shape for x in inputs], output_size, request)
    channels = request.output_channels(inputs[0].shape[2])
    if request.channels_last():
        return inputs[0].new_empty(rois.shape[0], *output_size, channels).permute(0, 3, 1, 2)
    return inputs[0].new_empty(rois.shape[0], channels, *output_size)


def _setup_context(ctx, inputs: tuple, output: Tensor) -> None:
    banks, rois, levels, bank_indices, ctx.origins, _, ctx.scales, ctx.ratio, ctx.merge = inputs
    ctx.input_sizes = [size for bank in banks for size in bank.shape]
    ctx.planes = reads_planes(banks[0])
    ctx.has_levels = levels is not None
    # Only a product needs the values once more.
    kept = list(banks) if ctx.merge.startswith("multiply") else []
    ctx.num_indices = len(bank_indices)
    ctx.save_for_backward(rois, *([levels] if ctx.has_levels else []), *bank_indices, *kept)


def _saved(ctx) -> tuple[Tensor, Tensor | None, list[Tensor], list[Tensor]]:
    """rois, levels, bank indices, and the tensors that were saved behind them."""
    rois, *rest = ctx.saved_tensors
    levels = rest.pop(0) if ctx.has_levels else None
    return rois, levels, rest[: ctx.num_indices], rest[ctx.num_indices :]


def _no_gradients(ctx) -> tuple:
    """For bank_indices and origins; PyTorch takes every empty list for one of tensors."""
    return [None] * ctx.num_indices, None if ctx.origins else []


def _autograd_backward(ctx, grad_output: Tensor) -> tuple:
    rois, levels, bank_indices, banks = _saved(ctx)
    grads = torch.ops.fsn_d2.selective_roi_align_backward(
        grad_output,
        banks,
        ctx.input_sizes,
        ctx.planes,
        torch.are_deterministic_algorithms_enabled(),
        rois,
        levels,
        bank_indices,
        ctx.origins,
        ctx.scales,
        ctx.ratio,
        ctx.merge,
    )
    return (grads, None, None, *_no_gradients(ctx), None, None, None, None)


def _setup_backward_context(ctx, inputs: tuple, output: Sequence[Tensor]) -> None:
    grad_output, _, _, _, _, rois, levels, bank_indices, *rest = inputs
    ctx.origins, ctx.scales, ctx.ratio, ctx.merge = rest
    ctx.output_size = grad_output.shape[2:]
    ctx.has_levels = levels is not None
    ctx.num_indices = len(bank_indices)
    ctx.save_for_backward(rois, *([levels] if ctx.has_levels else []), *bank_indices)


def _double_backward(ctx, grad_grads: list[Tensor]) -> tuple:
    if ctx.merge.startswith("multiply"):
        raise NotImplementedError(
            f"selective_roi_align: merge {ctx.merge!r} has no second derivatives; pool with "
            "merge 'stack' and multiply the parts"
        )
    # The gradient is linear in grad_output, and its transpose is the pooling itself.
    rois, levels, bank_indices, _ = _saved(ctx)
    grad_grad_output = torch.ops.fsn_d2.selective_roi_align(
        grad_grads,
        rois,
        levels,
        bank_indices,
        ctx.origins,
        ctx.output_size,
        ctx.scales,
        ctx.ratio,
        ctx.merge,
    )
    return (grad_grad_output, [], *(None,) * 5, *_no_gradients(ctx), *(None,) * 3)


register(
    Op(
        schema=(
            "selective_roi_align(Tensor[] inputs, Tensor rois, Tensor? levels, "
            "Tensor[] bank_indices, int[] origins, SymInt[] output_size, float[] spatial_scales, "
            "int sampling_ratio, str merge) -> Tensor"
        ),
        backward_schema=(
            "selective_roi_align_backward(Tensor grad_output, Tensor[] inputs, "
            "SymInt[] input_sizes, bool planes, bool deterministic, Tensor rois, Tensor? levels, "
            "Tensor[] bank_indices, int[] origins, float[] spatial_scales, int sampling_ratio, "
            "str merge) -> Tensor[]"
        ),
        forward=_forward,
        backward=_backward,
        fake_forward=_fake_forward,
        fake_backward=fake_backward,
        setup_context=_setup_context,
        gradient=_autograd_backward,
        setup_backward_context=_setup_backward_context,
        second_gradient=_double_backward,
    )
)
