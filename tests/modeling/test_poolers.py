"""The pooler against a literal composition: Detectron2's own pooler on every map, then a choice."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from detectron2.modeling.poolers import ROIPooler, assign_boxes_to_levels
from detectron2.structures import Boxes
from torch import Tensor, nn
from torch.nn import functional as F

from fsn_d2.modeling import (
    AttentionBanks,
    DeferredMaps,
    SelectiveMaps,
    SelectiveROIPooler,
    build_merge,
    poolers,
)

RATIOS = [0.5, 1.0, 2.0]
CHANNELS = 6
HEIGHT, WIDTH = 512, 640  # of the padded batch
IMAGE_SIZES = [(512, 600), (400, 640)]
PYRAMID = (1 / 4, 1 / 8, 1 / 16, 1 / 32)
MERGES = [
    ("concat", "sigmoid"),
    ("sum", "sigmoid"),
    ("multiply", "identity"),
    ("multiply", "relu"),
    ("multiply", "sigmoid"),
]


def make_pooler(*, merge: str = "concat", activation: str = "sigmoid", **changes):
    """A pooler of both banks unless the changes say otherwise."""
    settings = {
        "output_size": 7,
        "scales": PYRAMID,
        "sampling_ratio": 2,
        "pooler_type": "ROIAlignV2",
        "sub_region": "roi",
        "grid": 3,
        "ratios": RATIOS,
        **changes,
    }
    num_banks = (settings["sub_region"] != "none") + bool(settings["ratios"])
    module = build_merge(merge, channels=CHANNELS, num_banks=num_banks, activation=activation)
    return SelectiveROIPooler(**settings, merge=module)


def random_maps(scales: tuple[float, ...], grid: int = 3) -> list[SelectiveMaps]:
    torch.manual_seed(1)

    def level(scale: float) -> SelectiveMaps:
        h, w = int(HEIGHT * scale), int(WIDTH * scale)
        return SelectiveMaps(
            torch.randn(2, CHANNELS, h, w),
            torch.randn(2, grid * grid, CHANNELS, h, w),
            torch.randn(2, len(RATIOS), CHANNELS, h, w),
            IMAGE_SIZES,
        )

    return [level(scale) for scale in scales]


@pytest.fixture
def box_lists(random_boxes: Callable[..., Boxes]) -> list[Boxes]:
    drawn = [random_boxes(24, *size, least=8, seed=i) for i, size in enumerate(IMAGE_SIZES)]
    biggest = Boxes(torch.tensor([[5.0, 6.0, 590.0, 500.0]]))  # random ones miss the last level
    return [Boxes.cat([drawn[0], biggest]), drawn[1]]


# The index of the map that bin (i, j) of a box reads, by the definitions.


def index_in_roi(box: Tensor, size: tuple, bins: tuple, i: int, j: int, grid: int) -> int:
    return (2 * i + 1) * grid // (2 * bins[0]) * grid + (2 * j + 1) * grid // (2 * bins[1])


def index_in_image(box: Tensor, size: tuple, bins: tuple, i: int, j: int, grid: int) -> int:
    x1, y1, x2, y2 = box.tolist()
    row = int((y1 + y2) / 2 / size[0] * grid)
    column = int((x1 + x2) / 2 / size[1] * grid)
    return row * grid + column


def index_of_ratio(box: Tensor) -> int:
    x1, y1, x2, y2 = box.tolist()
    ratio = (y2 - y1) / (x2 - x1)
    return 0 if ratio < math.sqrt(0.5) else 1 if ratio < math.sqrt(2.0) else 2


READINGS = {"roi": index_in_roi, "image": index_in_image}


def pool_every_map(banks: list[Tensor], boxes: list[Boxes], pooler: ROIPooler) -> Tensor:
    """Tensor[K, B, C, PH, PW]"""
    count = banks[0].shape[1]
    return torch.stack([pooler([bank[:, b] for bank in banks], boxes) for b in range(count)], dim=1)


def literal_attention(
    maps: list[SelectiveMaps], boxes: list[Boxes], pooler: ROIPooler, reading: str, grid: int
) -> tuple[Tensor, Tensor]:
    bins = pooler.output_size
    sub_region = pool_every_map([m.sub_region for m in maps], boxes, pooler)
    ratio = pool_every_map([m.aspect_ratio for m in maps], boxes, pooler)
    chosen_sub, chosen_ratio = torch.zeros_like(sub_region[:, 0]), torch.zeros_like(ratio[:, 0])
    flat = [(b, size) for bs, size in zip(boxes, IMAGE_SIZES, strict=True) for b in bs.tensor]
    for k, (box, size) in enumerate(flat):
        chosen_ratio[k] = ratio[k, index_of_ratio(box)]
        for i in range(bins[0]):
            for j in range(bins[1]):
                index = READINGS[reading](box, size, bins, i, j, grid)
                chosen_sub[k, :, i, j] = sub_region[k, index, :, i, j]
    return chosen_sub, chosen_ratio


def literal_merge(merge: nn.Module, name: str, activation: str, roi, sub_region, ratio) -> Tensor:
    if name == "concat":
        x = F.relu(torch.cat([roi, sub_region, ratio], dim=1))
        return roi + torch.einsum("kihw,oi->kohw", x, merge.conv.weight[:, :, 0, 0])
    if name == "sum":
        return roi + sub_region + ratio
    factor = sub_region + ratio
    by_name = {"identity": factor, "relu": factor.clamp(min=0), "sigmoid": 1 + (factor / 2).tanh()}
    return roi * by_name[activation]


def check_against_literal(pooler, merge, activation, maps, boxes, pooler_type="ROIAlignV2") -> None:
    size, ratio = pooler.output_size, pooler.sampling_ratio
    bilinear = ROIPooler(size, pooler.scales, ratio, "ROIAlignV2")
    roi = ROIPooler(size, pooler.scales, ratio, pooler_type)([m.roi for m in maps], boxes)
    attention = literal_attention(maps, boxes, bilinear, pooler.sub_region, pooler.grid)
    expected = literal_merge(pooler.merge, merge, activation, roi, *attention)
    torch.testing.assert_close(pooler(maps, boxes), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("scales", [PYRAMID, (1 / 16,)], ids=["pyramid", "one level"])
@pytest.mark.parametrize("reading", ["roi", "image"])
@pytest.mark.parametrize(("merge", "activation"), MERGES)
def test_equals_the_literal_composition(
    scales: tuple, reading: str, merge: str, activation: str, box_lists: list[Boxes]
) -> None:
    pooler = make_pooler(merge=merge, activation=activation, scales=scales, sub_region=reading)
    check_against_literal(pooler, merge, activation, random_maps(scales), box_lists)


def test_the_boxes_of_these_tests_lie_on_every_level_ratio_and_part_of_the_image(
    box_lists: list[Boxes],
) -> None:
    assert set(assign_boxes_to_levels(box_lists, 2, 5, 224, 4).tolist()) == {0, 1, 2, 3}
    assert {index_of_ratio(b) for boxes in box_lists for b in boxes.tensor} == {0, 1, 2}
    flat = [(b, s) for bs, s in zip(box_lists, IMAGE_SIZES, strict=True) for b in bs.tensor]
    assert len({index_in_image(b, s, (7, 7), 0, 0, 3) for b, s in flat}) >= 7


@torch.no_grad()
@pytest.mark.parametrize("reading", ["roi", "image"])
@pytest.mark.parametrize(
    ("output_size", "grid", "scales"),
    # Detectron2's own pooler serves other than square outputs on one level only.
    [((5, 8), 3, (1 / 16,)), (14, 2, PYRAMID), (2, 3, PYRAMID)],
)
def test_other_sizes_and_grids(
    reading: str, output_size: int | tuple, grid: int, scales: tuple, box_lists: list[Boxes]
) -> None:
    settings = {"output_size": output_size, "grid": grid, "scales": scales, "sampling_ratio": 0}
    pooler = make_pooler(sub_region=reading, **settings)
    check_against_literal(pooler, "concat", "sigmoid", random_maps(scales, grid), box_lists)


@torch.no_grad()
@pytest.mark.parametrize("pooler_type", ["ROIAlign", "ROIPool"])
@pytest.mark.parametrize("scales", [PYRAMID, (1 / 16,)], ids=["pyramid", "one level"])
def test_the_roi_feature_may_be_pooled_in_any_of_detectron2s_ways(
    pooler_type: str, scales: tuple, box_lists: list[Boxes]
) -> None:
    pooler = make_pooler(pooler_type=pooler_type, scales=scales)
    maps = random_maps(scales)
    check_against_literal(pooler, "concat", "sigmoid", maps, box_lists, pooler_type)


@torch.no_grad()
@pytest.mark.parametrize("pooler_type", ["ROIAlignV2", "ROIAlign", "ROIPool"])
@pytest.mark.parametrize("scales", [PYRAMID, (1 / 16,)], ids=["pyramid", "one level"])
def test_without_banks_it_is_plain_pooling_of_the_reduced_feature(
    pooler_type: str, scales: tuple, box_lists: list[Boxes]
) -> None:
    without = {"merge": "sum", "sub_region": "none", "ratios": []}
    pooler = make_pooler(pooler_type=pooler_type, scales=scales, **without)
    maps = random_maps(scales)
    expected = ROIPooler(7, scales, 2, pooler_type)([m.roi for m in maps], box_lists)
    torch.testing.assert_close(pooler(maps, box_lists), expected, atol=1e-5, rtol=1e-4)
    assert not list(pooler.parameters())


@torch.no_grad()
@pytest.mark.parametrize("kept", ["sub_region", "aspect_ratio"])
def test_each_bank_can_be_used_alone(kept: str, box_lists: list[Boxes]) -> None:
    alone = {"ratios": []} if kept == "sub_region" else {"sub_region": "none"}
    pooler = make_pooler(merge="sum", **alone)
    maps = random_maps(PYRAMID)
    bilinear = ROIPooler(7, PYRAMID, 2, "ROIAlignV2")
    sub_region, ratio = literal_attention(maps, box_lists, bilinear, "roi", 3)
    expected = bilinear([m.roi for m in maps], box_lists)
    expected = expected + (sub_region if kept == "sub_region" else ratio)
    torch.testing.assert_close(pooler(maps, box_lists), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_boxes_centred_outside_the_image_read_its_outermost_sub_regions() -> None:
    pooler = make_pooler(merge="sum", sub_region="image", ratios=[], scales=(1 / 16,))
    (maps,) = random_maps((1 / 16,))
    # One channel value per map makes the map that was read visible.
    levels = torch.arange(9.0).view(1, 9, 1, 1, 1).expand(2, 9, CHANNELS, 32, 40)
    maps = maps._replace(roi=torch.zeros_like(maps.roi), sub_region=levels)
    corners = Boxes(torch.tensor([[-90.0, -90, 60, 60], [590, 490, 630, 540]]))
    read = pooler([maps], [corners, Boxes(torch.zeros(0, 4))])
    assert read[:, 0].amax(dim=(1, 2)).tolist() == [0.0, 8.0]


# ---------------------------------------------------------------------------- with the banks


def make_stage(scales: tuple, merge: str, activation: str, bank_input: str, **changes):
    torch.manual_seed(0)
    pooler = make_pooler(merge=merge, activation=activation, scales=scales, **changes)
    banks = AttentionBanks(
        256,
        CHANNELS,
        grid=3,
        shift=1,
        num_ratios=len(RATIOS),
        kernel_size=1,
        input=bank_input,
        start=pooler.merge.start,
        readies_maps=False,
    )
    return banks, pooler


def features_for(scales: tuple) -> dict[str, Tensor]:
    return {
        f"p{i}": torch.randn(2, 256, int(HEIGHT * scale) // 4, int(WIDTH * scale) // 4)
        for i, scale in enumerate(scales)
    }


@torch.no_grad()
@pytest.mark.parametrize(("merge", "activation"), MERGES)
@pytest.mark.parametrize("reading", ["roi", "image"])
@pytest.mark.parametrize("bank_input", ["feature", "reduced"])
def test_every_merge_begins_close_to_plain_pooling(
    merge: str, activation: str, reading: str, bank_input: str, box_lists: list[Boxes]
) -> None:
    banks, pooler = make_stage(PYRAMID, merge, activation, bank_input, sub_region=reading)
    maps = list(banks(features_for(PYRAMID), IMAGE_SIZES).values())
    plain = ROIPooler(7, PYRAMID, 2, "ROIAlignV2")([m.roi for m in maps], box_lists)
    change = (pooler(maps, box_lists) - plain).norm() / plain.norm()
    # The attention deviates by 0.01 * sqrt(2 * 256) = 0.23 of a unit-variance feature, of the
    # reduced one by less; pooling averages it like the feature itself, whose variance the reduction
    # first doubles at most.
    assert 0 < change < 0.35


@pytest.mark.parametrize("scales", [PYRAMID, (1 / 16,)], ids=["pyramid", "one level"])
@pytest.mark.parametrize("reading", ["roi", "image"])
@pytest.mark.parametrize("counts", [(0, 0), (0, 3), (3, 0), (1, 1)])
@pytest.mark.parametrize(("merge", "activation"), MERGES)
@pytest.mark.parametrize("bank_input", ["feature", "reduced"])
def test_every_parameter_has_a_gradient_however_few_boxes_there_are(
    bank_input: str,
    scales: tuple,
    reading: str,
    counts: tuple,
    merge: str,
    activation: str,
    random_boxes: Callable[..., Boxes],
) -> None:
    banks, pooler = make_stage(scales, merge, activation, bank_input, sub_region=reading)
    boxes = [random_boxes(n, *size) for n, size in zip(counts, IMAGE_SIZES, strict=True)]
    pooled = pooler(list(banks(features_for(scales), IMAGE_SIZES).values()), boxes)
    assert pooled.shape == (sum(counts), CHANNELS, 7, 7)
    pooled.sum().backward()
    for name, parameter in [*banks.named_parameters(), *pooler.named_parameters()]:
        assert parameter.grad is not None, name
        assert sum(counts) or not parameter.grad.any(), name


def test_what_it_holds_beside_the_merge_is_not_saved() -> None:
    saved = set(make_pooler(merge="concat").state_dict())
    assert saved == {"merge.conv.weight", "merge.conv.bias"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sub_region": "centre"}, r"MODEL\.FSN\.SUB_REGION.*'centre'"),
        ({"ratios": [1.0, -2.0]}, r"MODEL\.FSN\.RATIOS.*-2\.0"),
        ({"ratios": [0.0]}, r"MODEL\.FSN\.RATIOS.*0\.0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_pooler(**changes)


@pytest.mark.parametrize("bank_input", ["feature", "reduced"])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("sub_region", ["roi", "image"])
@pytest.mark.parametrize("scales", [PYRAMID, (1 / 16,)])
@pytest.mark.parametrize("merge, activation", MERGES)
def test_fused_equals_composed(
    merge: str,
    activation: str,
    scales: tuple[float, ...],
    sub_region: str,
    sampling_ratio: int,
    bank_input: str,
    box_lists: list[Boxes],
) -> None:
    """Values and the gradient of every weight; the maps are ready, or read where they lie, or, of
    the reduced feature, never computed.
    """
    torch.manual_seed(2)
    # Partly and wholly off the map, and without area: there a bias counts less, or not at all.
    beyond = [[-40.0, -30, 60, 50], [560, 470, 700, 560], [-90, -80, -20, -10], [99, 99, 99, 140]]
    box_lists = [Boxes.cat([box_lists[0], Boxes(torch.tensor(beyond))]), box_lists[1]]
    features = {
        str(i): torch.randn(2, 8, int(HEIGHT * s), int(WIDTH * s)) for i, s in enumerate(scales)
    }
    settings = {"grid": 3, "shift": 1, "num_ratios": 3, "kernel_size": 1, "input": bank_input}
    fused = make_pooler(
        merge=merge,
        activation=activation,
        scales=scales,
        sub_region=sub_region,
        sampling_ratio=sampling_ratio,
    )
    composed = make_pooler(
        merge=merge,
        activation=activation,
        scales=scales,
        sub_region=sub_region,
        sampling_ratio=sampling_ratio,
        pooling="composed",
    )
    assert fused.is_fused and not composed.is_fused
    composed.load_state_dict(fused.state_dict())
    ready = AttentionBanks(8, CHANNELS, **settings, start=None)
    for parameter in ready.parameters():  # biases too, which begin at zero
        nn.init.normal_(parameter)
    results = []
    for pooler, readies_maps in ((composed, True), (fused, True), (fused, False)):
        banks = AttentionBanks(8, CHANNELS, **settings, start=None, readies_maps=readies_maps)
        banks.load_state_dict(ready.state_dict())
        modules = nn.ModuleList([banks, pooler])
        modules.zero_grad()
        maps = list(banks(features, IMAGE_SIZES).values())
        is_deferred = bank_input == "reduced" and not readies_maps
        assert isinstance(maps[0].sub_region, DeferredMaps) == is_deferred
        refined = pooler(maps, box_lists)
        (refined * torch.linspace(-1, 1, refined.numel()).view_as(refined)).sum().backward()
        results.append([refined.detach(), *(p.grad.clone() for p in modules.parameters())])
    assert len(results[0]) == (9 if merge == "concat" else 7)
    for result in results[1:]:
        for actual, expected in zip(result, results[0], strict=True):
            scale = max(1.0, expected.abs().max().item())
            torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize(("grid", "shift"), [(5, 1), (2, 1), (3, 2), (4, 3), (1, 1), (3, 0)])
def test_other_grids_and_shifts_are_read_as_if_maps_were_computed(
    grid: int, shift: int, box_lists: list[Boxes]
) -> None:
    torch.manual_seed(0)
    pooler = make_pooler(grid=grid)
    sizes = {str(s): (int(HEIGHT * s), int(WIDTH * s)) for s in PYRAMID}
    features = {s: torch.randn(2, 8, *size, requires_grad=True) for s, size in sizes.items()}
    settings = {"grid": grid, "shift": shift, "num_ratios": 3, "kernel_size": 1, "input": "reduced"}
    ready = AttentionBanks(8, CHANNELS, **settings, start=None)
    for parameter in ready.parameters():  # biases too, which begin at zero
        nn.init.normal_(parameter)
    results = []
    for readies_maps in (True, False):
        banks = AttentionBanks(8, CHANNELS, **settings, start=None, readies_maps=readies_maps)
        banks.load_state_dict(ready.state_dict())
        refined = pooler(list(banks(features, IMAGE_SIZES).values()), box_lists)
        weighted = refined * torch.linspace(-1, 1, refined.numel()).view_as(refined)
        leaves = [*features.values(), *banks.parameters()]
        results.append([refined, *torch.autograd.grad(weighted.sum(), leaves)])
    for actual, expected in zip(*results, strict=True):
        scale = max(1.0, expected.abs().max().item())
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * scale)


def test_other_pooler_types_are_composed_and_unknown_poolings_refused() -> None:
    assert not make_pooler(pooler_type="ROIPool").is_fused
    with pytest.raises(ValueError, match=r"MODEL\.FSN\.POOLING must be one of .* got 'fast'"):
        make_pooler(pooling="fast")


@torch.no_grad()
@pytest.mark.parametrize("pooler_type", ["ROIAlignV2", "ROIPool"])
@pytest.mark.parametrize("merge", ["concat", "multiply", "sum"])
def test_reading_gives_the_parts_of_what_is_merged(
    pooler_type: str, merge: str, box_lists: list[Boxes]
) -> None:
    torch.manual_seed(0)
    pooler = make_pooler(pooler_type=pooler_type, merge=merge)
    maps = random_maps(PYRAMID)
    reading = pooler.read(maps, box_lists)
    torch.testing.assert_close(reading.refined, pooler(maps, box_lists), atol=1e-5, rtol=1e-4)
    plain = ROIPooler(7, PYRAMID, 2, pooler_type)([m.roi for m in maps], box_lists)
    torch.testing.assert_close(reading.roi, plain, atol=1e-5, rtol=1e-4)
    bilinear = ROIPooler(7, PYRAMID, 2, "ROIAlignV2")
    expected = literal_attention(maps, box_lists, bilinear, "roi", 3)
    for found, wanted in zip(reading.attention, expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    sub_region, ratio = reading.bank_index
    assert sub_region.shape == ratio.shape == (*reading.roi.shape[:1], 7, 7)
    assert sub_region[0, 0].tolist() == [0, 0, 1, 1, 1, 2, 2]  # 7 bins over 3 sub-regions
    boxes = Boxes.cat(box_lists).tensor
    tall = (boxes[:, 3] - boxes[:, 1]) > 1.4143 * (boxes[:, 2] - boxes[:, 0])
    assert torch.equal(ratio[:, 0, 0] == 2, tall)


@torch.no_grad()
@pytest.mark.parametrize(("half", "tolerance"), [(False, 1e-5), (True, 0.1)])
@pytest.mark.parametrize("output_size", [7, (5, 1), 1])
@pytest.mark.parametrize("sub_region", ["roi", "image", "none"])
def test_maps_that_are_never_computed_are_read_as_if_they_were(
    sub_region: str, output_size, half: bool, tolerance: float, box_lists: list[Boxes]
) -> None:
    torch.manual_seed(0)
    pooler = make_pooler(sub_region=sub_region, output_size=output_size)
    features = {str(s): torch.randn(2, 8, int(HEIGHT * s), int(WIDTH * s)) for s in PYRAMID}
    grid = 0 if sub_region == "none" else 3
    settings = {"grid": grid, "shift": 1, "num_ratios": 3, "kernel_size": 1, "input": "reduced"}
    readings = []
    for readies_maps in (True, False):
        torch.manual_seed(1)
        banks = AttentionBanks(8, CHANNELS, **settings, start=None, readies_maps=readies_maps)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            readings.append(pooler.read(list(banks(features, IMAGE_SIZES).values()), box_lists))
    for expected, actual in zip(*readings, strict=True):
        torch.testing.assert_close(actual, expected, atol=tolerance, rtol=1e-4)


@pytest.mark.parametrize("sub_region", ["roi", "image"])
def test_gradients_of_deferred_maps_are_the_same_every_time(
    sub_region: str, random_boxes: Callable[..., Boxes]
) -> None:
    torch.manual_seed(0)
    pooler = make_pooler(sub_region=sub_region)
    settings = {"grid": 3, "shift": 1, "num_ratios": 3, "kernel_size": 1, "input": "reduced"}
    banks = AttentionBanks(8, CHANNELS, **settings, start=None, readies_maps=False)
    features = {str(s): torch.randn(2, 8, int(HEIGHT * s), int(WIDTH * s)) for s in PYRAMID}
    box_lists = [random_boxes(1500, *size, least=8, seed=i) for i, size in enumerate(IMAGE_SIZES)]
    found = []
    for _ in range(4):
        banks.zero_grad()
        refined = pooler(list(banks(features, IMAGE_SIZES).values()), box_lists)
        refined.square().sum().backward()
        found.append([parameter.grad.clone() for parameter in banks.parameters()])
    for gradients in found[1:]:
        assert all(map(torch.equal, gradients, found[0]))


def test_composed_pooling_refuses_deferred_maps(box_lists: list[Boxes]) -> None:
    settings = {"grid": 3, "shift": 1, "num_ratios": 3, "kernel_size": 1, "input": "reduced"}
    banks = AttentionBanks(8, CHANNELS, **settings, start=None, readies_maps=False)
    features = {str(s): torch.randn(2, 8, int(HEIGHT * s), int(WIDTH * s)) for s in PYRAMID}
    pooler = make_pooler(pooling="composed")
    with pytest.raises(ValueError, match="readies_maps=True"):
        pooler(list(banks(features, IMAGE_SIZES).values()), box_lists)


@pytest.mark.parametrize("scales", [PYRAMID, (1 / 16,)], ids=["pyramid", "one level"])
@pytest.mark.parametrize("sub_region", ["roi", "image"])
@pytest.mark.parametrize("defers", [False, True])
@pytest.mark.parametrize("trains", [False, True])
def test_many_rois_are_merged_in_portions_that_make_no_difference(
    trains: bool,
    defers: bool,
    sub_region: str,
    scales: tuple,
    random_boxes: Callable[..., Boxes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    pooler = make_pooler(scales=scales, sub_region=sub_region)
    settings = {"grid": 3, "shift": 1, "num_ratios": 3, "kernel_size": 1, "input": "reduced"}
    banks = AttentionBanks(8, CHANNELS, **settings, start=None, readies_maps=not defers)
    features = {str(s): torch.randn(2, 8, int(HEIGHT * s), int(WIDTH * s)) for s in scales}
    box_lists = [random_boxes(700, *size, least=8, seed=i) for i, size in enumerate(IMAGE_SIZES)]
    merged: list[int] = []
    finish = pooler.merge.finish
    monkeypatch.setattr(
        pooler.merge, "finish", lambda pooled: (merged.append(len(pooled)), finish(pooled))[1]
    )
    found = []
    for portion in (512, 10**9):
        monkeypatch.setattr(poolers, "PORTION", portion)
        stage = nn.ModuleList([banks, pooler])
        stage.zero_grad()
        with torch.set_grad_enabled(trains):
            refined = pooler(list(banks(features, IMAGE_SIZES).values()), box_lists)
        if trains:
            refined.square().sum().backward()
        gradients = [p.grad.clone() for p in stage.parameters() if p.grad is not None]
        found.append([refined.detach(), *gradients])
    assert merged == [512, 512, 376, 1400]
    assert len(found[0]) == (9 if trains else 1)
    for in_portions, at_once in zip(*found, strict=True):
        tolerance = 1e-5 * float(at_once.abs().max())
        torch.testing.assert_close(in_portions, at_once, atol=tolerance, rtol=1e-4)
