"""`merged_roi_align` against its parts: `selective_roi_align` per source and level, then the merge
written out in PyTorch.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fsn_d2
from fsn_d2.layers import (
    ShiftedConv2d,
    Source,
    grid_offsets,
    merged_roi_align,
    op_library_path,
    selective_roi_align,
)
from fsn_d2.layers.merged_reference import (
    Request,
    merged_roi_align_backward_reference,
    merged_roi_align_reference,
)

MERGES = ("stack", "sum", "multiply", "multiply_relu")
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
SCALES = (1 / 4, 1 / 8, 1 / 16)
SIZES = ((16, 22), (8, 11), (4, 6))
IMAGES, CHANNELS, COUNT = 2, 5, 60
BINS = (3, 4)

needs_library = pytest.mark.skipif(op_library_path() is None, reason="the extension is not built")


def reference_as_op(
    sources: Sequence[Source],
    rois: Tensor,
    levels: Tensor | None,
    output_size: tuple[int, int],
    spatial_scales: Sequence[float],
    sampling_ratio: int,
    merge: str,
) -> Tensor:
    origins = []
    if any(s.origins for s in sources):
        for s in sources:
            for pair in s.origins or [(0, 0)] * s.levels[0].shape[1]:
                origins += pair
    request = Request(
        rois,
        levels,
        [s.bank_index for s in sources],
        origins,
        spatial_scales,
        sampling_ratio,
        merge,
    )
    return merged_roi_align_reference([x for s in sources for x in s.levels], output_size, request)


both_implementations = pytest.mark.parametrize(
    "pool",
    [
        pytest.param(merged_roi_align, id="compiled", marks=needs_library),
        pytest.param(reference_as_op, id="reference"),
    ],
)


def draw_rois(count: int = COUNT, dtype: torch.dtype = torch.float32) -> Tensor:
    """In and around images of 64 x 88 pixels; some without extent, some outside."""
    generator = torch.Generator().manual_seed(count)
    centers = torch.rand(count, 2, generator=generator) * torch.tensor([100.0, 76.0]) - 6
    sides = torch.rand(count, 2, generator=generator) ** 2 * 70
    sides[::7] = 0
    centers[3::11] += 500
    image = torch.arange(count)[:, None] % IMAGES
    return torch.cat([image, centers - sides / 2, centers + sides / 2], 1).to(dtype)


def draw_levels(num_levels: int, count: int = COUNT) -> Tensor | None:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(num_levels, (count,), generator=generator) if num_levels > 1 else None


def draw_sources(
    num_levels: int, *, shifted: bool = False, dtype: torch.dtype = torch.float32
) -> list[Source]:
    """An RoI feature, a bank of 9 read by bin, and one of 3 read by RoI; leaves with gradients."""
    generator = torch.Generator().manual_seed(num_levels)

    def bank(maps: int, margin: int = 0) -> list[Tensor]:
        return [
            torch.randn(
                (IMAGES, maps, CHANNELS, h + 2 * margin, w + 2 * margin),
                generator=generator,
                dtype=dtype,
            ).requires_grad_()
            for h, w in SIZES[:num_levels]
        ]

    origins = [(dy + 2, dx + 2) for dy, dx in grid_offsets(3, 2)] if shifted else []
    by_bin = torch.randint(9, (1, *BINS), generator=generator)
    by_roi = torch.randint(3, (COUNT, 1, 1), generator=generator)
    return [
        Source(bank(1), torch.zeros(1, dtype=torch.long)),
        Source(bank(9, 2 if shifted else 0), by_bin, origins),
        Source(bank(3), by_roi),
    ]


def leaves(sources: Sequence[Source]) -> list[Tensor]:
    return [x for source in sources for x in source.levels]


def pool_source(source: Source, size: int, rois: Tensor, levels: Tensor | None, ratio: int):
    """One source RoI by RoI: Tensor[K, C, PH, PW]."""
    index = source.bank_index.expand(len(rois), *BINS)
    pooled = []
    for k in range(len(rois)):
        level = 0 if levels is None else int(levels[k])
        bank = source.levels[level]
        if source.origins:
            h, w = SIZES[level]
            maps = [bank[:, b, :, y : y + h, x : x + w] for b, (y, x) in enumerate(source.origins)]
            bank = torch.stack(maps, 1)
        one = slice(k, k + 1)
        pooled.append(selective_roi_align(bank, rois[one], index[one], BINS, SCALES[level], ratio))
    return torch.cat(pooled)


def merge_parts(parts: list[Tensor], merge: str) -> Tensor:
    if merge == "stack":
        return torch.cat(parts, 1)
    if merge == "sum":
        return torch.stack(parts).sum(0)
    factor = torch.stack(parts[1:]).sum(0)
    return parts[0] * (factor.relu() if merge == "multiply_relu" else factor)


def assert_near(actual: Tensor, expected: Tensor) -> None:
    scale = max(1.0, expected.abs().max().item())
    assert actual.shape == expected.shape and actual.dtype == expected.dtype
    torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE[actual.dtype] * scale)


# --- values ---------------------------------------------------------------------------------------


@both_implementations
def test_a_product_worked_by_hand(pool: Callable) -> None:
    """One sample on one cell: 5 * (2 + -3), and the ReLU of the factor."""
    zero = torch.zeros(1, dtype=torch.long)
    sources = [Source([torch.full((1, 1, 1, 2, 2), v)], zero) for v in (5.0, 2.0, -3.0)]
    rois = torch.tensor([[0.0, 0, 0, 1, 1]])
    results = {m: pool(sources, rois, None, (1, 1), [1.0], 1, m).flatten().tolist() for m in MERGES}
    assert results == {
        "stack": [5, 2, -3],
        "sum": [4],
        "multiply": [-5],
        "multiply_relu": [0],
    }


@both_implementations
def test_each_roi_reads_its_level(pool: Callable) -> None:
    """Levels hold 10, 20 and 30 everywhere."""
    banks = [torch.full((1, 1, 1, *s), 10.0 * (i + 1)) for i, s in enumerate(SIZES)]
    rois = torch.tensor([[0.0, 8, 8, 40, 40]]).expand(5, 5)
    source = Source(banks, torch.zeros(1, dtype=torch.long))
    levels = torch.tensor([2, 0, 1, 1, 0])
    pooled = pool([source], rois, levels, (1, 1), SCALES, 2, "sum")
    assert pooled.flatten().tolist() == [30, 10, 20, 20, 10]


@both_implementations
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("num_levels", [1, 3])
@pytest.mark.parametrize("merge", MERGES)
def test_equals_its_parts(
    pool: Callable, merge: str, num_levels: int, shifted: bool, ratio: int, dtype: torch.dtype
) -> None:
    """Values, and the gradient of every bank."""
    sources = draw_sources(num_levels, shifted=shifted, dtype=dtype)
    rois, levels = draw_rois(dtype=dtype), draw_levels(num_levels)
    pooled = pool(sources, rois, levels, BINS, SCALES[:num_levels], ratio, merge)
    parts = [pool_source(s, num_levels, rois, levels, ratio) for s in sources]
    expected = merge_parts(parts, merge)
    assert_near(pooled, expected)
    weights = torch.randn(expected.shape, dtype=dtype)
    grads = torch.autograd.grad(pooled, leaves(sources), weights)
    for actual, wanted in zip(
        grads, torch.autograd.grad(expected, leaves(sources), weights), strict=True
    ):
        assert_near(actual, wanted)


@both_implementations
@pytest.mark.parametrize("merge", MERGES)
def test_what_is_stacked_comes_channels_last(pool: Callable, merge: str) -> None:
    """And the layout of the output's gradient makes no difference."""
    sources, rois = draw_sources(3), draw_rois()
    pooled = pool(sources, rois, draw_levels(3), BINS, SCALES, 2, merge)
    layout = torch.channels_last if merge == "stack" else torch.contiguous_format
    assert pooled.is_contiguous(memory_format=layout)
    weights = torch.randn(pooled.shape)
    planes, cells = (
        torch.autograd.grad(
            pooled, leaves(sources), weights.contiguous(memory_format=form), retain_graph=True
        )
        for form in (torch.contiguous_format, torch.channels_last)
    )
    for actual, wanted in zip(planes, cells, strict=True):
        assert torch.equal(actual, wanted)


