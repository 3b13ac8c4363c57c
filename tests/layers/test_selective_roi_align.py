"""`selective_roi_align`, compiled and in plain PyTorch, against a literal loop over the samples,
numbers worked by hand, Detectron2's ROIAlign and torchvision's position-sensitive RoIAlign.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from fsn_d2.layers import op_library_path, selective_roi_align, selective_roi_align_reference

BACKWARD = torch.ops.fsn_d2.selective_roi_align_backward
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
STRIDE = 8.0
HEIGHT, WIDTH = 13, 17

needs_library = pytest.mark.skipif(op_library_path() is None, reason="the extension is not built")
both_implementations = pytest.mark.parametrize(
    "pool",
    [
        pytest.param(selective_roi_align, id="compiled", marks=needs_library),
        pytest.param(selective_roi_align_reference, id="reference"),
    ],
)


def rois_of_all_kinds(count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """RoIs in and around two images: whole and broken sizes, both orders of corners, no extent."""
    generator = torch.Generator().manual_seed(count)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    image_size = torch.tensor([WIDTH, HEIGHT]) * STRIDE
    centers = (uniform(count, 2) * 1.6 - 0.3) * image_size
    sides = uniform(count, 2) ** 2 * 1.2 * image_size
    kind = torch.arange(count) % 10
    sides[kind == 0] = 0
    sides[kind == 1, 0] = 0
    sides[kind == 2] *= -1
    sides[kind == 3, 1] *= -1
    centers[kind == 4] += 3 * image_size  # outside
    corners = torch.cat([centers - sides / 2, centers + sides / 2], 1)
    snapped = kind == 5  # samples on cells, and one cell from the map
    corners[snapped] = (corners[snapped] / STRIDE).round() * STRIDE + STRIDE / 2
    corners[kind == 6] = torch.cat([torch.zeros(2), image_size]).double()
    image = torch.arange(count)[:, None] % 2
    return torch.cat([image, corners], 1).to(dtype)


def rois_on_small_map(count: int) -> Tensor:
    """RoIs of two images, each over a part of a map of 6 x 5 cells: none of them pools to 0."""
    generator = torch.Generator().manual_seed(count)
    corners = torch.rand(count, 4, generator=generator) * 20 + torch.tensor([0, 0, 20, 24])
    return torch.cat([torch.arange(count)[:, None] % 2, corners], 1)


def takes_no_adaptive_sample(rois: Tensor) -> Tensor:
    """RoIs without a positive extent. torchvision divides 0 by 0 there, or refuses them."""
    return (rois[:, 3:] <= rois[:, 1:3]).any(1)


def rois_that_torchvision_takes(count: int, dtype: torch.dtype, ratio: int) -> Tensor:
    rois = rois_of_all_kinds(2 * count, dtype)
    return (rois if ratio else rois[~takes_no_adaptive_sample(rois)])[:count]


def assert_near(actual: Tensor, expected: Tensor) -> None:
    """Equal up to TOLERANCE of the largest value, or of 1 where all are smaller."""
    assert actual.shape == expected.shape and actual.dtype == expected.dtype
    assert expected.abs().sum() > 0, "an oracle of zeros shows nothing"
    scale = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE[actual.dtype] * scale)


def assert_same_pooling(ours: Callable, oracle: Callable, input: Tensor) -> None:
    """Compares two poolings of `input`: values, and gradients for one random grad_output."""
    inputs = [input.clone().requires_grad_() for _ in range(2)]
    pooled, expected = ours(inputs[0]), oracle(inputs[1])
    assert_near(pooled, expected)
    weights = torch.randn(expected.shape, dtype=input.dtype)
    pooled.backward(weights)
    expected.backward(weights)
    assert inputs[0].grad is not None and inputs[1].grad is not None
    assert_near(inputs[0].grad, inputs[1].grad)


def tent(position: float, cell: int, cells: int) -> float:
    """Weight of `cell` at `position` of an axis: linear between cells, constant past the last."""
    return max(0.0, 1.0 - abs(min(max(position, 0.0), cells - 1.0) - cell))


def sample(bank_map: Tensor, y: float, x: float) -> Tensor:
    """Tensor[C]: one sample of Tensor[C, H, W], by the definition of bilinear interpolation."""
    _, height, width = bank_map.shape
    total = torch.zeros_like(bank_map[:, 0, 0])
    if -1 <= y <= height and -1 <= x <= width:
        for row, column in itertools.product(range(height), range(width)):
            weight = tent(y, row, height) * tent(x, column, width)
            total += weight * bank_map[:, row, column]
    return total


def pool_by_loops(
    input: Tensor, rois: Tensor, index: Tensor, size: list[int], scale: float, ratio: int
) -> Tensor:
    """The op by its definition: bin after bin, sample after sample. `index`: [K, PH, PW]."""
    pooled = torch.zeros(len(rois), input.shape[2], *size, dtype=input.dtype)
    for k, (image, x1, y1, x2, y2) in enumerate(rois.tolist()):
        bin_height, bin_width = (y2 - y1) * scale / size[0], (x2 - x1) * scale / size[1]
        down, across = (ratio or max(0, math.ceil(side)) for side in (bin_height, bin_width))
        for i, j in itertools.product(range(size[0]), range(size[1])):
            bank_map = input[int(image), index[k, i, j]]
            for a, b in itertools.product(range(down), range(across)):
                y = y1 * scale - 0.5 + (i + (a + 0.5) / down) * bin_height
                x = x1 * scale - 0.5 + (j + (b + 0.5) / across) * bin_width
                pooled[k, :, i, j] += sample(bank_map, y, x) / (down * across)
    return pooled


# --- values ---------------------------------------------------------------------------------------


@both_implementations
def test_samples_worked_by_hand(pool: Callable) -> None:
    """On the map 4 * row + column; samples fall on cells (1, 1), (1, 2), (2, 1), (2, 2)."""
    ramp = torch.arange(16.0).view(1, 1, 1, 4, 4)
    zero = torch.tensor([0])
    pooled = pool(ramp, torch.tensor([[0.0, 1, 1, 3, 3]]), zero, [2, 2], 1.0, 1)
    assert pooled.tolist() == [[[[5, 6], [9, 10]]]]
    # Twice the pixels at half the scale is the same place.
    pooled = pool(ramp, torch.tensor([[0.0, 2, 2, 6, 6]]), zero, [2, 2], 0.5, 1)
    assert pooled.tolist() == [[[[5, 6], [9, 10]]]]
    # Samples at -1.5 and 0.5 along both axes: three of four are outside, the fourth reads 2.5.
    pooled = pool(ramp, torch.tensor([[0.0, -2, -2, 2, 2]]), zero, [1, 1], 1.0, 2)
    assert pooled.tolist() == [[[[2.5 / 4]]]]
    # One sample at (row 3.5, column 1): within one cell of the map, so the last row counts.
    pooled = pool(ramp, torch.tensor([[0.0, 1, 3.5, 2, 4.5]]), zero, [1, 1], 1.0, 1)
    assert pooled.tolist() == [[[[13]]]]


@both_implementations
@pytest.mark.parametrize(
    "roi",
    [
        pytest.param([-9.0, -9, 3.5, 3.5], id="samples outside of the map"),
        pytest.param([1.0, 1, 3, 3], id="samples on cells"),
    ],
)
def test_what_no_sample_reads_may_be_infinite(pool: Callable, roi: list[float]) -> None:
    bank = torch.arange(1, 17.0).view(1, 1, 1, 4, 4)
    infinite = bank.clone()
    infinite[..., 0, :] = infinite[..., 3, :] = torch.inf
    infinite[..., 0] = infinite[..., 3] = torch.nan
    arguments = torch.tensor([[0, *roi]]), torch.tensor([0]), [2, 2], 1.0, 2 if roi[0] < 0 else 1
    pooled = pool(bank, *arguments)
    assert pooled.any() and pool(infinite, *arguments).equal(pooled)


@both_implementations
def test_a_bin_reads_the_map_that_bank_index_names(pool: Callable) -> None:
    """Maps hold 100 * image + 10 * map + channel everywhere."""
    image, map_, channel = torch.arange(2), torch.arange(3), torch.arange(2)
    values = 100 * image[:, None, None] + 10 * map_[:, None] + channel
    bank = values[..., None, None].expand(2, 3, 2, 4, 5).float()
    rois = torch.tensor([[1.0, 1, 1, 3, 3], [0.0, 1, 1, 4, 3]])
    index = torch.tensor([[[0, 1, 2], [2, 1, 0]], [[1, 1, 1], [0, 0, 2]]])
    pooled = pool(bank, rois, index, [2, 3], 1.0, 2)
    expected = [
        [[[100, 110, 120], [120, 110, 100]], [[101, 111, 121], [121, 111, 101]]],
        [[[10, 10, 10], [0, 0, 20]], [[11, 11, 11], [1, 1, 21]]],
    ]
    torch.testing.assert_close(pooled, torch.tensor(expected).float(), rtol=1e-6, atol=1e-5)


@both_implementations
@pytest.mark.parametrize("ratio", [0, 1, 3])
@pytest.mark.parametrize("shape", [(2, 4, 2, 5, 6), (2, 2, 1, 1, 7), (2, 1, 3, 1, 1)])
def test_equals_a_literal_loop(pool: Callable, ratio: int, shape: tuple[int, ...]) -> None:
    torch.manual_seed(ratio)
    bank = torch.randn(shape, dtype=torch.float64)
    rois = rois_of_all_kinds(20, torch.float64)
    rois[:, 1:] *= torch.tensor([shape[4] / WIDTH, shape[3] / HEIGHT] * 2)
    index = torch.randint(shape[1], (20, 2, 3))
    expected = pool_by_loops(bank, rois, index, [2, 3], 1 / STRIDE, ratio)
    assert_near(pool(bank, rois, index, [2, 3], 1 / STRIDE, ratio), expected)


@both_implementations
@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(7, 7), (2, 5)])
def test_one_map_equals_detectron2_roi_align(
    pool: Callable, ratio: int, dtype: torch.dtype, size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    rois = rois_that_torchvision_takes(1000, dtype, ratio)
    oracle = pytest.importorskip("detectron2.layers").ROIAlign(
        size, 1 / STRIDE, ratio, aligned=True
    )
    index = torch.zeros(1, dtype=torch.long)
    assert_same_pooling(
        lambda x: pool(x.unflatten(1, (1, 3)), rois, index, list(size), 1 / STRIDE, ratio),
        lambda x: oracle(x, rois),
        torch.randn(2, 3, HEIGHT, WIDTH, dtype=dtype),
    )


@both_implementations
@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(3, 3), (2, 4)])
def test_one_map_per_bin_equals_position_sensitive_roi_align(
    pool: Callable, ratio: int, dtype: torch.dtype, size: tuple[int, int]
) -> None:
    """torchvision's channels are class-major, channel = c * PH * PW + bin; ours are bank-major."""
    ps_roi_align = pytest.importorskip("torchvision.ops").ps_roi_align
    torch.manual_seed(1)
    bins = size[0] * size[1]
    rois = rois_that_torchvision_takes(1000, dtype, ratio)

    def oracle(bank: Tensor) -> Tensor:
        class_major = bank.transpose(1, 2).flatten(1, 2)
        return ps_roi_align(class_major, rois, size, 1 / STRIDE, ratio)

    assert_same_pooling(
        lambda x: pool(x, rois, torch.arange(bins).view(size), list(size), 1 / STRIDE, ratio),
        oracle,
        torch.randn(2, bins, 2, HEIGHT, WIDTH, dtype=dtype),
    )


