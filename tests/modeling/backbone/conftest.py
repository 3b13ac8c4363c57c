"""What the tests of several backbones share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn


@pytest.fixture(scope="session")
def warm_up() -> Callable[[nn.Module], nn.Module]:
    """Gives a random network the statistics of random images, so that its maps are alive.

    With other statistics most units of a deep random network are 0, and comparing zeros proves
    nothing.
    """

    def run(network: nn.Module) -> nn.Module:
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # the plain mean over all batches seen
        with torch.no_grad():
            network.train()(torch.rand(4, 3, 96, 96, generator=torch.Generator().manual_seed(3)))
        return network.eval()

    return run