@needs_library
@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize("merge", MERGES)
def test_the_backward_without_a_kernel_equals_the_compiled(merge: str, planes: bool) -> None:
    sources = draw_sources(3, shifted=True)
    inputs = [x.detach() for x in leaves(sources)]
    origins = [c for s in sources for p in s.origins or [(0, 0)] * s.levels[0].shape[1] for c in p]
    rest = [draw_rois(), draw_levels(3), [s.bank_index for s in sources], origins, SCALES, 0, merge]
    grad_output = torch.randn(COUNT, CHANNELS * (3 if merge == "stack" else 1), *BINS)
    sizes = [x.shape for x in inputs]
    expected = merged_roi_align_backward_reference(grad_output, inputs, sizes, Request(*rest))
    kept = inputs if merge.startswith("multiply") else []
    flat = [n for size in sizes for n in size]
    compiled = torch.ops.fsn_d2.selective_roi_align_backward(
        grad_output, kept, flat, planes, False, *rest
    )
    for actual, wanted in zip(compiled, expected, strict=True):
        assert_near(actual, wanted)
        assert actual.is_contiguous() == planes


def test_origins_fold_the_shift_of_a_convolution() -> None:
    """Reading the unshifted maps at their origins equals pooling the shifted ones."""
    conv = ShiftedConv2d(3, CHANNELS, grid_offsets(3, 1), 3)
    feature, rois = torch.randn(IMAGES, 3, 8, 11), draw_rois()
    roi_bank = torch.zeros(IMAGES, 1, CHANNELS, 8, 11)
    zero, index = torch.zeros(1, dtype=torch.long), torch.randint(9, (1, *BINS))
    pooled = merged_roi_align(
        [Source([roi_bank], zero), Source([conv.unshifted(feature)], index, conv.origins)],
        rois,
        None,
        BINS,
        [1 / 8],
        2,
        "sum",
    )
    expected = selective_roi_align(conv(feature), rois, index, BINS, 1 / 8, 2)
    assert expected.abs().max() > 0.1
    assert_near(pooled, expected)


