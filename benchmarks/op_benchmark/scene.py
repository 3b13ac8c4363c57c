"""What is pooled: maps as a convolution leaves them, and RoIs as a detector proposes them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from harness.proposals import draw_proposals
from torch import Tensor

RATIOS = (0.5, 1.0, 2.0)  # height / width, as Detectron2's anchors


@dataclass(frozen=True)
class Setting:
    """One point of the benchmark. The defaults are the base setting.

    Attributes:
        rois: K.
        channels: C, of every map.
        sampling_ratio: samples along each side of a bin; 0: adaptive.
        layout: "nchw" or "channels_last", of the convolutions' outputs.
        threads: CPU threads.
        device: "cpu" or "cuda".
        height, width: cells of a map.
        stride: image pixels per cell.
        bins: along each side of a RoI.
    """

    rois: int = 1000
    channels: int = 40
    sampling_ratio: int = 2
    layout: str = "nchw"
    threads: int = 2
    device: str = "cpu"
    height: int = 50
    width: int = 68
    stride: int = 16
    bins: int = 7

    @property
    def scale(self) -> float:
        return 1 / self.stride

    @property
    def output_size(self) -> tuple[int, int]:
        return (self.bins, self.bins)


def proposals(setting: Setting, seed: int = 0) -> Tensor:
    """RoIs of one image, Tensor[K, 5] of (batch index, x1, y1, x2, y2), pixels."""
    size = (setting.height * setting.stride, setting.width * setting.stride)
    boxes = draw_proposals(setting.rois, *size, seed)
    return torch.cat([torch.zeros(setting.rois, 1), boxes], dim=1).to(setting.device)


def conv_output(setting: Setting, maps: int, seed: int) -> Tensor:
    """Tensor[1, maps * C, H, W], bank-major, in the layout of the setting."""
    generator = torch.Generator().manual_seed(seed)
    size = (1, maps * setting.channels, setting.height, setting.width)
    return in_layout(torch.randn(size, generator=generator).to(setting.device), setting)


def in_layout(x: Tensor, setting: Setting) -> Tensor:
    is_last = setting.layout == "channels_last"
    return x.contiguous(memory_format=torch.channels_last if is_last else torch.contiguous_format)


def region_of_bin(bin: int, bins: int, grid: int) -> int:
    """The part of a RoI's side, cut into `grid`, in which the centre of a bin lies."""
    return (2 * bin + 1) * grid // (2 * bins)


def sub_region_index(setting: Setting, grid: int) -> Tensor:
    """int64 Tensor[1, PH, PW]: which of grid * grid maps a bin reads, by its place in the RoI."""
    line = torch.tensor([region_of_bin(i, setting.bins, grid) for i in range(setting.bins)])
    return (line[:, None] * grid + line)[None].to(setting.device)


def ratio_index(rois: Tensor) -> Tensor:
    """int64 Tensor[K, 1, 1]: the ratio nearest to the RoI's own, on a logarithmic scale."""
    sides = rois[:, 3:] - rois[:, 1:3]
    own = (sides[:, 1] / sides[:, 0]).log()
    known = torch.tensor(RATIOS, device=rois.device).log()
    return (own[:, None] - known).abs().argmin(dim=1)[:, None, None]
