"""The code of the CUDA kernels, run on the host: cuda_on_host.cpp compiles csrc/cuda for the CPU,
with threads in place of a block's, and the results are compared with those of the CPU kernels.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils import cpp_extension

import fsn_d2.layers
from fsn_d2.layers import op_library_path

CUDA_SOURCES = Path(fsn_d2.layers.__file__).parent / "csrc" / "cuda"
HOST_SOURCE = Path(__file__).with_name("cuda_on_host.cpp")
CPU = torch.ops.fsn_d2
MERGES = ("stack", "sum", "multiply", "multiply_relu")
COMPILER = shutil.which("g++") or shutil.which("clang++")

pytestmark = [
    pytest.mark.skipif(op_library_path() is None, reason="the extension is not built"),
    pytest.mark.skipif(COMPILER is None, reason="no C++ compiler"),
    pytest.mark.skipif(not CUDA_SOURCES.is_dir(), reason="the sources are not at hand"),
]


def compile_for_host(target: Path) -> None:
    command = [str(COMPILER), "-O1", "-std=c++17", "-ffp-contract=off", "-fPIC", "-shared", "-w"]
    command += ["-DTORCH_TARGET_VERSION=0x020b000000000000", f"-I{CUDA_SOURCES}"]
    command += [f"-I{path}" for path in cpp_extension.include_paths()]
    command += [str(HOST_SOURCE), "-o", str(target), "-pthread"]
    command += [f"-L{path}" for path in cpp_extension.library_paths()] + ["-ltorch", "-ltorch_cpu"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    path = tmp_path_factory.mktemp("cuda_on_host") / "cuda_on_host.so"
    compile_for_host(path)
    torch.ops.load_library(str(path))
    return ctypes.CDLL(str(path))


@pytest.fixture(params=[1, 3], ids=["1 thread", "3 threads"])
def host(library: ctypes.CDLL, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The op, with so many threads per block."""
    library.set_threads_per_block(request.param)
    yield torch.ops.fsn_d2_on_host
    library.set_threads_per_block(1)


@pytest.mark.parametrize("deterministic", [False, True], ids=["scatter", "gather"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("merge", MERGES)
def test_equals_the_cpu(
    host: Any, merge: str, ratio: int, dtype: torch.dtype, deterministic: bool, comparison: Any
) -> None:
    """Three levels, shifted maps, and RoIs of all kinds; wide reads from cells."""
    pooling = comparison.draw(merge, dtype=dtype, sampling_ratio=ratio, count=36)
    actual = comparison.run(host, pooling, deterministic=deterministic)
    comparison.check(actual, comparison.run(CPU, pooling))


@pytest.mark.parametrize("deterministic", [False, True], ids=["scatter", "gather"])
@pytest.mark.parametrize("merge", ["stack", "multiply"])
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"cells": False, "channels": 33}, id="planes"),
        pytest.param({"one_map": True}, id="one map in memory"),
        pytest.param({"channels": 5}, id="narrow reads"),
        pytest.param({"bins": (1, 40), "channels": 2}, id="tiles of one row of bins"),
        pytest.param({"bins": (18, 3), "channels": 2}, id="tiles of several rows of bins"),
        pytest.param({"channels": 600, "num_levels": 1}, id="tiles of channels"),
        pytest.param({"sampling_ratio": 40, "channels": 4}, id="several passes"),
        pytest.param({"num_levels": 1, "shifted": False}, id="one level"),
        pytest.param({"dtype": torch.float16}, id="half"),
        pytest.param({"dtype": torch.bfloat16}, id="bfloat16"),
    ],
)
def test_equals_the_cpu_in_every_form(
    library: ctypes.CDLL, options: dict[str, Any], merge: str, deterministic: bool, comparison: Any
) -> None:
    pooling = comparison.draw(merge, count=24, **options)
    planes = not options.get("cells", True)
    actual = comparison.run(torch.ops.fsn_d2_on_host, pooling, planes, deterministic)
    comparison.check(actual, comparison.run(CPU, pooling, planes))


