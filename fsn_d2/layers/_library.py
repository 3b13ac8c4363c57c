"""Finds or defines the `fsn_d2` operator library, and gives its op what only Python can: a fake
kernel for tracing by shape, the autograd formula, and a kernel for devices without a compiled one.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from .merged_reference import (
    Request,
    check_request,
    merged_roi_align_backward_reference,
    merged_roi_align_reference,
)

_PACKAGE = Path(__file__).resolve().parent.parent
_SCHEMAS = (
    "selective_roi_align(Tensor[] inputs, Tensor rois, Tensor? levels, Tensor[] bank_indices, "
    "int[] origins, SymInt[] output_size, float[] spatial_scales, int sampling_ratio, str merge) "
    "-> Tensor",
    "selective_roi_align_backward(Tensor grad_output, Tensor[] inputs, SymInt[] input_sizes, "
    "bool planes, bool deterministic, Tensor rois, Tensor? levels, Tensor[] bank_indices, "
    "int[] origins, float[] spatial_scales, int sampling_ratio, str merge) -> Tensor[]",
)


def op_library_path() -> Path | None:
    """The compiled op library, or None where the extension was not built.

    A process without this package loads it with `torch.ops.load_library(path)`, a C++ program with
    `dlopen`; either can then run a model exported to TorchScript. On a GPU it needs the kernels of
    `cuda_library_path()` too.
    """
    return next(iter(sorted(_PACKAGE.glob("_C.*so"))), None)


def cuda_library_path() -> Path | None:
    """The op's CUDA kernels, loaded like and beside `op_library_path()`; None if not built.

    A library of its own, for it does not load into a PyTorch without CUDA.
    """
    return next(iter(sorted(_PACKAGE.glob("_C_cuda.*so"))), None)


def _open(path: Path | None) -> str:
    """Loads a library; returns why it has none of its kernels, or ""."""
    if path is None:
        return "it is not built"
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return f"{path} does not load ({error})"
    return ""


def _load() -> dict[str, str]:
    """Makes `torch.ops.fsn_d2` available; returns why a device has no compiled kernels, or ""."""
    problems = {"cpu": _open(op_library_path())}
    if problems["cpu"]:
        for schema in _SCHEMAS:
            torch.library.define(f"fsn_d2::{schema.split('(')[0]}", schema[schema.index("(") :])
    if torch.version.cuda is not None:
        problems["cuda"] = _open(cuda_library_path())
    return problems


_problems = _load()


@functools.cache
def _warn_once(device_type: str) -> None:
    reason = _problems.get(device_type) or f"it has no kernel for {device_type}"
    warnings.warn(
        f"fsn_d2: the compiled extension is not used, {reason}: pooling runs in plain PyTorch on "
        f"'{device_type}', with equal results but slower. To build it: "
        "pip install --no-build-isolation --no-deps -e .",
        stacklevel=2,
    )


def _forward_without_kernel(
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
    _warn_once(rois.device.type)
    request = Request(rois, levels, bank_indices, origins, spatial_scales, sampling_ratio, merge)
    return merged_roi_align_reference(inputs, output_size, request)


def _in_fives(input_sizes: Sequence[int]) -> list[Sequence[int]]:
    return [input_sizes[i : i + 5] for i in range(0, len(input_sizes), 5)]


def _backward_without_kernel(
    grad_output: Tensor,
    inputs: Sequence[Tensor],
    input_sizes: Sequence[int],
    planes: bool,
    deterministic: bool,
    *request,
) -> list[Tensor]:
    grads = merged_roi_align_backward_reference(
        grad_output, inputs, _in_fives(input_sizes), Request(*request)
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
    return inputs[0].new_empty(rois.shape[0], channels, *output_size)


def _fake_backward(
    grad_output: Tensor,
    inputs: Sequence[Tensor],
    input_sizes: Sequence[int],
    planes: bool,
    deterministic: bool,
    *request,
) -> list[Tensor]:
    grads = []
    for n, b, c, h, w in _in_fives(input_sizes):
        if planes:
            grads.append(grad_output.new_empty(n, b, c, h, w))
        else:
            grads.append(grad_output.new_empty(n, h, w, b, c).permute(0, 3, 4, 1, 2))
    return grads


def _setup_context(ctx, inputs: tuple, output: Tensor) -> None:
    banks, rois, levels, bank_indices, ctx.origins, _, ctx.scales, ctx.ratio, ctx.merge = inputs
    ctx.input_sizes = [size for bank in banks for size in bank.shape]
    # The gradient comes back in the layout of the input, so that a convolution need not convert it.
    ctx.planes = banks[0].shape[2] > 1 and banks[0].stride(2) != 1
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


def _register() -> None:
    name = "fsn_d2::selective_roi_align"
    torch.library.impl(name, "CompositeExplicitAutograd")(_forward_without_kernel)
    torch.library.impl(f"{name}_backward", "CompositeExplicitAutograd")(_backward_without_kernel)
    torch.library.register_fake(name)(_fake_forward)
    torch.library.register_fake(f"{name}_backward")(_fake_backward)
    torch.library.register_autograd(name, _autograd_backward, setup_context=_setup_context)
    torch.library.register_autograd(
        f"{name}_backward", _double_backward, setup_context=_setup_backward_context
    )


_register()
