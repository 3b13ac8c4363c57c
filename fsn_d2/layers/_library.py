"""Finds the compiled `fsn_d2` operator libraries, and completes an op with what only Python can
give: a fake kernel for tracing by shape, the autograd formula, and a kernel in plain PyTorch for
devices without a compiled one.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

_PACKAGE = Path(__file__).resolve().parent.parent


def op_library_path() -> Path | None:
    """The compiled op library, or None where the extension was not built.

    A process without this package loads it with `torch.ops.load_library(path)`, a C++ program with
    `dlopen`; either can then run a model exported to TorchScript. On a GPU it needs the kernels of
    `cuda_library_path()` too.
    """
    return next(iter(sorted(_PACKAGE.glob("_C.*so"))), None)


def cuda_library_path() -> Path | None:
    """The ops' CUDA kernels, loaded like and beside `op_library_path()`; None if not built.

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
    """Opens the libraries; returns why a device has no compiled kernels, or ""."""
    problems = {"cpu": _open(op_library_path())}
    if torch.version.cuda is not None:
        problems["cuda"] = _open(cuda_library_path())
    return problems


_problems = _load()


@functools.cache
def _warn_once(device_type: str) -> None:
    reason = _problems.get(device_type) or f"it lacks a kernel for {device_type}"
    forced = "FORCE_CUDA=1 " if device_type == "cuda" else ""  # which says what is missing
    warnings.warn(
        f"fsn_d2: the compiled extension is not used, {reason}: pooling runs in plain PyTorch on "
        f"'{device_type}', with equal results but slower. To build it: "
        f"{forced}pip install --no-build-isolation --no-deps -e . (in a clone)",
        stacklevel=2,
    )


class Op(NamedTuple):
    """One op and its backward, an op of its own, in Python.

    Attributes:
        schema, backward_schema: as in csrc/schemas.h; the first Tensor argument of both is on the
            device that is computed on, or is a list of such.
        forward, backward: kernels in plain PyTorch.
        fake_forward, fake_backward: the same for shapes alone.
        setup_context, gradient: the autograd formula of the op, as `register_autograd` takes it.
        setup_backward_context, second_gradient: that of its backward.
    """

    schema: str
    backward_schema: str
    forward: Callable
    backward: Callable
    fake_forward: Callable
    fake_backward: Callable
    setup_context: Callable
    gradient: Callable
    setup_backward_context: Callable
    second_gradient: Callable


def _with_warning(kernel: Callable) -> Callable:
    @functools.wraps(kernel)
    def warn_and_run(first: Tensor | Sequence[Tensor], *rest):
        for tensor in [first] if isinstance(first, Tensor) else first[:1]:  # none is refused below
            _warn_once(tensor.device.type)
        return kernel(first, *rest)

    return warn_and_run


def _register(
    schema: str, kernel: Callable, fake: Callable, gradient: Callable, setup_context: Callable
) -> None:
    name, signature = schema.split("(", 1)
    if not hasattr(torch.ops.fsn_d2, name):  # no library has defined it
        torch.library.define(f"fsn_d2::{name}", f"({signature}")
    name = f"fsn_d2::{name}"
    torch.library.impl(name, "CompositeExplicitAutograd")(kernel)
    torch.library.register_fake(name)(fake)
    torch.library.register_autograd(name, gradient, setup_context=setup_context)


def register(op: Op) -> None:
    """Makes `op` and its backward available in `torch.ops.fsn_d2`, compiled or not."""
    forward, backward = _with_warning(op.forward), _with_warning(op.backward)
    _register(op.schema, forward, op.fake_forward, op.gradient, op.setup_context)
    _register(
        op.backward_schema,
        backward,
        op.fake_backward,
        op.second_gradient,
        op.setup_backward_context,
    )


def in_fives(input_sizes: Sequence[int]) -> list[Sequence[int]]:
    """(N, B, C, H, W) of every bank, from flat sizes."""
    return [input_sizes[i : i + 5] for i in range(0, len(input_sizes), 5)]


def fake_backward(
    grad_output: Tensor,
    inputs: Sequence[Tensor],
    input_sizes: Sequence[int],
    planes: bool,
    deterministic: bool,
    *request,
) -> list[Tensor]:
    """The gradients of banks, uninitialised: contiguous (`planes`), else cells [N, H, W, B, C]."""
    grads = []
    for n, b, c, h, w in in_fives(input_sizes):
        if planes:
            grads.append(grad_output.new_empty(n, b, c, h, w))
        else:
            grads.append(grad_output.new_empty(n, h, w, b, c).permute(0, 3, 4, 1, 2))
    return grads


def reads_planes(bank: Tensor) -> bool:
    """Whether the gradient of `bank` comes back contiguous rather than as cells.

    It has the layout of the input, so that a convolution need not convert it; of the first one,
    where inputs differ.
    """
    return bank.shape[2] > 1 and bank.stride(2) != 1