# --- layouts, dtypes, channels --------------------------------------------------------------------


@both_implementations
@pytest.mark.parametrize("merge", MERGES)
def test_maps_may_be_one_in_memory(pool: Callable, merge: str) -> None:
    """What reads a map from several origins is a bank in which it is there as often."""
    index, origins = torch.randint(9, (1, *BINS)), grid_offsets(3, 1)
    origins = [(row + 1, column + 1) for row, column in origins]
    grads = []
    for repeat in (
        lambda x: x.unsqueeze(1).expand(-1, 9, -1, -1, -1),
        lambda x: torch.stack([x] * 9, dim=1),
    ):
        feature = torch.randn(
            IMAGES, 1, CHANNELS, 8, 11, generator=torch.Generator().manual_seed(0)
        )
        padded = torch.nn.functional.pad(feature[:, 0], (1, 1, 1, 1)).requires_grad_()
        sources = [Source([feature], torch.tensor(0)), Source([repeat(padded)], index, origins)]
        pooled = pool(sources, draw_rois(), None, BINS, [1 / 8], 2, merge)
        grads.append([pooled, *torch.autograd.grad(pooled.square().sum(), padded)])
    assert grads[0][1].abs().max() > 0.1
    for actual, expected in zip(*grads, strict=True):
        assert_near(actual, expected)


@pytest.mark.parametrize("merge", MERGES)
def test_layouts_do_not_matter_and_come_back_in_the_gradient(merge: str) -> None:
    planes = draw_sources(3, shifted=True)
    cells = [
        s._replace(
            levels=[
                x.detach()
                .flatten(1, 2)
                .contiguous(memory_format=torch.channels_last)
                .unflatten(1, x.shape[1:3])
                .requires_grad_()
                for x in s.levels
            ]
        )
        for s in planes
    ]
    grads = []
    arguments = (draw_rois(), draw_levels(3), BINS, SCALES, 2, merge)
    for sources in (planes, cells):
        pooled = merged_roi_align(sources, *arguments)
        grads.append(torch.autograd.grad(pooled.square().sum(), leaves(sources)))
        for grad, bank in zip(grads[-1], leaves(sources), strict=True):
            assert grad.stride() == bank.stride()
    assert all(a.equal(b) for a, b in zip(*grads, strict=True))


@needs_library
@pytest.mark.parametrize("channels", [1, 2, 3, 7, 8, 12, 15, 16, 21, 40, 64, 67, 100, 131])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_number_of_channels(channels: int, dtype: torch.dtype) -> None:
    """Vectors and their remainders, against the reference."""
    torch.manual_seed(channels)
    zero = torch.zeros(1, dtype=torch.long)
    sources = [
        Source([torch.randn(2, 1, channels, 6, 7, dtype=dtype).requires_grad_()], zero)
        for _ in range(2)
    ]
    arguments = (draw_rois(dtype=dtype), None, BINS, [1 / 8], 2, "multiply")
    pooled, expected = (p(sources, *arguments) for p in (merged_roi_align, reference_as_op))
    assert_near(pooled, expected)
    weights = torch.randn_like(pooled)
    for actual, wanted in zip(
        torch.autograd.grad(pooled, leaves(sources), weights),
        torch.autograd.grad(expected, leaves(sources), weights),
        strict=True,
    ):
        assert_near(actual, wanted)