@pytest.mark.parametrize("ratio", [0, 2])
@needs_library
def test_compiled_and_reference_agree_on_a_bank(ratio: int) -> None:
    torch.manual_seed(2)
    rois = rois_of_all_kinds(1000)
    index = torch.randint(5, (1000, 3, 4))
    arguments = (rois, index, [3, 4], 1 / STRIDE, ratio)
    assert_same_pooling(
        lambda x: selective_roi_align(x, *arguments),
        lambda x: selective_roi_align_reference(x, *arguments),
        torch.randn(2, 5, 3, HEIGHT, WIDTH),
    )


@both_implementations
def test_adaptive_sampling_of_an_roi_without_positive_extent_gives_0(pool: Callable) -> None:
    rois = rois_of_all_kinds(1000)
    rois = rois[takes_no_adaptive_sample(rois)]
    assert len(rois) > 400
    bank = torch.ones(2, 1, 2, HEIGHT, WIDTH, requires_grad=True)
    pooled = pool(bank, rois, torch.tensor([0]), [3, 3], 1 / STRIDE, 0)
    (grad,) = torch.autograd.grad(pooled.sum(), bank)
    assert pooled.count_nonzero() == 0 and grad.count_nonzero() == 0


@both_implementations
def test_an_roi_without_extent_gives_the_value_at_its_point(pool: Callable) -> None:
    """With a fixed number of samples; by its size it gets no sample, and so 0."""
    ramp = torch.arange(16.0).view(1, 1, 1, 4, 4)
    rois = torch.tensor([[0.0, 2.5, 1.5, 2.5, 1.5]])
    assert pool(ramp, rois, torch.tensor([0]), [2, 2], 1.0, 2).unique().tolist() == [6.0]
    assert pool(ramp, rois, torch.tensor([0]), [2, 2], 1.0, 0).unique().tolist() == [0.0]