@pytest.mark.parametrize("deterministic", [False, True], ids=["scatter", "gather"])
def test_what_is_out_of_range_gives_nan_and_no_gradient(
    library: ctypes.CDLL, deterministic: bool, comparison: Any
) -> None:
    host = torch.ops.fsn_d2_on_host
    pooling = comparison.draw("stack", count=24)
    keep = torch.arange(24) >= 6
    bad_rois, bad_levels = pooling.rois.clone(), pooling.levels.clone()
    bad_rois[0, 0], bad_rois[1, 0], bad_rois[2, 0] = -1, 2, torch.nan
    bad_rois[3, 1] = torch.inf
    bad_levels[4], bad_levels[5] = -1, 3
    by_roi = pooling.bank_indices[2].clone()
    by_roi[6], by_roi[7] = 3, -1
    indices = [*pooling.bank_indices[:2], by_roi]
    bad = pooling._replace(rois=bad_rois, levels=bad_levels, bank_indices=indices)
    grad_output = torch.randn(24, 24, 3, 4, generator=torch.Generator().manual_seed(0))
    pooled, *grads = comparison.run(host, bad, False, deterministic, grad_output)

    expected, *_ = comparison.run(CPU, pooling)
    wrong = ~keep[:, None].repeat(1, 24)
    wrong[6:8, 16:] = True  # the third source's channels
    assert torch.equal(pooled.isnan().all(-1).all(-1), wrong)
    comparison.check([pooled[~wrong]], [expected[~wrong]])
    # As if there were only the other RoIs, and the two bins' gradients were 0.
    grad_output[wrong] = 0
    by_roi[6:8] = 0
    good = bad._replace(rois=bad_rois[keep], levels=bad_levels[keep])
    good = good._replace(bank_indices=[*indices[:2], by_roi[keep]])
    _, *wanted = comparison.run(CPU, good, False, deterministic, grad_output[keep])
    comparison.check(grads, wanted)


@pytest.mark.parametrize("deterministic", [False, True], ids=["scatter", "gather"])
@pytest.mark.parametrize("merge", MERGES[1:])
def test_a_merged_bin_that_lacks_a_map_gives_nan_and_no_gradient(
    library: ctypes.CDLL, merge: str, deterministic: bool, comparison: Any
) -> None:
    pooling = comparison.draw(merge, count=24)
    of_feature, by_bin, by_roi = pooling.bank_indices
    of_feature, by_roi = of_feature.repeat(24, 1, 1), by_roi.clone()
    of_feature[5], by_roi[6], by_roi[7] = 1, 3, -1
    bad = pooling._replace(bank_indices=[of_feature, by_bin, by_roi])
    grad_output = torch.randn(24, 8, 3, 4, generator=torch.Generator().manual_seed(0))
    pooled, *grads = comparison.run(
        torch.ops.fsn_d2_on_host, bad, False, deterministic, grad_output
    )
    wrong = torch.zeros(24, dtype=torch.bool)
    wrong[5:8] = True
    assert torch.equal(pooled.isnan().flatten(1).all(1), wrong)
    grad_output[wrong], of_feature[wrong], by_roi[wrong] = 0, 0, 0
    expected, *wanted = comparison.run(CPU, bad, False, deterministic, grad_output)
    comparison.check([pooled[~wrong], *grads], [expected[~wrong], *wanted])


def test_a_huge_roi_costs_no_more_than_the_map(library: ctypes.CDLL, comparison: Any) -> None:
    """Else one of these would take minutes: 1e7 cells, 1024 samples per side of a bin."""
    pooling = comparison.draw("sum", dtype=torch.float64, num_levels=1, shifted=False, count=1)
    rois = torch.tensor([[0, -1e7, -1e7, 1e7, 1e7], [1, -2e7, -30, 4e7, 1e3]]).double()
    indices = [torch.tensor(0)] * 3
    for ratio in (0, 1024):
        huge = pooling._replace(rois=rois, bank_indices=indices, sampling_ratio=ratio)
        actual = comparison.run(torch.ops.fsn_d2_on_host, huge, deterministic=True)
        for a, e in zip(actual, comparison.run(CPU, huge), strict=True):
            torch.testing.assert_close(a, e)


@pytest.mark.parametrize("deterministic", [False, True], ids=["scatter", "gather"])
@pytest.mark.parametrize("far", [1e9, 1e30, 3e38])
def test_a_roi_far_away_costs_no_more_than_the_map(
    library: ctypes.CDLL, far: float, deterministic: bool, comparison: Any
) -> None:
    """Else one of these would take hours: their sums overflow, or their rounding exceeds a bin."""
    pooling = comparison.draw("sum", num_levels=1, shifted=False, count=1)
    near = 1.001 * far if far < 3e38 else 3.1e38
    corners = [(-far, -far, 5, 5), (-far, -far, far / 2, far / 2), (far, far, near, near)]
    rois = torch.tensor([(0.0, *c) for c in corners])
    indices = [torch.tensor(0)] * 3
    distant = pooling._replace(rois=rois, bank_indices=indices, sampling_ratio=0)
    actual = comparison.run(torch.ops.fsn_d2_on_host, distant, deterministic=deterministic)
    for a, e in zip(actual, comparison.run(CPU, distant), strict=True):
        torch.testing.assert_close(a, e)