@both_implementations
@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_computed_in_float32_and_rounded_once(
    pool: Callable, dtype: torch.dtype, merge: str
) -> None:
    exact = [
        s._replace(levels=[x.detach().to(dtype).float().requires_grad_() for x in s.levels])
        for s in draw_sources(3)
    ]
    half = [
        s._replace(levels=[x.detach().to(dtype).requires_grad_() for x in s.levels]) for s in exact
    ]
    arguments = (draw_rois(), draw_levels(3), BINS, SCALES, 2, merge)
    pooled, expected = pool(half, *arguments), pool(exact, *arguments)
    assert pooled.dtype == dtype
    torch.testing.assert_close(pooled, expected.to(dtype), rtol=1e-2, atol=1e-6)
    weights = torch.randn_like(expected).to(dtype)
    grads = torch.autograd.grad(pooled, leaves(half), weights)
    wanted = torch.autograd.grad(expected, leaves(exact), weights.float())
    for grad, want in zip(grads, wanted, strict=True):
        assert grad.dtype == dtype
        torch.testing.assert_close(grad, want.to(dtype), rtol=2e-2, atol=2e-2)


CAPABILITY_SCRIPT = """
import sys
import torch
from fsn_d2.layers import Source, merged_roi_align

sources, rois, index = torch.load(sys.argv[1])
banks = [Source([s.requires_grad_()], index) for s in sources]
pooled = merged_roi_align(banks, rois, None, (3, 3), [0.125], 2, "multiply")
torch.save((pooled.detach(), torch.autograd.grad(pooled.square().sum(), sources)), sys.argv[2])
"""


@needs_library
def test_every_vector_unit_gives_the_same(tmp_path: Path) -> None:
    """The variable that limits PyTorch's own kernels limits these too."""
    names = ("default", "avx2", "avx512")
    best = torch.backends.cpu.get_cpu_capability().lower()
    if best not in names:
        pytest.skip(f"vector units of {best} are not chosen at run time")
    torch.manual_seed(0)
    banks = [torch.randn(2, 2, 43, 9, 9) for _ in range(2)]
    index = torch.randint(2, (COUNT, 3, 3))
    torch.save((banks, draw_rois(), index), tmp_path / "problem.pt")
    results = []
    for capability in names[: names.index(best) + 1]:
        subprocess.run(
            [sys.executable, "-c", CAPABILITY_SCRIPT, "problem.pt", f"{capability}.pt"],
            env=os.environ
            | {
                "ATEN_CPU_CAPABILITY": capability,
                "PYTHONPATH": str(Path(fsn_d2.__file__).parents[1]),
            },
            cwd=tmp_path,
            check=True,
        )
        pooled, grads = torch.load(tmp_path / f"{capability}.pt")
        results.append([pooled, *grads])
    for result in results[1:]:
        for actual, expected in zip(result, results[0], strict=True):
            assert_near(actual, expected)


# --- gradients, determinism, and what PyTorch asks of an op ---------------------------------------


def small_problem(merge: str) -> tuple[list[Tensor], Callable[..., Tensor]]:
    """Float64 leaves and a function of them: two levels, shifted, all kinds of RoIs."""
    torch.manual_seed(3)
    zero = torch.zeros(1, dtype=torch.long)
    sizes = [(5, 6), (3, 3)]
    banks = [
        torch.randn(1, b, 2, h + 2 * m, w + 2 * m, dtype=torch.float64).requires_grad_()
        for b, m in ((1, 0), (4, 1), (2, 0))
        for h, w in sizes
    ]
    index = torch.randint(4, (1, 2, 2)), torch.randint(2, (10, 1, 1))
    rois = draw_rois(10, torch.float64)
    rois[:, 0] = 0
    rois[:, 1:] *= 0.5
    levels = torch.arange(10) % 2
    origins = [(0, 0), (0, 2), (2, 0), (2, 2)]

    def pool(*banks: Tensor) -> Tensor:
        sources = [
            Source(banks[:2], zero),
            Source(banks[2:4], index[0], origins),
            Source(banks[4:], index[1]),
        ]
        return merged_roi_align(sources, rois, levels, (2, 2), [1 / 8, 1 / 16], 2, merge)

    return banks, pool


