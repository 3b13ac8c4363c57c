"""Lists of tensors that go to an op in a traced graph."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from torch import Tensor


def own_list(tensors: Sequence[Tensor], rois: Tensor) -> list[Tensor]:
    """`tensors` as a list that nothing else in a traced graph reads.

    In a process without Python's dispatch PyTorch (seen with 2.12.1) moves the tensors out of a
    list that it hands to an op of its stable ABI (`from_ivalue` in shim_common.cpp). TorchScript
    makes one list of all those that hold the same tensors, and keeps lists of constants from one
    run to the next: whoever reads such a list next would find undefined tensors. So in a trace the
    first tensor goes through a slice that leaves nothing out, up to a number that no other list of
    this trace has and that depends on the input. Exported to ONNX the op is another, which takes
    no list.

    Args:
        rois: Tensor[K, 5]; its size is what the number depends on.
    """
    own = list(tensors)
    if own and torch.jit.is_tracing() and not torch.onnx.is_in_onnx_export():
        nodes = _size(torch._C._get_tracing_state().graph())
        end = sys.maxsize // 2 + nodes + rois.numel()
        own[0] = own[0][None][:end][0]  # an index may have no dimension of its own
    return own


def _size(block: torch._C.Graph | torch._C.Block) -> int:
    """How many nodes there are by now. A module that is being traced is a block of its own."""
    return sum(1 + sum(map(_size, node.blocks())) for node in block.nodes())
