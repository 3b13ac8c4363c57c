"""Position-sensitive pooling: the order of channels above all, against torchvision and loops."""

from __future__ import annotations

import math

import pytest
import torch
from detectron2.modeling.poolers import assign_boxes_to_levels
from detectron2.structures import Boxes
from torch import Tensor, nn
from torchvision.ops import ps_roi_align

from fsn_d2.modeling import PositionSensitiveROIPooler, VotingROIPooler, bank_major, class_major

HEIGHT, WIDTH = 256, 320
SCALE = 1 / 16
CHANNELS = 5


def rois_of(boxes: list[Boxes]) -> Tensor:
    return torch.cat(
        [torch.nn.functional.pad(b.tensor, (1, 0), value=i) for i, b in enumerate(boxes)]
    )


def pooler(bins: int, pooling: str, scales: tuple[float, ...] = (SCALE,)):
    return PositionSensitiveROIPooler(bins=bins, scales=scales, sampling_ratio=2, pooling=pooling)


def maps_of(channels: int, scale: float = SCALE) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(2, channels, int(HEIGHT * scale), int(WIDTH * scale))


@pytest.fixture
def boxes(random_boxes) -> list[Boxes]:
    drawn = [random_boxes(n, HEIGHT, WIDTH, seed=n) for n in (12, 8)]
    drawn[0].tensor[:3] += torch.tensor([-30.0, -30.0, 90.0, 90.0])
    return drawn


# ---------------------------------------------------------------------------- order of channels


def test_bank_major_by_hand() -> None:
    """Two classes, three bins: c0b0 c0b1 c0b2 c1b0 c1b1 c1b2 -> b0c0 b0c1 b1c0 b1c1 b2c0 b2c1."""
    of_classes = torch.tensor([0, 1, 2, 10, 11, 12])
    of_banks = torch.tensor([0, 10, 1, 11, 2, 12])
    assert torch.equal(bank_major(of_classes, 3), of_banks)
    assert torch.equal(class_major(of_banks, 3), of_classes)


@pytest.mark.parametrize("dim", [0, 1])
def test_the_orders_are_inverse_to_each_other(dim: int) -> None:
    x = torch.randn(36, 36, 2)
    assert torch.equal(class_major(bank_major(x, 9, dim), 9, dim), x)
    assert not torch.equal(bank_major(x, 9, dim), x)


def test_each_bin_reads_its_own_map_row_by_row() -> None:
    """Map `bin` of channel c is constant 100 * c + bin, so the result names what was read."""
    k, channels = 3, 2
    constants = torch.tensor([100.0 * c + b for b in range(k * k) for c in range(channels)])
    maps = constants.view(1, -1, 1, 1).expand(1, -1, 20, 20).contiguous()
    boxes = [Boxes(torch.tensor([[16.0, 32, 200, 250], [30.0, 30, 35, 36]]))]
    expected = torch.arange(9.0).view(1, 1, 3, 3) + torch.tensor([0.0, 100]).view(1, 2, 1, 1)
    for pooling in ("avg", "max", "align"):
        pooled = pooler(k, pooling)([maps], boxes)
        torch.testing.assert_close(pooled, expected.expand(2, 2, 3, 3))


@pytest.mark.parametrize("k", [1, 3, 7])
def test_align_is_torchvisions_for_maps_in_its_order(k: int, boxes: list[Boxes]) -> None:
    of_classes = maps_of(CHANNELS * k * k)
    expected = ps_roi_align(of_classes, rois_of(boxes), k, SCALE, sampling_ratio=2)
    got = pooler(k, "align")([bank_major(of_classes, k * k, dim=1)], boxes)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_converted_convolution_gives_what_torchvision_gives_with_the_original(
    boxes: list[Boxes],
) -> None:
    k = 3
    original = nn.Conv2d(8, CHANNELS * k * k, 1)
    converted = nn.Conv2d(8, CHANNELS * k * k, 1)
    converted.weight.copy_(bank_major(original.weight, k * k))
    converted.bias.copy_(bank_major(original.bias, k * k))
    feature = maps_of(8)
    expected = ps_roi_align(original(feature), rois_of(boxes), k, SCALE, sampling_ratio=2)
    got = pooler(k, "align")([converted(feature)], boxes)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------------------------- pooling