@both_implementations
def test_an_roi_much_larger_than_the_map_equals_roi_align(pool: Callable) -> None:
    roi_align = pytest.importorskip("torchvision.ops").roi_align
    torch.manual_seed(3)
    bank = torch.randn(1, 2, 3, 8, 6, dtype=torch.float64)
    rois = torch.tensor(
        [[0, -700, -500, 900, 1000], [0, -1500, 2, 3, 5], [0, -3, -900, 4, 600]],
        dtype=torch.float64,
    )
    for bins, scale in ((1, 1.0), (3, 1.0), (5, 0.5)):
        expected = roi_align(bank[:, 1], rois, bins, scale, 0, aligned=True)
        assert_near(pool(bank, rois, torch.tensor([1]), [bins, bins], scale, 0), expected)


@both_implementations
@pytest.mark.parametrize("ratio", [0, 2, 100])
@pytest.mark.parametrize("far", [1e6, 1e9, 1e30, 3e38])
def test_huge_coordinates_end_and_stay_finite(pool: Callable, ratio: int, far: float) -> None:
    """A mean over samples in a map of ones lies in [0, 1], however many samples there are."""
    corners = [
        (-far, -far, far, far),
        (far, far, -far, -far),
        (0, 0, far, far),
        (-far, -far, 5, 5),
        (0, -far, 5, far),
        (far, far, far, far),
        (-far, -far, -far, -far),
    ]
    rois = torch.tensor([(0.0, *c) for c in corners])
    ones = torch.ones(1, 1, 1, 5, 6)
    pooled = pool(ones, rois, torch.tensor([0]), [2, 2], 1.0, ratio)
    assert ((pooled >= 0) & (pooled <= 1 + 1e-6)).all()
    assert (pooled[-2:] == 0).all()


