#!/usr/bin/env python
"""Tells which operations give other bits with two threads than with one, or from run to run.

On the CPU, forward and backward, for the operations that the models of this project are made of.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fsn_d2.layers import selective_roi_align, selective_roi_pool

RUNS = 5
GENERATOR = torch.Generator().manual_seed(0)
Operation = tuple[Callable[..., Tensor], list[Tensor]]


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=GENERATOR)


def integers(limit: int, *shape: int) -> Tensor:
    return torch.randint(limit, shape, generator=GENERATOR)


def rois(count: int) -> Tensor:
    corners = 40 * torch.rand(count, 4, generator=GENERATOR)
    corners[:, 2:] += corners[:, :2]
    return torch.cat([torch.zeros(count, 1), corners], dim=1)


def operations() -> dict[str, Operation]:
    """Functions of tensors, at about the sizes that they have in a training."""
    boxes, index = rois(300), integers(9, 300, 7, 7)
    bank, level = randn(1, 9, 40, 60, 80), randn(2, 32, 80, 120)
    places, bags, labels = integers(500, 100_000), integers(3000, 1000, 40), integers(81, 2000)
    return {
        "selective_roi_align": (
            lambda x: selective_roi_align(x, boxes, index, (7, 7), 1.0, 0),
            [bank],
        ),
        **{
            f"selective_roi_pool, {mode}": (
                lambda x, mode=mode: selective_roi_pool(x, boxes, index, (7, 7), 1.0, mode=mode),
                [bank],
            )
            for mode in ("max", "avg")
        },
        "convolution 1 x 1, 512 to 32": (F.conv2d, [randn(2, 512, 10, 15), randn(32, 512, 1, 1)]),
        "convolution 3 x 3, 32 to 32": (F.conv2d, [level, randn(32, 32, 3, 3), randn(32)]),
        "linear": (F.linear, [randn(1000, 1960), randn(1024, 1960), randn(1024)]),
        "batch norm": (lambda x: F.batch_norm(x, None, None, training=True), [level]),
        "group norm": (lambda x: F.group_norm(x, 4), [level]),
        "max pooling": (lambda x: F.max_pool2d(x, 3, 2, 1), [level]),
        "nearest upsampling": (lambda x: F.interpolate(x, scale_factor=2.0), [level]),
        "embedding_bag": (
            lambda table, weights: F.embedding_bag(
                bags, table, per_sample_weights=weights, mode="sum"
            ),
            [randn(3000, 40), randn(1000, 40)],
        ),
        "cross entropy": (lambda x: F.cross_entropy(x, labels), [randn(2000, 81)]),
        "indexing, indices repeated": (lambda x: x[places], [randn(500, 40)]),
        "sum of 20000 numbers": (torch.sum, [randn(20_000)]),
        "sum of 1000000 numbers": (torch.sum, [randn(1_000_000)]),
    }


def results(operation: Operation, threads: int) -> list[Tensor]:
    """Output and gradients."""
    function, inputs = operation
    torch.set_num_threads(threads)
    leaves = [value.clone().requires_grad_() for value in inputs]
    output = function(*leaves)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    return [output.detach(), *torch.autograd.grad(output, leaves, weights)]


def equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(map(torch.equal, first, second))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--deterministic", action="store_true", help="as DETERMINISTIC True does")
    torch.use_deterministic_algorithms(parser.parse_args().deterministic)
    print(f"{'':30}{'1 and 2 threads':18}{RUNS} runs with 2 threads")
    for name, operation in operations().items():
        one = results(operation, 1)
        first, *others = (results(operation, 2) for _ in range(RUNS))
        words = [
            "equal" if same else "differ"
            for same in (equal(one, first), all(equal(first, other) for other in others))
        ]
        print(f"{name:30}{words[0]:18}{words[1]}")


if __name__ == "__main__":
    main()