def cells(start: int, count: int, bins: int, bin: int, size: int) -> range:
    """The paper's floor(j * w / k) .. ceil((j + 1) * w / k), moved and clipped."""
    first = start + math.floor(bin * count / bins)
    last = start + math.ceil((bin + 1) * count / bins)
    return range(max(first, 0), min(last, size))


def half_up(x: float) -> int:
    return math.floor(abs(x) + 0.5) * (1 if x >= 0 else -1)


def loop(maps: Tensor, rois: Tensor, k: int, scale: float, mode: str) -> Tensor:
    """Equation (1) cell by cell; channels bank-major."""
    channels = maps.shape[1] // (k * k)
    height, width = maps.shape[2:]
    out = torch.zeros(len(rois), channels, k, k)
    for r, roi in enumerate(rois):
        image, *corners = roi.tolist()
        x1, y1, x2, y2 = (half_up(c * scale) for c in corners)
        for i in range(k):
            for j in range(k):
                rows = cells(y1, max(y2 - y1 + 1, 1), k, i, height)
                columns = cells(x1, max(x2 - x1 + 1, 1), k, j, width)
                for c in range(channels):
                    plane = maps[int(image), (i * k + j) * channels + c]
                    values = [float(plane[y, x]) for y in rows for x in columns]
                    if values:
                        out[r, c, i, j] = (
                            max(values) if mode == "max" else sum(values) / len(values)
                        )
    return out


@pytest.mark.parametrize("k", [3, 7])
@pytest.mark.parametrize("mode", ["avg", "max"])
def test_whole_cells_against_a_loop(k: int, mode: str, boxes: list[Boxes]) -> None:
    maps = maps_of(2 * k * k)
    expected = loop(maps, rois_of(boxes), k, SCALE, mode)
    torch.testing.assert_close(pooler(k, mode)([maps], boxes), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mode", ["avg", "max", "align"])
def test_an_roi_reads_the_level_detectron2_assigns(mode: str, boxes: list[Boxes]) -> None:
    scales = (1 / 4, 1 / 8, 1 / 16)
    maps = [maps_of(CHANNELS * 9, s) for s in scales]
    pooled = pooler(3, mode, scales)(maps, boxes)
    levels = assign_boxes_to_levels(boxes, 2, 4, 224, 4)
    assert len(levels.unique()) > 1
    for level, scale in enumerate(scales):
        alone = pooler(3, mode, (scale,))([maps[level]], boxes)
        torch.testing.assert_close(pooled[levels == level], alone[levels == level])


@pytest.mark.parametrize("mode", ["avg", "max", "align"])
def test_the_vote_is_the_mean_of_the_responses_for_each_sibling(
    mode: str, boxes: list[Boxes]
) -> None:
    scales = (1 / 8, 1 / 16)
    levels = [(maps_of(4 * 9, s), maps_of(2 * 9, s)) for s in scales]
    voting = VotingROIPooler(bins=3, scales=scales, sampling_ratio=2, pooling=mode)
    for number, voted in enumerate(voting(levels, boxes)):
        responses = pooler(3, mode, scales)([level[number] for level in levels], boxes)
        by_hand = sum(responses[:, :, i, j] for i in range(3) for j in range(3)) / 9
        torch.testing.assert_close(voted, by_hand)


def test_it_has_neither_parameters_nor_saved_state() -> None:
    for cls in (PositionSensitiveROIPooler, VotingROIPooler):
        made = cls(bins=7, scales=(SCALE,), sampling_ratio=0, pooling="avg")
        assert not list(made.parameters())
        assert not made.state_dict()
