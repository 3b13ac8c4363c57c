"""How the pooled attention refines the pooled RoI feature (FSN, section 3).

Every merge begins close to plain pooling: the banks can only add to what training finds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsn_d2.layers import start_convolution

from .checks import require_positive


def _total(attention: list[Tensor]) -> Tensor:
    return attention[0] if len(attention) == 1 else attention[0] + attention[1]


class Merge(nn.Module):
    """From the RoI feature and the attentions to the refined RoI feature.

    Attributes:
        start: the sum of the attentions at which it equals plain pooling, near which the banks are
            to begin; None: they may begin anywhere.
        pooled_as: how `merged_roi_align` hands over the three where all maps are computed, its
            argument `merge`: merged already where the op can do all of it, else side by side
            ("stack").
    """

    start: float | None
    pooled_as = "stack"

    def forward(self, roi: Tensor, attention: list[Tensor]) -> Tensor:
        """
        Args:
            roi: Tensor[K, C, PH, PW].
            attention: those of the banks in use, of the same shape.
        """
        raise NotImplementedError

    def finish(self, pooled: Tensor) -> Tensor:
        """The same from what `merged_roi_align` with `pooled_as` returns.

        Args:
            pooled: Tensor[K, S * C, PH, PW] if stacked, else the refined Tensor[K, C, PH, PW].
        """
        return pooled


class ConcatMerge(Merge):
    """RoI feature + 1x1 convolution over the ReLU of RoI feature and attentions, concatenated.

    Without attentions it is what of it is no merit of the banks: the convolution.
    """

    # What convolves the attention starts at full scale. Where the attention does instead, few
    # channels learn only now and then at high learning rates; where neither does, the banks get
    # hardly any gradient and do not learn: projects/FSN/README.md, "How the banks begin".
    start = 0.0

    def __init__(self, channels: int, num_banks: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels * (1 + num_banks), channels, 1)
        start_convolution(self.conv, std=0.01, bias=0.0)
        if num_banks:
            nn.init.kaiming_normal_(self.conv.weight[:, channels:])

    def forward(self, roi: Tensor, attention: list[Tensor]) -> Tensor:
        return self.finish(torch.cat([roi, *attention], dim=1))

    def finish(self, pooled: Tensor) -> Tensor:
        return pooled[:, : self.conv.out_channels] + self.conv(F.relu(pooled))


class SumMerge(Merge):
    """RoI feature plus the attentions; without any, plain pooling."""

    start = 0.0
    pooled_as = "sum"

    def forward(self, roi: Tensor, attention: list[Tensor]) -> Tensor:
        return roi + _total(attention) if attention else roi


def _two_sigmoid(x: Tensor) -> Tensor:
    return 2 * torch.sigmoid(x)


class _Factor(NamedTuple):
    activation: Callable[[Tensor], Tensor]
    start: float  # the attention at which the factor is 1
    pooled_as: str


_FACTORS = {
    "identity": _Factor(lambda x: x, 1.0, "multiply"),
    "relu": _Factor(F.relu, 1.0, "multiply_relu"),
    "sigmoid": _Factor(_two_sigmoid, 0.0, "stack"),
}


class MultiplyMerge(Merge):
    """RoI feature times the activation of the summed attentions, most likely the paper's merge."""

    def __init__(self, activation: str, channels: int) -> None:
        super().__init__()
        self.activation, self.start, self.pooled_as = _FACTORS[activation]
        self.channels = channels

    def forward(self, roi: Tensor, attention: list[Tensor]) -> Tensor:
        return roi * self.activation(_total(attention))

    def finish(self, pooled: Tensor) -> Tensor:
        if self.pooled_as != "stack":
            return pooled
        roi, *attention = pooled.split(self.channels, dim=1)
        return self(roi, attention)


def build_merge(name: str, *, channels: int, num_banks: int, activation: str) -> Merge:
    """Builds a merge by its name.

    Args:
        name: MODEL.FSN.MERGE, "concat", "multiply" or "sum".
        channels: C.
        num_banks: how many attentions there will be. With 0 "multiply" is plain pooling, as "sum".
        activation: MODEL.FSN.ACTIVATION, of the factor of "multiply"; the others take any known
            one.

    Raises:
        ValueError: an unknown name or activation, or no channel.
    """
    require_positive("MODEL.FSN.CHANNELS", channels)
    if activation not in _FACTORS:
        raise ValueError(
            f"MODEL.FSN.ACTIVATION must be one of {sorted(_FACTORS)}, got {activation!r}"
        )
    builders: dict[str, Callable[[], Merge]] = {
        "concat": lambda: ConcatMerge(channels, num_banks),
        "multiply": lambda: MultiplyMerge(activation, channels),
        "sum": SumMerge,
    }
    if name not in builders:
        raise ValueError(f"MODEL.FSN.MERGE must be one of {sorted(builders)}, got {name!r}")
    if num_banks == 0 and name == "multiply":
        return SumMerge()
    return builders[name]()