@both_implementations
def test_a_roi_that_float32_cannot_hold_is_refused_beside_a_float32_bank(pool: Callable) -> None:
    rois = torch.tensor([[0, 1, 1, 1e300, 4]], dtype=torch.float64)
    with pytest.raises(RuntimeError, match="must be finite"):
        pool(torch.ones(1, 1, 1, 5, 6), rois, torch.tensor([0]), [2, 2], 1.0, 2)
    pooled = pool(torch.ones(1, 1, 1, 5, 6).double(), rois, torch.tensor([0]), [2, 2], 1.0, 2)
    assert pooled.isfinite().all()


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1e30, 1e300])
@pytest.mark.parametrize("ratio", [0, 2])
@both_implementations
def test_extreme_scales_stay_finite(pool: Callable, scale: float, ratio: int) -> None:
    """Scales at which coordinates leave the range of float32, to zero or to infinity."""
    rois = rois_of_all_kinds(20)
    pooled = pool(torch.ones(2, 1, 1, 5, 6), rois, torch.tensor([0]), [2, 2], scale, ratio)
    assert ((pooled >= 0) & (pooled <= 1 + 1e-6)).all()


@both_implementations
def test_a_cell_that_no_sample_touches_has_no_influence(pool: Callable) -> None:
    """Samples at 2.5 and 8.5 touch the cells 2, 3, 8 and 9 of each axis."""
    bank = torch.ones(1, 1, 1, 12, 12)
    bank[..., 5, 5] = math.inf
    rois = torch.tensor([[0.0, 0, 0, 12, 12]])
    assert pool(bank, rois, torch.tensor([0]), [1, 1], 1.0, 2).tolist() == [[[[1.0]]]]


# --- layouts and forms of the arguments -----------------------------------------------------------


