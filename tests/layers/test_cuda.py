"""The CUDA kernels on a GPU, against the CPU kernels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from fsn_d2.layers import cuda_library_path, merged_roi_align, selective_roi_align
from fsn_d2.layers.merged_roi_align import Source

OPS = torch.ops.fsn_d2
MERGES = ("stack", "sum", "multiply", "multiply_relu")
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.skipif(cuda_library_path() is None, reason="the CUDA library is not built"),
]


def test_the_library_holds_the_kernels() -> None:
    """Else the tests below would compare plain PyTorch with the CPU."""
    for op in ("selective_roi_align", "selective_roi_pool"):
        for name in (op, f"{op}_backward"):
            assert torch._C._dispatch_has_kernel_for_dispatch_key(f"fsn_d2::{name}", "CUDA")


@pytest.mark.parametrize("deterministic", [False, True], ids=["scatter", "gather"])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("ratio", [0, 2, 40])
@pytest.mark.parametrize("merge", MERGES)
def test_equals_the_cpu(
    merge: str, ratio: int, dtype: torch.dtype, deterministic: bool, comparison: Any
) -> None:
    pooling = comparison.draw(merge, dtype=dtype, sampling_ratio=ratio, count=300)
    actual = comparison.run(OPS, pooling.to("cuda"), deterministic=deterministic)
    comparison.check(actual, comparison.run(OPS, pooling))


@pytest.mark.parametrize("deterministic", [False, True], ids=["scatter", "gather"])
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"cells": False, "channels": 33}, id="planes"),
        pytest.param({"channels": 5}, id="narrow reads"),
        pytest.param({"channels": 40, "bins": (7, 7), "count": 1000}, id="as in FSN"),
        pytest.param({"channels": 256, "bins": (14, 14)}, id="tiles of bins and channels"),
        pytest.param({"bins": (1, 70)}, id="many bins in a row"),
        pytest.param({"num_levels": 1, "shifted": False}, id="one level"),
    ],
)
def test_equals_the_cpu_in_every_form(
    options: dict[str, Any], deterministic: bool, comparison: Any
) -> None:
    pooling = comparison.draw("multiply", **options)
    planes = not options.get("cells", True)
    actual = comparison.run(OPS, pooling.to("cuda"), planes, deterministic)
    comparison.check(actual, comparison.run(OPS, pooling, planes))


def test_inputs_of_any_strides(comparison: Any) -> None:
    pooling = comparison.draw("stack").to("cuda")
    expected = OPS.selective_roi_align(*pooling)
    bank, *others = pooling.inputs
    for strided in (
        torch.stack([bank, bank], -1)[..., 0],  # every second number
        bank.transpose(3, 4).contiguous().transpose(3, 4),
        torch.cat([bank, bank], 4)[..., : bank.shape[4]],  # rows with gaps
    ):
        assert OPS.selective_roi_align(*pooling._replace(inputs=[strided, *others])).equal(expected)


@pytest.mark.parametrize("merge", MERGES)
def test_the_deterministic_gradient_is_the_same_in_every_run(merge: str, comparison: Any) -> None:
    """Also where many RoIs share their cells."""
    pooling = comparison.draw(merge, num_levels=1, shifted=False, channels=40, count=800).to("cuda")
    first = comparison.run(OPS, pooling, deterministic=True)
    for _ in range(9):
        again = comparison.run(OPS, pooling, deterministic=True)
        assert all(map(torch.equal, again, first))


def test_autograd_asks_for_the_deterministic_form(comparison: Any) -> None:
    bank = torch.randn(1, 4, 8, 20, 20, device="cuda", requires_grad=True)
    rois = torch.tensor([0.0, 8, 8, 120, 120], device="cuda").repeat(500, 1)
    index = torch.randint(4, (500, 7, 7), device="cuda")
    weights = torch.randn(500, 8, 7, 7, device="cuda")
    torch.use_deterministic_algorithms(True)
    try:
        pooled = selective_roi_align(bank, rois, index, 7, 1 / 8, 2)
        grads = [
            torch.autograd.grad(pooled, bank, weights, retain_graph=True)[0] for _ in range(10)
        ]
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(grad.equal(grads[0]) for grad in grads)


def test_runs_on_the_current_stream(comparison: Any) -> None:
    """The inputs are ready only once that stream has come to them."""
    pooling = comparison.draw("multiply", channels=40)
    on_gpu = pooling.to("cuda")
    grad_output = torch.randn_like(OPS.selective_roi_align(*on_gpu))
    expected = comparison.run(OPS, pooling, grad_output=grad_output.cpu())
    late = [torch.zeros_like(x) for x in on_gpu.inputs]
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        for target, source in zip(late, on_gpu.inputs, strict=True):
            target.copy_(source)
        actual = comparison.run(OPS, on_gpu._replace(inputs=late), grad_output=grad_output)
    stream.synchronize()
    comparison.check(actual, expected)


def require_replay(run: Callable[[], list[Tensor]], inputs: list[Tensor], comparison: Any) -> None:
    """Nothing waits for the device or is copied from the host: a replay reads the inputs anew."""
    run()  # loads the kernels, which cannot be captured
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    for x in inputs:
        x.mul_(-2)
    graph.replay()
    torch.cuda.synchronize()
    again = run()
    assert captured[0].equal(again[0])  # gradients that are scattered may add up in another order
    comparison.check(captured, [tensor.cpu() for tensor in again])


@pytest.mark.parametrize("deterministic", [False, True], ids=["scatter", "gather"])
def test_a_cuda_graph_captures_it(deterministic: bool, comparison: Any) -> None:
    pooling = comparison.draw("multiply").to("cuda")
    grad_output = torch.randn_like(OPS.selective_roi_align(*pooling))
    options = {"deterministic": deterministic, "grad_output": grad_output}
    require_replay(partial(comparison.run, OPS, pooling, **options), pooling.inputs, comparison)


@pytest.mark.parametrize("deterministic", [False, True], ids=["scatter", "gather"])
@pytest.mark.parametrize("mode", ["max", "avg"])
def test_a_cuda_graph_captures_bins(mode: str, deterministic: bool, comparison: Any) -> None:
    pooling = comparison.draw_bins(mode).to("cuda")
    grad_output = torch.randn_like(OPS.selective_roi_pool(*pooling))
    options = {"deterministic": deterministic, "grad_output": grad_output}
    require_replay(
        partial(comparison.run_bins, OPS, pooling, **options), pooling.inputs, comparison
    )


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_runs_on_the_device_of_its_inputs(comparison: Any) -> None:
    pooling = comparison.draw("multiply")
    actual = comparison.run(OPS, pooling.to("cuda:1"))
    assert actual[0].device.index == 1 and torch.cuda.current_device() == 0
    comparison.check(actual, comparison.run(OPS, pooling))


def test_tensors_of_several_devices_raise(comparison: Any) -> None:
    pooling = comparison.draw("sum").to("cuda")
    with pytest.raises(RuntimeError, match="same device; rois"):
        OPS.selective_roi_align(*pooling._replace(rois=pooling.rois.cpu()))


def test_what_is_out_of_range_gives_nan(comparison: Any) -> None:
    pooling = comparison.draw("stack", count=24).to("cuda")
    rois, levels = pooling.rois.clone(), pooling.levels.clone()
    rois[0, 0], rois[1, 0], rois[2, 3], levels[3] = -1, 2, torch.nan, 3
    index = pooling.bank_indices[2].clone()
    index[4] = 3
    bad = pooling._replace(
        rois=rois, levels=levels, bank_indices=[*pooling.bank_indices[:2], index]
    )
    for deterministic in (False, True):
        pooled, *grads = comparison.run(OPS, bad, deterministic=deterministic)
        assert pooled[:4].isnan().all() and pooled[4, 16:].isnan().all()
        assert not pooled[5:].isnan().any() and not pooled[4, :16].isnan().any()
        assert all(grad.isfinite().all() for grad in grads)


def test_no_rois_and_no_channels(comparison: Any) -> None:
    pooling = comparison.draw("stack", channels=0).to("cuda")
    assert OPS.selective_roi_align(*pooling).shape == (60, 0, 3, 4)
    bank = torch.randn(1, 1, 8, 5, 5, device="cuda", requires_grad=True)
    rois = torch.zeros(0, 5, device="cuda")
    pooled = merged_roi_align(
        [Source([bank], torch.tensor(0, device="cuda"))], rois, None, (2, 2), [1.0], 0, "sum"
    )
    assert pooled.shape == (0, 8, 2, 2)
    pooled.sum().backward()
    assert bank.grad is not None and bank.grad.count_nonzero() == 0


# --- selective_roi_pool ---------------------------------------------------------------------------


@pytest.mark.parametrize("deterministic", [False, True], ids=["scatter", "gather"])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("mode", ["max", "avg"])
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="cells"),
        pytest.param({"cells": False, "channels": 33}, id="planes"),
        pytest.param({"channels": 40, "bins": (7, 7), "count": 1000}, id="as in Fast R-CNN"),
        pytest.param({"channels": 256, "bins": (14, 14)}, id="tiles of bins and channels"),
    ],
)
def test_bins_equal_the_cpu(
    options: dict[str, Any], mode: str, dtype: torch.dtype, deterministic: bool, comparison: Any
) -> None:
    pooling = comparison.draw_bins(mode, dtype=dtype, **options)
    planes = not options.get("cells", True)
    actual = comparison.run_bins(OPS, pooling.to("cuda"), planes, deterministic)
    comparison.check(actual, comparison.run_bins(OPS, pooling, planes))


@pytest.mark.parametrize("mode", ["max", "avg"])
def test_the_deterministic_gradient_of_bins_is_the_same_in_every_run(
    mode: str, comparison: Any
) -> None:
    pooling = comparison.draw_bins(mode, num_levels=1, channels=40, count=800).to("cuda")
    first = comparison.run_bins(OPS, pooling, deterministic=True)
    for _ in range(9):
        again = comparison.run_bins(OPS, pooling, deterministic=True)
        assert all(map(torch.equal, again, first))


@pytest.mark.parametrize("mode", ["max", "avg"])
def test_bins_out_of_range_give_nan(mode: str, comparison: Any) -> None:
    pooling = comparison.draw_bins(mode, count=24).to("cuda")
    rois, levels = pooling.rois.clone(), pooling.levels.clone()
    rois[0, 0], rois[1, 0], rois[2, 3], levels[3] = -1, 2, torch.nan, 3
    index = pooling.bank_index.repeat(24, 1, 1)
    index[4] = 9
    bad = pooling._replace(rois=rois, levels=levels, bank_index=index)
    for deterministic in (False, True):
        pooled, *grads = comparison.run_bins(OPS, bad, deterministic=deterministic)
        assert pooled[:5].isnan().all() and not pooled[5:].isnan().any()
        assert all(grad.isfinite().all() for grad in grads)