@pytest.mark.parametrize("merge", MERGES)
def test_gradcheck(merge: str) -> None:
    banks, pool = small_problem(merge)
    assert torch.autograd.gradcheck(pool, banks)


@pytest.mark.parametrize("merge", ["stack", "sum"])
def test_second_derivatives_of_linear_merges(merge: str) -> None:
    banks, pool = small_problem(merge)
    assert torch.autograd.gradgradcheck(pool, banks)


def test_second_derivatives_of_products_are_refused() -> None:
    banks, pool = small_problem("multiply")
    grads = torch.autograd.grad(pool(*banks).sum(), banks, create_graph=True)
    with pytest.raises(NotImplementedError, match="'multiply' has no second derivatives"):
        grads[0].sum().backward()


@pytest.mark.parametrize("merge", MERGES)
def test_only_products_keep_their_inputs(merge: str) -> None:
    banks, pool = small_problem(merge)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        pool(*banks)
    addresses = {t.data_ptr() for t in kept}
    assert all((b.data_ptr() in addresses) == merge.startswith("multiply") for b in banks)


@pytest.fixture
def restore_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@needs_library
@pytest.mark.usefixtures("restore_threads")
@pytest.mark.parametrize("merge", MERGES)
def test_the_number_of_threads_does_not_change_a_bit(merge: str) -> None:
    sources = draw_sources(3, shifted=True)
    arguments = (draw_rois(), draw_levels(3), BINS, SCALES, 0, merge)
    weights = torch.randn(COUNT, CHANNELS * (3 if merge == "stack" else 1), *BINS)
    results = []
    for threads in (1, 2, 7, 2):
        torch.set_num_threads(threads)
        pooled = merged_roi_align(sources, *arguments)
        results.append([pooled, *torch.autograd.grad(pooled, leaves(sources), weights)])
    for result in results[1:]:
        assert all(a.equal(b) for a, b in zip(result, results[0], strict=True))


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("num_levels", [1, 3])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(merge: str, num_levels: int, requires_grad: bool) -> None:
    sources = draw_sources(num_levels)
    inputs = [x.detach().requires_grad_(requires_grad) for x in leaves(sources)]
    torch.library.opcheck(
        torch.ops.fsn_d2.selective_roi_align.default,
        (
            inputs,
            draw_rois(),
            draw_levels(num_levels),
            [s.bank_index for s in sources],
            [],
            list(BINS),
            list(SCALES[:num_levels]),
            2,
            merge,
        ),
    )


@pytest.mark.parametrize("merge", MERGES)
def test_compiles_as_one_graph_for_any_number_of_rois(merge: str) -> None:
    graphs = []

    def count_graphs(graph: torch.fx.GraphModule, example_inputs: list) -> Callable:
        graphs.append(graph)
        return graph.forward

    sources = draw_sources(3, shifted=True)

    def pool(banks: list[Tensor], rois: Tensor, levels: Tensor, by_roi: Tensor) -> Tensor:
        given = [
            Source(banks[:3], sources[0].bank_index),
            Source(banks[3:6], sources[1].bank_index, sources[1].origins),
            Source(banks[6:], by_roi),
        ]
        return merged_roi_align(given, rois, levels, BINS, SCALES, 2, merge) * 2

    torch._dynamo.reset()
    compiled = torch.compile(pool, fullgraph=True, dynamic=True, backend=count_graphs)
    banks = leaves(sources)
    for count in (97, 5, 33):  # 97 is no side of a map, so nothing ties it to one
        arguments = (banks, draw_rois(count), draw_levels(3, count), torch.ones(count, 1, 1).long())
        pooled, expected = compiled(*arguments), pool(*arguments)
        assert pooled.equal(expected)
        grads = [torch.autograd.grad(p.sum(), banks) for p in (pooled, expected)]
        assert all(a.equal(b) for a, b in zip(*grads, strict=True))
    assert len(graphs) == 1
    torch._dynamo.reset()


@both_implementations
@pytest.mark.parametrize("merge", MERGES)
def test_no_rois(pool: Callable, merge: str) -> None:
    sources = draw_sources(3)
    sources[2] = sources[2]._replace(bank_index=torch.zeros(0, 1, 1, dtype=torch.long))
    rois, levels = torch.zeros(0, 5), torch.zeros(0, dtype=torch.long)
    pooled = pool(sources, rois, levels, BINS, SCALES, 0, merge)
    assert pooled.shape == (0, CHANNELS * (3 if merge == "stack" else 1), *BINS)
    grads = torch.autograd.grad(pooled.sum(), leaves(sources))
    assert all(g.count_nonzero() == 0 for g in grads)