def layouts(bank: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The values of `bank` under other strides."""
    n, b, c, h, w = bank.shape
    last = bank.flatten(1, 2).contiguous(memory_format=torch.channels_last)
    yield "channels last", last.unflatten(1, (b, c))
    yield "transposed", bank.transpose(-1, -2).contiguous().transpose(-1, -2)
    yield "class-major", bank.transpose(1, 2).contiguous().transpose(1, 2)
    wide = bank.new_full((n, b, 2 * c, h + 3, 2 * w), math.nan)
    wide[:, :, ::2, 1 : h + 1, 1::2] = bank
    yield "strided view", wide[:, :, ::2, 1 : h + 1, 1::2]


@both_implementations
def test_strides_do_not_matter(pool: Callable) -> None:
    torch.manual_seed(4)
    bank = torch.randn(2, 3, 4, 6, 5)
    rois, index = rois_of_all_kinds(40), torch.randint(3, (40, 2, 3))
    expected = pool(bank, rois, index, [2, 3], 1 / STRIDE, 2)
    assert expected.is_contiguous()
    for name, view in layouts(bank):
        assert not view.is_contiguous() and view.equal(bank)
        assert pool(view, rois, index, [2, 3], 1 / STRIDE, 2).equal(expected), name
    columns = torch.full((5, 80), math.nan)
    columns[:, ::2] = rois.t()
    strided = index.transpose(0, 2).contiguous().transpose(0, 2)
    assert pool(bank, columns.t()[::2], strided, [2, 3], 1 / STRIDE, 2).equal(expected)


@both_implementations
def test_expanded_tensors(pool: Callable) -> None:
    """Stride 0 in every argument, and in the gradient that comes back from a sum."""
    one = torch.randn(1, 1, 1, 6, 5)
    roi = torch.tensor([[1.0, 3, 4, 30, 28]])
    index = torch.tensor([[[1]]])
    few = [one.expand(2, 3, 4, 6, 5), roi.expand(7, 5), index.expand(7, 2, 3)]
    many = [t.contiguous() for t in few]
    grads = []
    for bank, rois, indices in (few, many):
        bank = bank.detach().requires_grad_()
        pooled = pool(bank, rois, indices, [2, 3], 1 / STRIDE, 0)
        grads.append(torch.autograd.grad(pooled.sum(), bank)[0])
    assert grads[0].equal(grads[1]) and grads[0].sum() > 0
    assert pool(*few, [2, 3], 0.125, 0).equal(pool(*many, [2, 3], 0.125, 0))


@both_implementations
@pytest.mark.parametrize(
    "shape", [(), (1,), (3,), (2, 1), (2, 3), (6, 1, 1), (1, 2, 3), (6, 1, 3), (6, 2, 3)]
)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_bank_index_broadcasts_in_any_integer_type(
    pool: Callable, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    torch.manual_seed(5)
    bank, rois = torch.randn(2, 4, 2, 6, 5), rois_on_small_map(6)
    index = torch.randint(4, shape)
    expected = pool(bank, rois, index.expand(6, 2, 3).contiguous(), [2, 3], 1 / STRIDE, 2)
    assert (expected != 0).all()
    assert pool(bank, rois, index.to(dtype), [2, 3], 1 / STRIDE, 2).equal(expected)


def test_output_size_is_a_number_or_a_pair() -> None:
    bank, rois, index = torch.randn(2, 1, 2, 6, 5), rois_on_small_map(6), torch.tensor([0])
    number = selective_roi_align(bank, rois, index, 3, 1 / STRIDE, 2)
    assert number.shape == (6, 2, 3, 3)
    for pair in ((3, 3), torch.Size([3, 3])):
        assert selective_roi_align(bank, rois, index, pair, 1 / STRIDE, 2).equal(number)
    assert selective_roi_align(bank, rois, index, (2, 5), 1 / STRIDE, 2).shape == (6, 2, 2, 5)


@both_implementations
def test_many_bins(pool: Callable) -> None:
    """Far more bins than cells: every row of the output reads the middle of its own bin."""
    ramp = torch.arange(100.0).view(1, 1, 1, 100, 1)
    rois = torch.tensor([[0.0, 0.0, 10.5, 1.0, 60.5]])
    pooled = pool(ramp, rois, torch.tensor([0]), [20000, 1], 1.0, 1)
    expected = 10 + (torch.arange(20000.0) + 0.5) * 50 / 20000
    torch.testing.assert_close(pooled.flatten(), expected, rtol=0, atol=1e-4)


@both_implementations
@pytest.mark.parametrize(
    "bank_shape, rois",
    [
        ((2, 3, 4, 6, 5), 0),
        ((0, 3, 4, 6, 5), 0),
        ((2, 3, 0, 6, 5), 5),
        ((2, 3, 4, 0, 5), 5),
        ((2, 3, 4, 6, 0), 5),
        ((2, 3, 4, 0, 0), 0),
        ((2, 0, 4, 6, 5), 0),
    ],
)
@pytest.mark.parametrize("ratio", [0, 2])
def test_empty_arguments(
    pool: Callable, bank_shape: tuple[int, ...], rois: int, ratio: int
) -> None:
    """The right shapes, forward and backward; a map without cells gives 0."""
    bank = torch.randn(bank_shape, requires_grad=True)
    index = torch.zeros(rois, 1, 1, dtype=torch.long)
    pooled = pool(bank, rois_of_all_kinds(rois), index, [2, 3], 1 / STRIDE, ratio)
    assert pooled.shape == (rois, bank_shape[2], 2, 3) and pooled.count_nonzero() == 0
    (grad,) = torch.autograd.grad(pooled.sum(), bank)
    assert grad.shape == bank_shape and grad.count_nonzero() == 0


# --- types and gradients --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_computed_in_float32(dtype: torch.dtype) -> None:
    """RoIs in float32 keep their precision; the result is rounded once."""
    torch.manual_seed(6)
    bank = torch.randn(2, 3, 4, 6, 5).to(dtype).requires_grad_()
    rois, index = rois_of_all_kinds(40), torch.randint(3, (40, 2, 3))
    rois[:, 1:] += 0.0123  # neither type holds these coordinates
    exact = bank.detach().float().requires_grad_()
    pooled = selective_roi_align(bank, rois, index, (2, 3), 1 / STRIDE, 0)
    expected = selective_roi_align(exact, rois, index, (2, 3), 1 / STRIDE, 0)
    assert pooled.dtype == dtype and pooled.equal(expected.to(dtype))
    (grad,) = torch.autograd.grad(pooled.sum(), bank)
    (expected_grad,) = torch.autograd.grad(expected.sum(), exact)
    assert grad.dtype == dtype and grad.equal(expected_grad.to(dtype))


def test_rois_follow_the_dtype_of_input() -> None:
    bank, rois = torch.randn(2, 1, 2, 6, 5, dtype=torch.float64), rois_of_all_kinds(20)
    pooled = selective_roi_align(bank, rois, torch.tensor([0]), 3, 1 / STRIDE, 2)
    assert pooled.dtype == torch.float64
    expected = selective_roi_align(bank, rois.double(), torch.tensor([0]), 3, 1 / STRIDE, 2)
    assert pooled.equal(expected)


def test_autocast() -> None:
    conv = torch.nn.Conv2d(3, 8, 1)
    with torch.autocast("cpu", torch.bfloat16):
        bank = conv(torch.randn(2, 3, 6, 5)).unflatten(1, (2, 4))
        pooled = selective_roi_align(
            bank, rois_on_small_map(20), torch.tensor([1]), 3, 1 / STRIDE, 2
        )
    assert bank.dtype == pooled.dtype == torch.bfloat16
    pooled.sum().backward()
    assert conv.weight.grad is not None
    assert conv.weight.grad[:4].count_nonzero() == 0  # map 0 is not read
    assert conv.weight.grad[4:].count_nonzero() > 0


@both_implementations
@pytest.mark.parametrize("ratio", [0, 2])
def test_gradcheck(pool: Callable, ratio: int) -> None:
    torch.manual_seed(7)
    bank = torch.randn(2, 2, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    rois = rois_of_all_kinds(20, torch.float64)
    rois[:, 1:] *= 0.25
    index = torch.randint(2, (20, 2, 3))
    assert torch.autograd.gradcheck(
        lambda x: pool(x, rois, index, [2, 3], 1 / STRIDE, ratio), (bank,)
    )


def test_rois_get_no_gradient() -> None:
    """As in ROIAlign. That they require one must not disturb the gradient of the input."""
    bank = torch.randn(2, 1, 2, 6, 5, requires_grad=True)
    rois = rois_on_small_map(10)
    (expected,) = torch.autograd.grad(
        selective_roi_align(bank, rois, torch.tensor([0]), 2, 1 / STRIDE, 2).sum(), bank
    )
    rois.requires_grad_()
    pooled = selective_roi_align(bank, rois, torch.tensor([0]), 2, 1 / STRIDE, 2)
    grads = torch.autograd.grad(pooled.sum(), (bank, rois), allow_unused=True)
    assert grads[0].equal(expected) and grads[1] is None
    frozen = selective_roi_align(bank.detach(), rois, torch.tensor([0]), 2, 1 / STRIDE, 2)
    assert frozen.equal(pooled)


def test_second_derivatives_are_right() -> None:
    """For pooled = A x: |pooled|^2 has the gradient 2 A^T A x, a linear map of x once more."""
    torch.manual_seed(8)
    bank = torch.randn(1, 1, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor([[0.0, 0, 0, 20, 20]], dtype=torch.float64)
    pool = functools.partial(
        selective_roi_align,
        rois=rois,
        bank_index=torch.tensor([0]),
        output_size=2,
        spatial_scale=1 / STRIDE,
        sampling_ratio=2,
    )
    (grad,) = torch.autograd.grad(pool(bank).square().sum(), bank, create_graph=True)
    (second,) = torch.autograd.grad(grad.sum(), bank)
    matrix = torch.stack([pool(e.view_as(bank)).flatten() for e in torch.eye(9).double()], 1)
    torch.testing.assert_close(second.flatten(), (2 * matrix.T @ matrix).sum(0))


@pytest.fixture
def restore_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("restore_threads")
@pytest.mark.parametrize("ratio", [0, 2])
def test_the_number_of_threads_does_not_change_a_bit(ratio: int) -> None:
    torch.manual_seed(9)
    bank = torch.randn(2, 3, 8, HEIGHT, WIDTH, requires_grad=True)
    rois, index = rois_of_all_kinds(500), torch.randint(3, (500, 7, 7))
    weights = torch.randn(500, 8, 7, 7)
    results = []
    for threads in (1, 2, 5, 2):
        torch.set_num_threads(threads)
        pooled = selective_roi_align(bank, rois, index, 7, 1 / STRIDE, ratio)
        results.append((pooled, *torch.autograd.grad(pooled, bank, weights)))
    for pooled, grad in results[1:]:
        assert pooled.equal(results[0][0]) and grad.equal(results[0][1])


# --- what PyTorch asks of an op -------------------------------------------------------------------


@pytest.mark.parametrize("rois", [0, 6])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(rois: int, requires_grad: bool) -> None:
    bank = torch.randn(2, 3, 2, 6, 5, requires_grad=requires_grad)
    index = torch.zeros(rois, 2, 3, dtype=torch.long)
    arguments = ([bank], rois_of_all_kinds(rois), None, [index], [], [2, 3], [1 / STRIDE], 2, "sum")
    torch.library.opcheck(torch.ops.fsn_d2.selective_roi_align.default, arguments)


@pytest.mark.parametrize("rois", [0, 6])
def test_opcheck_backward(rois: int) -> None:
    index = torch.zeros(rois, 2, 3, dtype=torch.long)
    arguments = (rois_of_all_kinds(rois), None, [index], [], [1 / STRIDE], 2, "sum")
    for planes in (False, True):
        grad = torch.randn(rois, 2, 2, 3)
        torch.library.opcheck(
            BACKWARD.default, (grad, [], [2, 3, 2, 6, 5], planes, False, *arguments)
        )


def test_compiles_as_one_graph_for_any_number_of_rois() -> None:
    graphs = []

    def count_graphs(graph: torch.fx.GraphModule, example_inputs: list) -> Callable:
        graphs.append(graph)
        return graph.forward

    def pool(bank: Tensor, rois: Tensor) -> Tensor:
        return selective_roi_align(bank, rois, torch.arange(9).view(3, 3), 3, 1 / STRIDE, 2) * 2

    torch._dynamo.reset()
    compiled = torch.compile(pool, fullgraph=True, dynamic=True, backend=count_graphs)
    bank = torch.randn(2, 9, 4, 6, 5, requires_grad=True)
    for count in (12, 5, 33):
        rois = rois_on_small_map(count)
        pooled, expected = compiled(bank, rois), pool(bank, rois)
        assert pooled.equal(expected)
        grads = [torch.autograd.grad(p.sum(), bank)[0] for p in (pooled, expected)]
        assert grads[0].equal(grads[1])
    assert len(graphs) == 1
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("traced_with", [1, 6])
def test_a_trace_takes_other_numbers_of_rois(traced_with: int) -> None:
    def pool(bank: Tensor, rois: Tensor) -> Tensor:
        index = (rois[:, 1] > rois[:, 2]).long()[:, None, None]
        return selective_roi_align(bank, rois, index, (2, 3), 1 / STRIDE, 0)

    bank = torch.randn(2, 2, 4, 6, 5)
    traced = torch.jit.trace(pool, (bank, rois_on_small_map(traced_with)))
    larger = torch.randn(2, 2, 4, 9, 7)
    for count in (0, 1, 6, 20):
        rois = rois_on_small_map(count)
        assert traced(bank, rois).equal(pool(bank, rois))
        assert traced(larger, rois).equal(pool(larger, rois))


def test_exports_with_as_many_rois_as_the_data_says() -> None:
    class FilterAndPool(torch.nn.Module):
        def forward(self, bank: Tensor, rois: Tensor) -> Tensor:
            rois = rois[rois[:, 1] > 5]
            index = (rois[:, 3] > rois[:, 4]).long()[:, None, None]
            return selective_roi_align(bank, rois, index, 2, 1 / STRIDE, 2)

    bank, rois = torch.randn(2, 2, 4, 6, 5), rois_on_small_map(20)
    exported = torch.export.export(FilterAndPool(), (bank, rois)).module()
    for kept in (20, 7, 1, 0):
        some = rois.clone()
        some[:, 1] = torch.where(torch.arange(20) < kept, 6.0, 4.0)
        pooled = exported(bank, some)
        assert len(pooled) == kept and pooled.equal(FilterAndPool()(bank, some))


def test_meta_tensors_give_shapes() -> None:
    bank = torch.empty(2, 3, 4, 6, 5, device="meta")
    rois = torch.empty(8, 5, device="meta")
    index = torch.empty(1, dtype=torch.long, device="meta")
    pooled = selective_roi_align(bank, rois, index, (2, 3), 1 / STRIDE, 2)
    assert pooled.is_meta and pooled.shape == (8, 4, 2, 3)


# --- refusals -------------------------------------------------------------------------------------


def good_arguments() -> dict:
    """N = 2, B = 3, K = 4, PH x PW = 2 x 3."""
    return {
        "input": torch.randn(2, 3, 4, 6, 5),
        "rois": torch.tensor([[0.0, 0, 0, 20, 20], [1, 4, 4, 30, 30], [1, 0, 0, 9, 9], [0] * 5]),
        "bank_index": torch.zeros(4, 2, 3, dtype=torch.long),
        "output_size": [2, 3],
        "spatial_scale": 1 / STRIDE,
        "sampling_ratio": 2,
    }


def rois_with(column: int, value: float) -> Tensor:
    rois = good_arguments()["rois"]
    rois[2, column] = value
    return rois


def index_with(value: int, dtype: torch.dtype = torch.long) -> Tensor:
    index = torch.zeros(4, 2, 3, dtype=dtype)
    index[3, 1, 2] = value
    return index


BAD_ARGUMENTS = [
    ("input", torch.randn(2, 12, 6, 5), "input"),
    ("input", torch.randn(1, 2, 3, 4, 6, 5), "input"),
    ("input", torch.tensor(1.0), "input"),
    ("input", torch.zeros(2, 3, 4, 6, 5, dtype=torch.long), "input"),
    ("input", torch.zeros(2, 3, 4, 6, 5, dtype=torch.complex64), "input"),
    ("input", torch.zeros(0, 3, 4, 6, 5), "batch index"),
    ("input", torch.zeros(2, 0, 4, 6, 5), "bank_index"),
    ("rois", torch.zeros(4, 4), "rois"),
    ("rois", torch.zeros(4, 6), "rois"),
    ("rois", torch.zeros(20), "rois"),
    ("rois", torch.zeros(1, 4, 5), "rois"),
    ("rois", torch.zeros(4, 5, dtype=torch.long), "rois.*floating"),
    *[("rois", rois_with(0, v), "batch index") for v in (2, -1, -0.5, 1e30, math.inf, math.nan)],
    *[
        ("rois", rois_with(column, v), "rois.*finite")
        for column, v in itertools.product((1, 2, 3, 4), (math.inf, -math.inf, math.nan))
    ],
    *[("bank_index", index_with(v), "bank_index") for v in (3, -1, 2**40, -(2**63))],
    ("bank_index", index_with(255, torch.uint8), "bank_index"),
    ("bank_index", index_with(-1, torch.int8), "bank_index"),
    ("bank_index", torch.zeros(4, 2, 3), "bank_index"),
    ("bank_index", torch.zeros(4, 2, 3, dtype=torch.complex64), "bank_index"),
    *[
        ("bank_index", torch.zeros(shape, dtype=torch.long), "bank_index")
        for shape in [(4,), (3, 2), (2, 2, 3), (4, 3, 2), (1, 4, 2, 3), (0,), (5, 1, 1)]
    ],
    *[("output_size", s, "output_size") for s in ([0, 3], [2, 0], [-1, 3], [2], [2, 3, 1], [])],
    *[("spatial_scale", s, "spatial_scale") for s in (0.0, -0.125, math.inf, -math.inf, math.nan)],
    *[("sampling_ratio", r, "sampling_ratio") for r in (-1, 1025, 5000, 2**40)],
]


@both_implementations
@pytest.mark.parametrize("name, value, message", BAD_ARGUMENTS)
def test_a_bad_argument_is_refused_by_name(
    pool: Callable, name: str, value: object, message: str
) -> None:
    arguments = good_arguments()
    assert pool(*arguments.values()).shape == (4, 4, 2, 3)
    arguments[name] = value
    with pytest.raises(RuntimeError, match=f"selective_roi_align: .*{message}"):
        pool(*arguments.values())


@both_implementations
def test_a_boolean_bank_index_is_refused(pool: Callable) -> None:
    arguments = good_arguments() | {"bank_index": torch.zeros(4, 2, 3, dtype=torch.bool)}
    with pytest.raises(RuntimeError, match="bank_index"):
        pool(*arguments.values())


@both_implementations
def test_rois_are_checked_where_the_map_has_no_channels(pool: Callable) -> None:
    arguments = good_arguments() | {"input": torch.zeros(2, 3, 0, 6, 5), "rois": rois_with(0, 9)}
    with pytest.raises(RuntimeError, match="batch index"):
        pool(*arguments.values())


@pytest.mark.parametrize(
    "name, value, message",
    [a for a in BAD_ARGUMENTS if a[0] not in ("input", "output_size")]
    + [
        ("grad_output", torch.randn(4, 4, 6), "grad_output"),
        ("grad_output", torch.randn(3, 4, 2, 3), "grad_output"),
        ("grad_output", torch.randn(4, 5, 2, 3), "grad_output"),
        ("grad_output", torch.randn(4, 4, 0, 3), "output_size"),
        ("grad_output", torch.zeros(4, 4, 2, 3, dtype=torch.long), "grad_output"),
        ("input_sizes", [2, 3, 4, 6], "input_sizes"),
        ("input_sizes", [2, 3, 4, -6, 5], "input_sizes"),
        ("input_sizes", [2, 3, 4, -6, -5], "input_sizes"),
        ("input_sizes", [1, 3, 4, 6, 5], "batch index"),
    ],
)
@needs_library
def test_the_backward_op_checks_for_itself(name: str, value: object, message: str) -> None:
    """It can be called without the forward: a trace or another program may."""
    arguments = good_arguments() | {
        "grad_output": torch.randn(4, 4, 2, 3),
        "input_sizes": [2, 3, 4, 6, 5],
    }
    assert backward_op(arguments).shape == (2, 3, 4, 6, 5)
    with pytest.raises(RuntimeError, match=f"selective_roi_align: .*{message}"):
        backward_op(arguments | {name: value})


def backward_op(a: dict) -> Tensor:
    (grad,) = BACKWARD(
        a["grad_output"],
        [],
        a["input_sizes"],
        False,
        False,
        a["rois"],
        None,
        [a["bank_index"]],
        [],
        [a["spatial_scale"]],
        a["sampling_ratio"],
        "sum",
    )
    return grad
