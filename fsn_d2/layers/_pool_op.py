"""`torch.ops.fsn_d2.selective_roi_pool` in Python: its kernel in plain PyTorch, its shapes and its
gradients.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._library import Op, fake_backward, in_fives, reads_planes, register
from .pool_reference import (
    PoolRequest,
    selective_roi_pool_backward_reference,
    selective_roi_pool_reference,
)


def _forward(
    inputs: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    bank_index: Tensor,
    output_size: Sequence[int],
    spatial_scales: Sequence[float],
    mode: str,
) -> Tensor:
    request = PoolRequest(rois, levels, bank_index, spatial_scales, mode)
    return selective_roi_pool_reference(inputs, output_size, request)


def _backward(
    grad_output: Tensor,
    inputs: Sequence[Tensor],
    input_sizes: Sequence[int],
    planes: bool,
    deterministic: bool,
    *request,
) -> list[Tensor]:
    grads = selective_roi_pool_backward_reference(
        grad_output, inputs, in_fives(input_sizes), PoolRequest(*request)
    )
    return [grad.contiguous() if planes else grad for grad in grads]


def _fake_forward(
    inputs: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    bank_index: Tensor,
    output_size: Sequence[int],
    spatial_scales: Sequence[float],
    mode: str,
) -> Tensor:
    request = PoolRequest(rois, levels, bank_index, spatial_scales, mode)
    request.check([x.shape for x in inputs], output_size)
    return inputs[0].new_empty(rois.shape[0], inputs[0].shape[2], *output_size)


def _setup_context(ctx, inputs: tuple, output: Tensor) -> None:
    banks, rois, levels, bank_index, _, ctx.scales, ctx.mode = inputs
    ctx.input_sizes = [size for bank in banks for size in bank.shape]
    ctx.planes = reads_planes(banks[0])
    # A maximum is looked for once more rather than kept: half the memory, and less time.
    ctx.save_for_backward(rois, levels, bank_index, *(banks if ctx.mode == "max" else []))


def _gradient(ctx, grad_output: Tensor) -> tuple:
    rois, levels, bank_index, *banks = ctx.saved_tensors
    grads = torch.ops.fsn_d2.selective_roi_pool_backward(
        grad_output,
        banks,
        ctx.input_sizes,
        ctx.planes,
        torch.are_deterministic_algorithms_enabled(),
        rois,
        levels,
        bank_index,
        ctx.scales,
        ctx.mode,
    )
    return (grads, *(None,) * 6)


def _setup_backward_context(ctx, inputs: tuple, output: Sequence[Tensor]) -> None:
    grad_output, banks, _, _, _, rois, levels, bank_index, ctx.scales, ctx.mode = inputs
    ctx.num_banks = len(banks)
    ctx.output_size = grad_output.shape[2:]
    ctx.save_for_backward(rois, levels, bank_index)


def _second_gradient(ctx, grad_grads: list[Tensor]) -> tuple:
    if ctx.mode == "max":
        raise NotImplementedError("selective_roi_pool: mode 'max' has no second derivatives")
    # The gradient is linear in grad_output, and its transpose is the pooling itself.
    rois, levels, bank_index = ctx.saved_tensors
    grad_grad_output = torch.ops.fsn_d2.selective_roi_pool(
        grad_grads, rois, levels, bank_index, ctx.output_size, ctx.scales, ctx.mode
    )
    return (grad_grad_output, [None] * ctx.num_banks, *(None,) * 8)


register(
    Op(
        schema=(
            "selective_roi_pool(Tensor[] inputs, Tensor rois, Tensor? levels, Tensor bank_index, "
            "SymInt[] output_size, float[] spatial_scales, str mode) -> Tensor"
        ),
        backward_schema=(
            "selective_roi_pool_backward(Tensor grad_output, Tensor[] inputs, "
            "SymInt[] input_sizes, bool planes, bool deterministic, Tensor rois, Tensor? levels, "
            "Tensor bank_index, float[] spatial_scales, str mode) -> Tensor[]"
        ),
        forward=_forward,
        backward=_backward,
        fake_forward=_fake_forward,
        fake_backward=fake_backward,
        setup_context=_setup_context,
        gradient=_gradient,
        setup_backward_context=_setup_backward_context,
        second_gradient=_second_gradient,
    )
)
