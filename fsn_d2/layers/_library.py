"""Finds or defines the `fsn_d2` operator library, and gives its ops what only Python can: a fake
kernel for tracing by shape, the autograd formula, and a kernel for devices without a compiled one.
"""

from __future__ import annotations

import functools
import warnings
from pathlib import Path

import torch
from torch import Tensor

from .reference import (
    check_shapes,
    selective_roi_align_backward_reference,
    selective_roi_align_reference,
)

_PACKAGE = Path(__file__).resolve().parent.parent
_SCHEMAS = (
    "selective_roi_align(Tensor input, Tensor rois, Tensor bank_index, SymInt[] output_size, "
    "float spatial_scale, int sampling_ratio) -> Tensor",
    "selective_roi_align_backward(Tensor grad_output, Tensor rois, Tensor bank_index, "
    "SymInt[] input_size, float spatial_scale, int sampling_ratio) -> Tensor",
)


def op_library_path() -> Path | None:
    """The compiled op library, or None where the extension was not built.

    A process without this package loads it with `torch.ops.load_library(path)`, a C++ program with
    `dlopen`; either can then run a model exported to TorchScript.
    """
    return next(iter(sorted(_PACKAGE.glob("_C*.so"))), None)


def _load() -> str:
    """Makes `torch.ops.fsn_d2` available; returns why it has no compiled kernels, or ""."""
    path = op_library_path()
    if path is None:
        problem = "it is not built"
    else:
        try:
            torch.ops.load_library(str(path))
            return ""
        except OSError as error:
            problem = f"{path} does not load ({error})"
    for schema in _SCHEMAS:
        torch.library.define(f"fsn_d2::{schema.split('(')[0]}", schema[schema.index("(") :])
    return problem


_problem = _load()


@functools.cache
def _warn_once(device_type: str) -> None:
    reason = _problem or f"it has no kernel for {device_type}"
    warnings.warn(
        f"fsn_d2: the compiled extension is not used, {reason}: pooling runs in plain PyTorch on "
        f"'{device_type}', with equal results but slower. To build it: "
        "pip install --no-build-isolation --no-deps -e .",
        stacklevel=2,
    )


def _forward_without_kernel(
    input: Tensor,
    rois: Tensor,
    bank_index: Tensor,
    output_size: list[int],
    spatial_scale: float,
    sampling_ratio: int,
) -> Tensor:
    _warn_once(input.device.type)
    return selective_roi_align_reference(
        input, rois, bank_index, list(output_size), spatial_scale, sampling_ratio
    )


def _backward_without_kernel(
    grad_output: Tensor,
    rois: Tensor,
    bank_index: Tensor,
    input_size: list[int],
    spatial_scale: float,
    sampling_ratio: int,
) -> Tensor:
    return selective_roi_align_backward_reference(
        grad_output, rois, bank_index, list(input_size), spatial_scale, sampling_ratio
    )


def _fake_forward(
    input: Tensor,
    rois: Tensor,
    bank_index: Tensor,
    output_size: list[int],
    spatial_scale: float,
    sampling_ratio: int,
) -> Tensor:
    check_shapes(list(input.shape), rois, bank_index, output_size)
    return input.new_empty(rois.shape[0], input.shape[2], *output_size)


def _fake_backward(
    grad_output: Tensor,
    rois: Tensor,
    bank_index: Tensor,
    input_size: list[int],
    spatial_scale: float,
    sampling_ratio: int,
) -> Tensor:
    n, b, c, h, w = input_size
    return grad_output.new_empty(n, h, w, b, c).permute(0, 3, 4, 1, 2)


def _setup_context(ctx, inputs: tuple, output: Tensor) -> None:
    input, rois, bank_index, _, ctx.spatial_scale, ctx.sampling_ratio = inputs
    ctx.save_for_backward(rois, bank_index)
    ctx.input_size = input.shape


def _autograd_backward(ctx, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    rois, bank_index = ctx.saved_tensors
    grad_input = None
    if ctx.needs_input_grad[0]:
        grad_input = torch.ops.fsn_d2.selective_roi_align_backward(
            grad_output, rois, bank_index, ctx.input_size, ctx.spatial_scale, ctx.sampling_ratio
        )
    return grad_input, None, None, None, None, None


def _setup_backward_context(ctx, inputs: tuple, output: Tensor) -> None:
    grad_output, rois, bank_index, _, ctx.spatial_scale, ctx.sampling_ratio = inputs
    ctx.save_for_backward(rois, bank_index)
    ctx.output_size = grad_output.shape[2:]


def _double_backward(ctx, grad_grad_input: Tensor) -> tuple[Tensor | None, ...]:
    # The gradient is linear in grad_output, and its transpose is the pooling itself.
    rois, bank_index = ctx.saved_tensors
    grad_grad_output = torch.ops.fsn_d2.selective_roi_align(
        grad_grad_input, rois, bank_index, ctx.output_size, ctx.spatial_scale, ctx.sampling_ratio
    )
    return grad_grad_output, None, None, None, None, None


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
