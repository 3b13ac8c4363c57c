"""`selective_roi_pool`, compiled and in plain PyTorch, against a literal loop over the cells,
numbers worked by hand, and torchvision's `roi_pool` and `ps_roi_pool`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor

from fsn_d2.layers import op_library_path, pool_reference, selective_roi_pool
from fsn_d2.layers.pool_reference import (
    PoolRequest,
    selective_roi_pool_backward_reference,
    selective_roi_pool_reference,
)

FORWARD = torch.ops.fsn_d2.selective_roi_pool
BACKWARD = torch.ops.fsn_d2.selective_roi_pool_backward
HEIGHT, WIDTH, STRIDE = 13, 17, 8.0
MODES = ("max", "avg")


def pool_by_reference(
    input: Tensor | Sequence[Tensor],
    rois: Tensor,
    bank_index: Tensor,
    output_size: int | tuple[int, int],
    spatial_scale: float | Sequence[float],
    mode: str = "max",
    levels: Tensor | None = None,
) -> Tensor:
    inputs = [input] if isinstance(input, Tensor) else input
    scales = [spatial_scale] if isinstance(spatial_scale, float) else spatial_scale
    size = [output_size] * 2 if isinstance(output_size, int) else list(output_size)
    request = PoolRequest(rois, levels, bank_index, scales, mode)
    return selective_roi_pool_reference(inputs, size, request)


needs_library = pytest.mark.skipif(op_library_path() is None, reason="the extension is not built")
both_implementations = pytest.mark.parametrize(
    "pool",
    [
        pytest.param(selective_roi_pool, id="compiled", marks=needs_library),
        pytest.param(pool_by_reference, id="reference"),
    ],
)
both_modes = pytest.mark.parametrize("mode", MODES)


def rois_of_all_kinds(count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """RoIs in and around two images: on the border, of one pixel, flipped, far away, huge, and with
    sides halfway between two cells.
    """
    generator = torch.Generator().manual_seed(count)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    image_size = torch.tensor([WIDTH, HEIGHT], dtype=torch.float64) * STRIDE
    centers = (uniform(count, 2) * 1.6 - 0.3) * image_size
    sides = uniform(count, 2) ** 2 * 1.2 * image_size
    kind = torch.arange(count) % 10
    sides[kind == 0] = 1
    sides[kind == 1] *= -1
    sides[kind == 2, 1] = 0
    centers[kind == 3] += 3 * image_size
    sides[kind == 4] *= 30
    corners = torch.cat([centers - sides / 2, centers + sides / 2], 1)
    halves = kind == 5
    corners[halves] = (corners[halves] / STRIDE).round() * STRIDE + STRIDE / 2
    corners[kind == 6] = torch.cat([torch.zeros(2), image_size])
    past = kind == 7  # from the middle past the last cell
    corners[past, 2:] = image_size + 20
    corners[kind == 8, :2] = -20
    image = torch.arange(count)[:, None] % 2
    return torch.cat([image, corners], 1).to(dtype)


def without_ties(*shape: int) -> Tensor:
    """Numbers in float64 that lie 0.1 apart."""
    count = math.prod(shape)
    return (torch.randperm(count).double() * 0.1 - count * 0.05).view(shape)


def round_half_away(x: float) -> int:
    return math.floor(x + 0.5) if x >= 0 else math.ceil(x - 0.5)


def cells_of_bin(low: float, high: float, number: int, bins: int, cells: int) -> range:
    """Along one axis, in cells: bin `number` of the RoI from low to high."""
    start = round_half_away(low)
    size = max(round_half_away(high) - start + 1, 1) / bins
    first, end = start + math.floor(number * size), start + math.ceil((number + 1) * size)
    return range(max(first, 0), min(end, cells))


def pool_by_loops(
    input: Tensor, rois: Tensor, index: Tensor, size: tuple[int, int], scale: float, mode: str
) -> Tensor:
    """The op by its definition, cell after cell. `index`: [K, PH, PW]."""
    *_, channels, height, width = input.shape
    pooled = torch.zeros(len(rois), channels, *size, dtype=input.dtype)
    for k, (image, x1, y1, x2, y2) in enumerate(rois.tolist()):
        for i, j in itertools.product(range(size[0]), range(size[1])):
            rows = cells_of_bin(y1 * scale, y2 * scale, i, size[0], height)
            columns = cells_of_bin(x1 * scale, x2 * scale, j, size[1], width)
            bank_map = input[int(image), index[k, i, j]]
            cells = [bank_map[:, y, x] for y in rows for x in columns]
            if not cells:
                continue
            total = torch.zeros(channels, dtype=input.dtype)
            for cell in cells:
                total = total + cell
            best = torch.stack(cells).max(0).values
            pooled[k, :, i, j] = total / len(cells) if mode == "avg" else best
    return pooled


# --- values ---------------------------------------------------------------------------------------


@both_implementations
def test_bins_worked_by_hand(pool: Callable) -> None:
    """Cells 1 to 3 of each axis in two bins: 1 and 2, then 2 and 3. The map is 4 * row + column."""
    ramp, zero = torch.arange(16.0).view(1, 1, 1, 4, 4), torch.tensor(0)
    rois = torch.tensor([[0.0, 1.2, 0.9, 2.5, 3.4]])
    assert pool(ramp, rois, zero, 2, 1.0, "max").tolist() == [[[[10, 11], [14, 15]]]]
    assert pool(ramp, rois, zero, 2, 1.0, "avg").tolist() == [[[[7.5, 8.5], [11.5, 12.5]]]]
    # Twice the pixels at half the scale is the same place.
    rois[:, 1:] *= 2
    assert pool(ramp, rois, zero, 2, 0.5, "max").tolist() == [[[[10, 11], [14, 15]]]]


@both_implementations
@pytest.mark.parametrize(
    "x, cell", [(0.49999997, 0), (0.5, 1), (1.5, 2), (2.5, 3), (2.4999998, 2), (-0.49999997, 0)]
)
def test_halves_round_away_from_zero(pool: Callable, x: float, cell: int) -> None:
    ramp, point = torch.arange(4.0).view(1, 1, 1, 1, 4), torch.tensor([[0, x, 0, x, 0]])
    assert pool(ramp + 1, point, torch.tensor(0), 1, 1.0).item() == cell + 1
    left = torch.tensor([[0, -0.5, 0, -0.5, 0]])  # cell -1
    assert pool(ramp + 1, left, torch.tensor(0), 1, 1.0).item() == 0


@both_implementations
@both_modes
@pytest.mark.parametrize("kind", ["one map", "by bin", "by roi", "by both"])
def test_equals_a_literal_loop(pool: Callable, mode: str, kind: str) -> None:
    torch.manual_seed(0)
    shape = {
        "one map": (1, 1, 1),
        "by bin": (1, 3, 3),
        "by roi": (200, 1, 1),
        "by both": (200, 3, 3),
    }
    maps = 1 if kind == "one map" else 9
    index = torch.randint(maps, shape[kind])
    if kind == "by bin":
        index = torch.arange(9).view(1, 3, 3)
    bank = torch.randn(2, maps, 2, HEIGHT, WIDTH, dtype=torch.float64)
    rois = rois_of_all_kinds(200, torch.float64)
    pooled = pool(bank, rois, index, 3, 1 / STRIDE, mode)
    expected = pool_by_loops(bank, rois, index.expand(200, 3, 3), (3, 3), 1 / STRIDE, mode)
    torch.testing.assert_close(pooled, expected, rtol=0, atol=1e-10)
    assert (expected == 0).any() and (expected != 0).any()


@both_implementations
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(7, 7), (2, 5), (20, 3)])
@pytest.mark.parametrize("scale", [1 / 8, 0.1, 1 / 3])
def test_the_maximum_of_one_map_is_torchvisions_roi_pool(
    pool: Callable, dtype: torch.dtype, size: tuple[int, int], scale: float
) -> None:
    """Bit by bit, and with it what is not a number, infinite or twice there."""
    roi_pool = pytest.importorskip("torchvision.ops").roi_pool
    torch.manual_seed(1)
    rois = rois_of_all_kinds(600, dtype)
    features = torch.randn(2, 3, HEIGHT, WIDTH, dtype=dtype).round(decimals=1)
    features[0, 0, 2:4, 3:9], features[1, 0, 5:9], features[1, 1, 7:9] = (
        math.nan,
        -math.inf,
        math.inf,
    )
    ours, theirs = features.clone().requires_grad_(), features.clone().requires_grad_()
    pooled = pool(ours.unflatten(1, (1, 3)), rois, torch.tensor(0), size, scale)
    expected = roi_pool(theirs, rois, size, scale)
    assert pooled.equal(expected)
    weights = torch.randn_like(pooled)
    grads = [torch.autograd.grad(p, x, weights)[0] for p, x in ((pooled, ours), (expected, theirs))]
    scaled = {torch.float32: 1e-5, torch.float64: 1e-12}[dtype] * grads[1].abs().max().item()
    torch.testing.assert_close(*grads, rtol=0, atol=scaled)


@both_implementations
def test_the_mean_of_a_map_per_bin_is_torchvisions_ps_roi_pool(pool: Callable) -> None:
    """Class-major, and up to its bins: the cell that x2 rounds to is not in them, and none reaches
    the last row or column of the map.
    """
    ps_roi_pool = pytest.importorskip("torchvision.ops").ps_roi_pool
    torch.manual_seed(2)
    low = torch.stack([torch.randint(0, 8, (100,)), torch.randint(0, 5, (100,))], 1)
    extent = torch.randint(1, 7, (100, 2))
    rois = torch.cat([torch.arange(100)[:, None] % 2, low, low + extent], 1).double()
    bank = torch.randn(2, 9, 4, HEIGHT, WIDTH, dtype=torch.float64, requires_grad=True)
    pooled = pool(bank, rois, torch.arange(9).view(3, 3), 3, 1.0, "avg")
    theirs = rois + torch.tensor([0, 0, 0, 1, 1])
    expected = ps_roi_pool(bank.transpose(1, 2).flatten(1, 2), theirs, 3, 1.0)
    torch.testing.assert_close(pooled, expected, rtol=0, atol=1e-12)
    weights = torch.randn_like(pooled)
    grads = [torch.autograd.grad(p, bank, weights)[0] for p in (pooled, expected)]
    torch.testing.assert_close(*grads, rtol=0, atol=1e-12)


@both_implementations
@both_modes
def test_a_batch_is_pooled_image_by_image(pool: Callable, mode: str) -> None:
    torch.manual_seed(3)
    bank = torch.randn(5, 2, 3, HEIGHT, WIDTH)
    rois = rois_of_all_kinds(100)
    rois[:, 0] = torch.randint(5, (100,))
    index = torch.randint(2, (100, 2, 3))
    pooled = pool(bank, rois, index, (2, 3), 1 / STRIDE, mode)
    for image in range(5):
        here = rois[:, 0] == image
        alone = rois[here].clone()
        alone[:, 0] = 0
        expected = pool(bank[image : image + 1], alone, index[here], (2, 3), 1 / STRIDE, mode)
        assert len(alone) > 5 and pooled[here].equal(expected)


@both_implementations
@both_modes
def test_levels_are_pooled_each_by_itself(pool: Callable, mode: str) -> None:
    torch.manual_seed(4)
    sizes, scales = ((13, 17), (7, 9), (4, 5)), [1 / 8, 1 / 16, 1 / 32]
    banks = [torch.randn(2, 4, 3, *size, requires_grad=True) for size in sizes]
    rois, index = rois_of_all_kinds(90), torch.randint(4, (90, 2, 2))
    levels = torch.randint(3, (90,)).to(torch.int32)
    pooled = pool(banks, rois, index, 2, scales, mode, levels)
    weights = torch.randn_like(pooled)
    grads = torch.autograd.grad(pooled, banks, weights)
    for n, (bank, scale) in enumerate(zip(banks, scales, strict=True)):
        here = levels == n
        expected = pool(bank, rois[here], index[here], 2, scale, mode)
        assert pooled[here].equal(expected)
        (grad,) = torch.autograd.grad(expected, bank, weights[here])
        torch.testing.assert_close(grads[n], grad, rtol=1e-5, atol=1e-5)


@both_implementations
@both_modes
def test_an_empty_bin_is_0_and_has_no_gradient(pool: Callable, mode: str) -> None:
    """The RoI reaches two cells past the right border of 4, with one cell per bin."""
    bank = torch.full((1, 1, 2, 3, 4), -7.0, requires_grad=True)
    rois = torch.tensor([[0.0, 2, 0, 5, 0], [0, 40, 0, 43, 0]])
    pooled = pool(bank, rois, torch.tensor(0), (1, 4), 1.0, mode)
    assert pooled[0, :, 0].tolist() == [[-7, -7, 0, 0]] * 2 and pooled[1].count_nonzero() == 0
    (grad,) = torch.autograd.grad(pooled.sum(), bank)
    assert grad[0, 0, 0].tolist() == [[0, 0, 1, 1], [0] * 4, [0] * 4]


@both_implementations
@both_modes
@pytest.mark.parametrize("far", [1e6, 1e9, 1e30, 3e38])
def test_huge_coordinates_end_and_stay_finite(pool: Callable, mode: str, far: float) -> None:
    corners = [(-far, -far, far, far), (far, far, -far, -far), (0, 0, far, far), (far,) * 4]
    rois = torch.tensor([(0.0, *c) for c in corners])
    for scale in (1.0, 1e-30, 1e30, 1e-300, 1e300):
        pooled = pool(torch.ones(1, 1, 1, 5, 6), rois, torch.tensor(0), 2, scale, mode)
        assert ((pooled >= 0) & (pooled <= 1)).all()
    assert pool(torch.ones(1, 1, 1, 5, 6), rois, torch.tensor(0), 1, 1.0, mode)[0].item() == 1


@both_implementations
@both_modes
@pytest.mark.parametrize("channels", [1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 40, 64, 65, 130])
def test_every_number_of_channels(pool: Callable, mode: str, channels: int) -> None:
    torch.manual_seed(5)
    bank = torch.randn(2, 1, channels, HEIGHT, WIDTH, requires_grad=True)
    rois = rois_of_all_kinds(20)
    pooled = pool(bank, rois, torch.tensor(0), (2, 3), 1 / STRIDE, mode)
    (grad,) = torch.autograd.grad(pooled, bank, torch.ones_like(pooled))
    for c in range(channels):
        one = bank.detach()[:, :, c : c + 1].clone().requires_grad_()
        expected = pool(one, rois, torch.tensor(0), (2, 3), 1 / STRIDE, mode)
        assert pooled[:, c : c + 1].equal(expected)
        (expected_grad,) = torch.autograd.grad(expected.sum(), one)
        torch.testing.assert_close(grad[:, :, c : c + 1], expected_grad, rtol=1e-5, atol=1e-5)


# --- gradients ------------------------------------------------------------------------------------


@both_implementations
@both_modes
@pytest.mark.parametrize("size", [(2, 3), (7, 7)])
def test_gradcheck_with_rois_on_and_past_the_border(
    pool: Callable, mode: str, size: tuple[int, int]
) -> None:
    torch.manual_seed(6)
    bank = without_ties(2, 2, 2, 5, 6).requires_grad_()
    rois = rois_of_all_kinds(20, torch.float64)
    rois[:, 1:] *= torch.tensor([6 / WIDTH, 5 / HEIGHT] * 2)
    index = torch.randint(2, (20, *size))
    assert torch.autograd.gradcheck(lambda x: pool(x, rois, index, size, 1 / STRIDE, mode), (bank,))


@both_implementations
def test_of_equal_maxima_the_first_gets_the_gradient(pool: Callable) -> None:
    """Row-major: of cells (1, 2) and (2, 1) it is (1, 2)."""
    bank = torch.zeros(1, 1, 1, 4, 4)
    bank[..., 1, 2] = bank[..., 2, 1] = 3
    bank.requires_grad_()
    rois = torch.tensor([[0.0, 0, 0, 3, 3], [0, 0, 2, 3, 3]])
    pooled = pool(bank, rois, torch.tensor(0), 1, 1.0)
    (grad,) = torch.autograd.grad(pooled, bank, torch.tensor([5.0, 7]).view(2, 1, 1, 1))
    expected = torch.zeros(1, 1, 1, 4, 4)
    expected[..., 1, 2], expected[..., 2, 1] = 5, 7
    assert grad.equal(expected)


@both_modes
def test_second_derivatives(mode: str) -> None:
    """For pooled = A x: |pooled|^2 has the gradient 2 A^T A x, a linear map of x once more."""
    bank = torch.randn(1, 1, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor([[0.0, 0, 0, 20, 20]], dtype=torch.float64)

    def pool(x: Tensor) -> Tensor:
        return selective_roi_pool(x, rois, torch.tensor(0), 2, 1 / STRIDE, mode)

    (grad,) = torch.autograd.grad(pool(bank).square().sum(), bank, create_graph=True)
    if mode == "max":
        with pytest.raises(NotImplementedError, match="second derivatives"):
            grad.sum().backward()
        return
    (second,) = torch.autograd.grad(grad.sum(), bank)
    matrix = torch.stack([pool(e.view_as(bank)).flatten() for e in torch.eye(9).double()], 1)
    torch.testing.assert_close(second.flatten(), (2 * matrix.T @ matrix).sum(0).detach())


@both_modes
def test_rois_get_no_gradient(mode: str) -> None:
    bank = torch.randn(2, 1, 2, HEIGHT, WIDTH, requires_grad=True)
    rois = rois_of_all_kinds(10).requires_grad_()
    pooled = selective_roi_pool(bank, rois, torch.tensor(0), 2, 1 / STRIDE, mode)
    grads = torch.autograd.grad(pooled.sum(), (bank, rois), allow_unused=True)
    assert grads[0].count_nonzero() > 0 and grads[1] is None


@pytest.fixture
def restore_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("restore_threads")
@both_modes
def test_the_number_of_threads_does_not_change_a_bit(mode: str) -> None:
    torch.manual_seed(7)
    bank = torch.randn(2, 3, 8, HEIGHT, WIDTH, requires_grad=True)
    rois, index = rois_of_all_kinds(500), torch.randint(3, (500, 7, 7))
    weights = torch.randn(500, 8, 7, 7)
    results = []
    for threads in (1, 2, 5, 2):
        torch.set_num_threads(threads)
        pooled = selective_roi_pool(bank, rois, index, 7, 1 / STRIDE, mode)
        results.append((pooled, *torch.autograd.grad(pooled, bank, weights)))
    for pooled, grad in results[1:]:
        assert pooled.equal(results[0][0]) and grad.equal(results[0][1])


@needs_library
@both_modes
@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_the_backward_op_equals_the_reference(mode: str, planes: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(8)
    banks = [torch.randn(2, 3, 5, *size).to(dtype) for size in ((13, 17), (7, 9))]
    rois, levels = rois_of_all_kinds(80), torch.arange(80) % 2
    index = torch.randint(3, (80, 2, 3))
    grad_output = torch.randn(80, 5, 2, 3).to(dtype)
    rest = (rois, levels, index, [1 / 8, 1 / 16], mode)
    sizes = [n for bank in banks for n in bank.shape]
    kept = banks if mode == "max" else []
    grads = BACKWARD(grad_output, kept, sizes, planes, False, *rest)
    expected = selective_roi_pool_backward_reference(
        grad_output, banks, [bank.shape for bank in banks], PoolRequest(*rest)
    )
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 2e-2)
    for grad, wanted in zip(grads, expected, strict=True):
        assert grad.dtype == dtype
        assert grad.is_contiguous() if planes else grad.permute(0, 3, 4, 1, 2).is_contiguous()
        torch.testing.assert_close(grad, wanted, rtol=tolerance, atol=tolerance)


@both_modes
@pytest.mark.parametrize("values_at_once", [1, 300])
def test_the_reference_in_parts_gives_the_same(
    mode: str, values_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = torch.randn(2, 2, 3, HEIGHT, WIDTH, dtype=torch.float64, requires_grad=True)
    arguments = (rois_of_all_kinds(20, torch.float64), torch.tensor(1), 3, 1 / STRIDE, mode)
    whole = pool_by_reference(bank, *arguments)
    cells, parts = pool_reference._cells_of_bins, []

    def count_rois(size, rois, *rest):
        parts.append(len(rois))
        return cells(size, rois, *rest)

    monkeypatch.setattr(pool_reference, "_cells_of_bins", count_rois)
    monkeypatch.setattr(pool_reference, "_MAX_VALUES_AT_ONCE", values_at_once)
    in_parts = pool_by_reference(bank, *arguments)
    assert in_parts.equal(whole) and sum(parts) == 20 and len(parts) > 1


# --- layouts, types and forms of the arguments ----------------------------------------------------


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
@both_modes
def test_strides_do_not_matter(pool: Callable, mode: str) -> None:
    torch.manual_seed(9)
    bank = torch.randn(2, 3, 4, HEIGHT, WIDTH, requires_grad=True)
    rois, index = rois_of_all_kinds(40), torch.randint(3, (40, 2, 3))
    expected = pool(bank, rois, index, (2, 3), 1 / STRIDE, mode)
    (expected_grad,) = torch.autograd.grad(expected.sum(), bank)
    assert expected.is_contiguous()
    for name, view in layouts(bank.detach()):
        view.requires_grad_()
        assert not view.is_contiguous() and view.equal(bank)
        pooled = pool(view, rois, index, (2, 3), 1 / STRIDE, mode)
        assert pooled.equal(expected) and pooled.is_contiguous(), name
        (grad,) = torch.autograd.grad(pooled.sum(), view)
        torch.testing.assert_close(grad, expected_grad, rtol=1e-6, atol=1e-6)
    columns = torch.full((5, 80), math.nan)
    columns[:, ::2] = rois.t()
    strided = index.transpose(0, 2).contiguous().transpose(0, 2)
    assert pool(bank, columns[:, ::2].t(), strided, (2, 3), 1 / STRIDE, mode).equal(expected)


@both_modes
def test_the_gradient_comes_back_in_the_layout_of_the_input(mode: str) -> None:
    bank = torch.randn(1, 2, 3, 4, 5)
    last = bank.permute(0, 3, 4, 1, 2).contiguous().permute(0, 3, 4, 1, 2)
    for layout in (bank, last):
        grad = torch.autograd.grad(
            selective_roi_pool(
                layout.requires_grad_(), torch.zeros(1, 5), torch.tensor(0), 2, 1.0, mode
            ).sum(),
            layout,
        )[0]
        assert grad.stride() == layout.stride()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@both_implementations
@both_modes
def test_half_types_are_computed_in_float32(pool: Callable, mode: str, dtype: torch.dtype) -> None:
    """RoIs in float32 keep their precision; the result is rounded once."""
    torch.manual_seed(10)
    bank = torch.randn(2, 3, 4, HEIGHT, WIDTH).to(dtype).requires_grad_()
    rois, index = rois_of_all_kinds(40), torch.randint(3, (40, 2, 3))
    exact = bank.detach().float().requires_grad_()
    pooled = pool(bank, rois, index, (2, 3), 1 / STRIDE, mode)
    expected = pool(exact, rois, index, (2, 3), 1 / STRIDE, mode)
    assert pooled.dtype == dtype and pooled.equal(expected.to(dtype))
    (grad,) = torch.autograd.grad(pooled.sum(), bank)
    (expected_grad,) = torch.autograd.grad(expected.sum(), exact)
    assert grad.dtype == dtype
    torch.testing.assert_close(grad, expected_grad.to(dtype), rtol=1e-2, atol=1e-2)


def test_autocast() -> None:
    conv = torch.nn.Conv2d(3, 8, 1)
    with torch.autocast("cpu", torch.bfloat16):
        bank = conv(torch.randn(2, 3, HEIGHT, WIDTH)).unflatten(1, (2, 4))
        pooled = selective_roi_pool(
            bank, rois_of_all_kinds(20), torch.tensor([1]), 3, 1 / STRIDE, "max"
        )
    assert bank.dtype == pooled.dtype == torch.bfloat16
    pooled.sum().backward()
    assert conv.weight.grad is not None
    assert conv.weight.grad[:4].count_nonzero() == 0  # map 0 is not read
    assert conv.weight.grad[4:].count_nonzero() > 0


@both_implementations
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_bank_index_of_any_integer_type(pool: Callable, dtype: torch.dtype) -> None:
    bank, rois = torch.randn(2, 3, 2, HEIGHT, WIDTH), rois_of_all_kinds(20)
    index = torch.randint(3, (20, 2, 3))
    expected = pool(bank, rois, index, (2, 3), 1 / STRIDE)
    assert pool(bank, rois, index.to(dtype), (2, 3), 1 / STRIDE).equal(expected)


@both_implementations
@both_modes
@pytest.mark.parametrize(
    "bank_shape, rois",
    [
        ((2, 3, 4, 6, 5), 0),
        ((0, 3, 4, 6, 5), 0),
        ((2, 3, 0, 6, 5), 5),
        ((2, 3, 4, 0, 5), 5),
        ((2, 3, 4, 6, 0), 5),
        ((2, 0, 4, 6, 5), 0),
    ],
)
def test_empty_arguments(pool: Callable, mode: str, bank_shape: tuple[int, ...], rois: int) -> None:
    """The right shapes, forward and backward; a map without cells gives 0."""
    bank = torch.randn(bank_shape, requires_grad=True)
    index = torch.zeros(rois, 1, 1, dtype=torch.long)
    pooled = pool(bank, rois_of_all_kinds(rois), index, (2, 3), 1 / STRIDE, mode)
    assert pooled.shape == (rois, bank_shape[2], 2, 3) and pooled.count_nonzero() == 0
    (grad,) = torch.autograd.grad(pooled.sum(), bank)
    assert grad.shape == bank_shape and grad.count_nonzero() == 0


# --- what PyTorch asks of an op -------------------------------------------------------------------


@both_modes
@pytest.mark.parametrize("rois", [0, 6])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(mode: str, rois: int, requires_grad: bool) -> None:
    bank = without_ties(2, 3, 2, 6, 5).requires_grad_(requires_grad)
    index = torch.zeros(rois, 2, 3, dtype=torch.long)
    arguments = ([bank], rois_of_all_kinds(rois), None, index, [2, 3], [1 / STRIDE], mode)
    torch.library.opcheck(FORWARD.default, arguments)


@both_modes
@pytest.mark.parametrize("rois", [0, 6])
def test_opcheck_backward(mode: str, rois: int) -> None:
    rest = (rois_of_all_kinds(rois), None, torch.zeros(1, dtype=torch.long), [1 / STRIDE], mode)
    banks = [torch.randn(2, 3, 2, 6, 5)] if mode == "max" else []
    for planes in (False, True):
        grad = torch.randn(rois, 2, 2, 3)
        torch.library.opcheck(
            BACKWARD.default, (grad, banks, [2, 3, 2, 6, 5], planes, False, *rest)
        )


@both_modes
def test_compiles_as_one_graph_for_any_number_of_rois(mode: str) -> None:
    graphs = []

    def count_graphs(graph: torch.fx.GraphModule, example_inputs: list) -> Callable:
        graphs.append(graph)
        return graph.forward

    def pool(bank: Tensor, rois: Tensor) -> Tensor:
        index = torch.arange(9).view(3, 3)
        return selective_roi_pool(bank, rois, index, 3, 1 / STRIDE, mode) * 2

    torch._dynamo.reset()
    compiled = torch.compile(pool, fullgraph=True, dynamic=True, backend=count_graphs)
    bank = torch.randn(2, 9, 4, 6, 5, requires_grad=True)
    for count in (12, 5, 33):
        rois = rois_of_all_kinds(count)
        pooled, expected = compiled(bank, rois), pool(bank, rois)
        assert pooled.equal(expected)
        grads = [torch.autograd.grad(p.sum(), bank)[0] for p in (pooled, expected)]
        assert grads[0].equal(grads[1])
    assert len(graphs) == 1
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_a_trace_takes_other_numbers_of_rois() -> None:
    def pool(bank: Tensor, rois: Tensor) -> Tensor:
        return selective_roi_pool(bank, rois, torch.arange(4).view(2, 2), 2, 1 / STRIDE, "avg")

    traced = torch.jit.trace(pool, (torch.randn(2, 4, 3, 6, 5), rois_of_all_kinds(6)))
    bank = torch.randn(2, 4, 3, 9, 7)
    for count in (0, 1, 20):
        assert traced(bank, rois_of_all_kinds(count)).equal(pool(bank, rois_of_all_kinds(count)))


def test_meta_tensors_give_shapes() -> None:
    bank = torch.empty(2, 3, 4, 6, 5, device="meta")
    rois = torch.empty(8, 5, device="meta")
    index = torch.empty(1, dtype=torch.long, device="meta")
    pooled = selective_roi_pool(bank, rois, index, (2, 3), 1 / STRIDE)
    assert pooled.is_meta and pooled.shape == (8, 4, 2, 3)


# --- refusals -------------------------------------------------------------------------------------


def good_arguments() -> dict:
    """N = 2, B = 3, K = 4, PH x PW = 2 x 3, one of two levels each."""
    return {
        "input": [torch.randn(2, 3, 4, 6, 5), torch.randn(2, 3, 4, 3, 3)],
        "rois": torch.tensor([[0.0, 0, 0, 20, 20], [1, 4, 4, 30, 30], [1, 0, 0, 9, 9], [0] * 5]),
        "bank_index": torch.zeros(4, 2, 3, dtype=torch.long),
        "output_size": (2, 3),
        "spatial_scale": [1 / STRIDE, 0.5 / STRIDE],
        "mode": "max",
        "levels": torch.tensor([0, 1, 1, 0]),
    }


def rois_with(column: int, value: float) -> Tensor:
    rois = good_arguments()["rois"]
    rois[2, column] = value
    return rois


def index_with(value: int) -> Tensor:
    index = torch.zeros(4, 2, 3, dtype=torch.long)
    index[3, 1, 2] = value
    return index


def inputs_with(second: Tensor) -> list[Tensor]:
    return [good_arguments()["input"][0], second]


BAD_ARGUMENTS = [
    ("input", inputs_with(torch.randn(2, 12, 3, 3)), "input"),
    ("input", inputs_with(torch.randn(2, 3, 4, 3, 3).double()), "input.*dtype"),
    ("input", inputs_with(torch.randn(2, 3, 5, 3, 3)), "input"),
    ("input", inputs_with(torch.randn(2, 2, 4, 3, 3)), "input"),
    ("input", [torch.zeros(2, 3, 4, 6, 5, dtype=torch.long)] * 2, "input"),
    ("input", good_arguments()["input"][:1], "input per"),
    ("rois", torch.zeros(4, 4), "rois"),
    ("rois", torch.zeros(4, 5, dtype=torch.long), "rois.*floating"),
    *[("rois", rois_with(0, v), "batch index") for v in (2, -1, math.inf, math.nan)],
    *[("rois", rois_with(3, v), "rois.*finite") for v in (math.inf, -math.inf, math.nan)],
    *[("bank_index", index_with(v), "bank_index") for v in (3, -1, 2**40, -(2**63))],
    ("bank_index", torch.zeros(4, 2, 3), "bank_index"),
    ("bank_index", torch.zeros(4, 2, 3, dtype=torch.bool), "bank_index"),
    ("bank_index", torch.zeros(2, 2, 3, dtype=torch.long), "bank_index"),
    ("bank_index", torch.zeros(1, 4, 2, 3, dtype=torch.long), "bank_index"),
    *[("output_size", s, "output_size") for s in ((0, 3), (2,), (2, 3, 1))],
    *[("spatial_scale", [s, 1.0], "spatial_scale") for s in (0.0, -1.0, math.inf, math.nan)],
    ("spatial_scale", [], "spatial_scales"),
    *[("mode", m, "mode must be one of .*max.*avg") for m in ("sum", "", "Max")],
    ("levels", None, "levels"),
    ("levels", torch.zeros(3, dtype=torch.long), "levels"),
    ("levels", torch.zeros(4), "levels"),
    *[("levels", torch.tensor([0, 1, v, 0]), "levels") for v in (-1, 2, 2**40)],
]


@both_implementations
@pytest.mark.parametrize("name, value, message", BAD_ARGUMENTS)
def test_a_bad_argument_is_refused_by_name(
    pool: Callable, name: str, value: object, message: str
) -> None:
    arguments = good_arguments()
    assert pool(**arguments).shape == (4, 4, 2, 3)
    with pytest.raises(RuntimeError, match=f"selective_roi_pool: .*{message}"):
        pool(**arguments | {name: value})


def backward(a: dict) -> list[Tensor]:
    order = ("grad_output", "inputs", "input_sizes", "planes", "deterministic", "rois", "levels")
    rest = ("bank_index", "scales", "mode")
    return BACKWARD(*(a[name] for name in order + rest))


@needs_library
@pytest.mark.parametrize(
    "name, value, message",
    [
        ("grad_output", torch.randn(4, 4, 6), "grad_output"),
        ("grad_output", torch.randn(3, 4, 2, 3), "grad_output"),
        ("grad_output", torch.randn(4, 5, 2, 3), "grad_output"),
        ("grad_output", torch.randn(4, 4, 0, 3), "output_size"),
        ("grad_output", torch.randn(4, 4, 2, 3).double(), "dtype of grad_output"),
        ("inputs", [], "needs every input"),
        ("inputs", good_arguments()["input"][:1], "needs every input"),
        ("inputs", good_arguments()["input"][::-1], "input_sizes"),
        ("input_sizes", [2, 3, 4, 6], "input_sizes"),
        ("mode", "min", "mode"),
        ("rois", rois_with(0, 2), "batch index"),
        ("bank_index", index_with(3), "bank_index"),
        ("levels", torch.tensor([0, 1, 2, 0]), "levels"),
    ],
)
def test_the_backward_op_checks_for_itself(name: str, value: object, message: str) -> None:
    """It can be called without the forward: a trace or another program may."""
    good = good_arguments()
    arguments = good | {
        "grad_output": torch.randn(4, 4, 2, 3),
        "inputs": good["input"],
        "input_sizes": [2, 3, 4, 6, 5, 2, 3, 4, 3, 3],
        "planes": False,
        "deterministic": False,
        "scales": good["spatial_scale"],
    }
    assert [g.shape for g in backward(arguments)] == [x.shape for x in good["input"]]
    with pytest.raises(RuntimeError, match=f"selective_roi_pool: .*{message}"):
        backward(arguments | {name: value})