def test_unfit_arguments_raise_as_on_the_cpu(library: ctypes.CDLL, comparison: Any) -> None:
    pooling = comparison.draw("multiply")
    wrong = [
        pooling._replace(rois=pooling.rois[:, :4]),
        pooling._replace(levels=None),
        pooling._replace(merge="divide"),
        pooling._replace(sampling_ratio=-1),
        pooling._replace(origins=pooling.origins[:-1]),
        pooling._replace(inputs=[x.long() for x in pooling.inputs]),
        pooling._replace(bank_indices=[torch.zeros(7)] * 3),
    ]
    for arguments in wrong:
        messages = []
        for ops in (torch.ops.fsn_d2_on_host, CPU):
            with warnings.catch_warnings(), pytest.raises(RuntimeError) as error:
                warnings.simplefilter("ignore")
                ops.selective_roi_align(*arguments)
            messages.append(str(error.value).split("\n")[0].split(":")[1:3])
        assert messages[0] == messages[1]


# --- selective_roi_pool ---------------------------------------------------------------------------


@pytest.mark.parametrize("deterministic", [False, True], ids=["scatter", "gather"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mode", ["max", "avg"])
def test_bins_equal_the_cpu(
    host: Any, mode: str, dtype: torch.dtype, deterministic: bool, comparison: Any
) -> None:
    pooling = comparison.draw_bins(mode, dtype=dtype, count=36)
    actual = comparison.run_bins(host, pooling, deterministic=deterministic)
    comparison.check(actual, comparison.run_bins(CPU, pooling))


@pytest.mark.parametrize("deterministic", [False, True], ids=["scatter", "gather"])
@pytest.mark.parametrize("mode", ["max", "avg"])
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"cells": False, "channels": 33}, id="planes"),
        pytest.param({"channels": 5}, id="narrow reads"),
        pytest.param({"bins": (1, 40), "channels": 2}, id="tiles of one row of bins"),
        pytest.param({"bins": (18, 3), "channels": 2}, id="tiles of several rows of bins"),
        pytest.param({"channels": 600, "num_levels": 1}, id="tiles of channels"),
        pytest.param({"num_levels": 1}, id="one level"),
        pytest.param({"dtype": torch.float16}, id="half"),
        pytest.param({"dtype": torch.bfloat16}, id="bfloat16"),
    ],
)
def test_bins_equal_the_cpu_in_every_form(
    library: ctypes.CDLL, options: dict[str, Any], mode: str, deterministic: bool, comparison: Any
) -> None:
    pooling = comparison.draw_bins(mode, count=24, **options)
    planes = not options.get("cells", True)
    actual = comparison.run_bins(torch.ops.fsn_d2_on_host, pooling, planes, deterministic)
    comparison.check(actual, comparison.run_bins(CPU, pooling, planes))


@pytest.mark.parametrize("deterministic", [False, True], ids=["scatter", "gather"])
@pytest.mark.parametrize("mode", ["max", "avg"])
def test_bins_out_of_range_give_nan_and_no_gradient(
    library: ctypes.CDLL, mode: str, deterministic: bool, comparison: Any
) -> None:
    host = torch.ops.fsn_d2_on_host
    pooling = comparison.draw_bins(mode, count=24)
    bad_rois, bad_levels = pooling.rois.clone(), pooling.levels.clone()
    bad_rois[0, 0], bad_rois[1, 0], bad_rois[2, 0] = -1, 2, torch.nan
    bad_rois[3, 1] = torch.inf
    bad_levels[4], bad_levels[5] = -1, 3
    index = pooling.bank_index.repeat(24, 1, 1)
    index[6], index[7] = 9, -1
    bad = pooling._replace(rois=bad_rois, levels=bad_levels, bank_index=index)
    grad_output = torch.randn(24, 8, 3, 4, generator=torch.Generator().manual_seed(0))
    pooled, *grads = comparison.run_bins(host, bad, False, deterministic, grad_output)

    good = pooling._replace(rois=bad_rois[8:], levels=bad_levels[8:], bank_index=pooling.bank_index)
    expected = comparison.run_bins(CPU, good, False, deterministic, grad_output[8:])
    assert pooled[:8].isnan().all()
    comparison.check([pooled[8:], *grads], expected)


def test_unfit_arguments_of_bins_raise_as_on_the_cpu(library: ctypes.CDLL, comparison: Any) -> None:
    pooling = comparison.draw_bins("max")
    for arguments in (
        pooling._replace(mode="min"),
        pooling._replace(levels=None),
        pooling._replace(output_size=[2]),
        pooling._replace(bank_index=torch.zeros(7)),
    ):
        messages = []
        for ops in (torch.ops.fsn_d2_on_host, CPU):
            with pytest.raises(RuntimeError) as error:
                ops.selective_roi_pool(*arguments)
            messages.append(str(error.value).split("\n")[0].split(":")[1:3])
        assert messages[0] == messages[1]
