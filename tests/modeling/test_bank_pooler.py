"""The pooler of banks: with one map Detectron2's own, with several a choice of map per bin."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from torch import Tensor

from fsn_d2.modeling import BankROIPooler

HEIGHT, WIDTH = 256, 320
PYRAMID = (1 / 4, 1 / 8, 1 / 16, 1 / 32)
CHANNELS = 6
ONE_MAP = torch.zeros(1, 1, 1, dtype=torch.int64)


def maps_of(scales: tuple[float, ...], channels: int = CHANNELS) -> list[Tensor]:
    torch.manual_seed(1)
    shapes = [(2, channels, int(HEIGHT * s), int(WIDTH * s)) for s in scales]
    return [torch.randn(shape, requires_grad=True) for shape in shapes]


@pytest.fixture
def boxes(random_boxes) -> list[Boxes]:
    """Of two images; some reach out of theirs, two have no extent."""
    drawn = [random_boxes(n, HEIGHT, WIDTH, seed=n) for n in (30, 20)]
    drawn[0].tensor[:5] += torch.tensor([-20.0, -20.0, 60.0, 60.0])
    drawn[1].tensor[:2, 2:] = drawn[1].tensor[:2, :2]
    return drawn


# Detectron2 pools pyramids into squares only.
@pytest.mark.parametrize(
    ("scales", "output_size"), [(PYRAMID, 7), ((1 / 16,), 7), ((1 / 16,), (3, 5))]
)
@pytest.mark.parametrize(("pooling", "theirs"), [("max", "ROIPool"), ("align", "ROIAlignV2")])
def test_one_map_is_detectron2s_pooling_with_its_gradient(
    scales: tuple, pooling: str, theirs: str, output_size, boxes: list[Boxes]
) -> None:
    maps = maps_of(scales)
    ours = BankROIPooler(
        output_size=output_size,
        scales=scales,
        sampling_ratio=2,
        pooling=pooling,
        bank_index=ONE_MAP,
    )
    expected = ROIPooler(output_size, scales, 2, theirs)(maps, boxes)
    got = ours(maps, boxes)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    weights = torch.randn_like(expected)
    for mine, other in zip(
        torch.autograd.grad((got * weights).sum(), maps),
        torch.autograd.grad((expected * weights).sum(), maps),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["avg", "max", "align"])
def test_a_bin_reads_the_map_that_its_index_names(pooling: str, boxes: list[Boxes]) -> None:
    """Oracle: every map pooled on its own by the same pooler, then the choice."""
    num_maps = 3
    index = torch.randint(0, num_maps, (1, 4, 4), generator=torch.Generator().manual_seed(0))
    index[0, 0] = torch.tensor([0, 1, 2, 0])  # each is read
    maps = maps_of(PYRAMID, num_maps * CHANNELS)

    def pooler(bank_index: Tensor) -> BankROIPooler:
        return BankROIPooler(
            output_size=4,
            scales=PYRAMID,
            sampling_ratio=2,
            pooling=pooling,
            bank_index=bank_index,
        )

    each = torch.stack(
        [
            pooler(ONE_MAP)([m[:, b * CHANNELS : (b + 1) * CHANNELS] for m in maps], boxes)
            for b in range(num_maps)
        ]
    )
    expected = each.gather(0, index[None, :, None].expand(1, *each.shape[1:3], 4, 4))[0]
    torch.testing.assert_close(pooler(index)(maps, boxes), expected)


def test_no_boxes_give_no_features_but_a_gradient() -> None:
    nothing = [Boxes(torch.zeros(0, 4))] * 2
    for pooling in ("avg", "max", "align"):
        maps = maps_of(PYRAMID)
        pooler = BankROIPooler(
            output_size=7, scales=PYRAMID, sampling_ratio=0, pooling=pooling, bank_index=ONE_MAP
        )
        pooled = pooler(maps, nothing)
        assert pooled.shape == (0, CHANNELS, 7, 7)
        pooled.sum().backward()
        assert all(m.grad is not None and not m.grad.any() for m in maps)


def test_an_unknown_pooling_is_refused() -> None:
    with pytest.raises(ValueError, match="pooling"):
        BankROIPooler(
            output_size=7, scales=(1 / 16,), sampling_ratio=0, pooling="sum", bank_index=ONE_MAP
        )