# --- refusals -------------------------------------------------------------------------------------


def refused_arguments() -> list:
    one, wide = torch.zeros(2, 1, 5, 8, 11), torch.zeros(2, 1, 6, 8, 11)
    small, double = torch.zeros(2, 1, 5, 7, 11), torch.zeros(2, 1, 5, 8, 11).double()
    zero = torch.zeros(1, dtype=torch.long)
    good, levels = Source([one], zero), torch.zeros(COUNT, dtype=torch.long)
    return [
        ({"merge": "mean"}, "merge must be one of"),
        ({"merge": "multiply", "sources": [good]}, "at least two sources"),
        ({"sources": []}, "bank_indices must hold|at least one input"),
        ({"spatial_scales": []}, "spatial_scales must hold"),
        ({"spatial_scales": [1 / 8, 1 / 16]}, "one input per source and level"),
        ({"sources": [good, Source([wide], zero)]}, "same N and C"),
        ({"sources": [good, Source([small], zero)]}, "input"),
        ({"sources": [good, Source([double], zero)]}, "one dtype"),
        ({"sources": [good, Source([one], zero, [(1, 0)])]}, "origin"),
        ({"sources": [good, Source([one], zero, [(-1, 0)])]}, "origin"),
        ({"sources": [good, Source([one], zero, [(0, 0), (0, 0)])]}, "origins"),
        ({"sources": [good, Source([one], zero + 1)]}, "bank_index must lie in"),
        ({"levels": levels[1:]}, r"levels must have the shape \[K\]"),
        ({"levels": levels + 1}, "levels must lie in"),
        ({"levels": levels - 1}, "levels must lie in"),
        ({"levels": levels.float()}, "levels must be an integer tensor, got .*[Ff]loat"),
        ({"levels": levels.bool()}, "levels must be an integer tensor, got .*[Bb]ool"),
        ({"sources": [Source([one.long()], zero)]}, "input must be .*, got (Long|torch.int64)"),
        (
            {"sources": [Source([one, one], zero)], "spatial_scales": [1 / 8, 1 / 16]},
            "levels must name the level",
        ),
    ]


@both_implementations
def test_a_larger_source_without_origins_is_read_from_its_first_cell(pool: Callable) -> None:
    feature, larger = torch.randn(2, 1, 4, 8, 11), torch.randn(2, 3, 4, 10, 12)
    results = []
    for bank in (larger, larger[..., :8, :11].clone()):
        bank.requires_grad_()
        index = torch.arange(9).reshape(3, 3) % 3
        sources = [Source([feature], torch.tensor(0)), Source([bank], index)]
        rois = torch.tensor([[0.0, 2, 3, 50, 40], [1, 30, 10, 80, 60]])
        pooled = pool(sources, rois, None, (3, 3), [1 / 8], 2, "multiply")
        pooled.square().sum().backward()
        results.append((pooled.detach(), bank.grad))
    assert_near(results[0][0], results[1][0])
    assert_near(results[0][1][..., :8, :11], results[1][1])
    assert results[0][1][..., 8:, :].count_nonzero() == 0


@both_implementations
@pytest.mark.parametrize("change, message", refused_arguments())
def test_a_bad_argument_is_refused_by_name(pool: Callable, change: dict, message: str) -> None:
    zero = torch.zeros(1, dtype=torch.long)
    arguments = {
        "sources": [Source([torch.zeros(2, 1, 5, 8, 11)], zero)] * 2,
        "rois": draw_rois(),
        "levels": None,
        "output_size": BINS,
        "spatial_scales": [1 / 8],
        "sampling_ratio": 2,
        "merge": "sum",
    }
    assert pool(**arguments).shape == (COUNT, 5, *BINS)
    with pytest.raises(RuntimeError, match=f"selective_roi_align: .*({message})"):
        pool(**(arguments | change))


@needs_library
def test_the_gradient_of_a_product_needs_its_inputs() -> None:
    zero = torch.zeros(1, dtype=torch.long)
    with pytest.raises(RuntimeError, match="needs every input"):
        torch.ops.fsn_d2.selective_roi_align_backward(
            torch.zeros(COUNT, 5, *BINS),
            [],
            [2, 1, 5, 8, 11] * 2,
            False,
            False,
            draw_rois(),
            None,
            [zero, zero],
            [],
            [1 / 8],
            2,
            "multiply",
        )
