"""The op library as a file: what it needs, who can load it, what happens where it is missing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fsn_d2.layers
from fsn_d2.layers import (
    Source,
    merged_roi_align,
    op_library_path,
    selective_roi_align,
    selective_roi_pool,
)

LAYERS = Path(fsn_d2.layers.__file__).parent
needs_library = pytest.mark.skipif(op_library_path() is None, reason="the extension is not built")

# Pools twice in each direction, and reports the warnings, the results and how no source is refused.
POOL_AND_REPORT = """
import json, sys, warnings
import torch

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from fsn_d2.layers import merged_roi_align, op_library_path, selective_roi_align
    bank, rois, index = torch.load(sys.argv[1])
    for _ in range(2):
        bank = bank.detach().requires_grad_()
        pooled = selective_roi_align(bank, rois, index, (2, 3), 0.125, 0)
        pooled.square().sum().backward()
torch.save((pooled.detach(), bank.grad), sys.argv[2])
try:
    merged_roi_align([], rois, None, (2, 3), [0.125], 0, "sum")
except RuntimeError as error:
    refusal = str(error)
path = op_library_path()
ours = [str(w.message) for w in caught if str(w.message).startswith("fsn_d2")]
print(json.dumps({"library": path and path.name, "warnings": ours, "refusal": refusal}))
"""

LOAD_THE_LIBRARY_ALONE = """
import sys
import torch

torch.ops.load_library(sys.argv[1])
ramp = torch.arange(16.0).view(1, 1, 1, 4, 4)
rois = torch.tensor([[0.0, 1, 1, 3, 3]])
index = torch.tensor([0])
rest = (rois, None, [index], [])
pooled = torch.ops.fsn_d2.selective_roi_align([ramp], *rest, [2, 2], [1.0], 1, "sum")
assert pooled.tolist() == [[[[5, 6], [9, 10]]]], pooled
(grad,) = torch.ops.fsn_d2.selective_roi_align_backward(
    pooled, [], [1, 1, 1, 4, 4], True, False, *rest, [1.0], 1, "sum"
)
assert grad[0, 0, 0].tolist() == [[0] * 4, [0, 5, 6, 0], [0, 9, 10, 0], [0] * 4], grad
assert not any(name.split(".")[0] == "fsn_d2" for name in sys.modules)

import fsn_d2.layers  # the package finds the library loaded already

assert fsn_d2.layers.selective_roi_align(ramp, rois, index, 2, 1.0, 1).equal(pooled)
print("done")
"""


SCRIPT_A_SHARED_LIST = """
import sys
import torch

torch.ops.load_library(sys.argv[1])
scripted = torch.jit.CompilationUnit('''
def pool_twice(bank, rois, index):
    banks = [bank]
    once = torch.ops.fsn_d2.selective_roi_align(
        banks, rois, None, [index], [], [2, 2], [0.5], 1, "sum"
    )
    again = torch.ops.fsn_d2.selective_roi_align(
        banks, rois, None, [index], [], [2, 2], [0.5], 2, "sum"
    )
    return once + again
''')
try:
    bank, rois = torch.ones(1, 1, 1, 4, 4), torch.tensor([[0.0, 1, 1, 3, 3]])
    print(scripted.pool_twice(bank, rois, torch.tensor([0])).unique().tolist())
except RuntimeError as error:
    print(error)
"""

RUN_A_TRACED_GRAPH = """
import sys
import torch

library, model, arguments, answers = sys.argv[1:]
torch.ops.load_library(library)
model = torch.jit.load(model)
arguments = torch.load(arguments)
torch.save([model(*arguments) for _ in range(3)], answers)  # TorchScript optimizes the later ones
assert not any(name.split(".")[0] == "fsn_d2" for name in sys.modules)
"""


def run_python(script: str, *arguments: object, path: Path) -> str:
    """Runs `script` in a fresh process that imports from `path`, and returns what it printed."""
    process = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(path)},
        cwd=path,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def copy_layers(target: Path) -> Path:
    """A package fsn_d2 that holds the layers alone, without a library."""
    ignored = shutil.ignore_patterns("__pycache__", "csrc")
    shutil.copytree(LAYERS, target / "fsn_d2" / "layers", ignore=ignored)
    (target / "fsn_d2" / "__init__.py").touch()
    return target


@pytest.fixture
def pooling_problem() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    bank = torch.randn(2, 3, 4, 7, 8)
    corners = torch.rand(60, 4) * 90 - 15
    rois = torch.cat([torch.arange(60)[:, None] % 2, corners], 1)
    return bank, rois, torch.randint(3, (60, 2, 3))


@pytest.mark.parametrize("garbage", [None, b"not a shared library"])
def test_without_a_usable_library_results_are_equal_and_one_warning_says_so(
    garbage: bytes | None, pooling_problem: tuple[Tensor, ...], tmp_path: Path
) -> None:
    package = copy_layers(tmp_path / "copy")
    if garbage is not None:
        (package / "fsn_d2" / "_C.abi3.so").write_bytes(garbage)
    problem, result = tmp_path / "problem.pt", tmp_path / "result.pt"
    torch.save(pooling_problem, problem)
    report = json.loads(run_python(POOL_AND_REPORT, problem, result, path=package))

    assert report["library"] == (None if garbage is None else "_C.abi3.so")
    (warning,) = report["warnings"]
    assert ("not built" if garbage is None else "does not load") in warning
    assert "pip install --no-build-isolation" in warning
    assert report["refusal"].startswith("selective_roi_align: bank_indices must hold")

    bank, rois, index = pooling_problem
    bank.requires_grad_()
    pooled = selective_roi_align(bank, rois, index, (2, 3), 0.125, 0)
    pooled.square().sum().backward()
    assert bank.grad is not None and bank.grad.count_nonzero() > 0
    for actual, expected in zip(torch.load(result), (pooled.detach(), bank.grad), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@needs_library
def test_the_library_needs_no_package(tmp_path: Path) -> None:
    package = copy_layers(tmp_path)
    library = shutil.copy(str(op_library_path()), package / "fsn_d2")
    assert run_python(LOAD_THE_LIBRARY_ALONE, library, path=package).strip() == "done"


class PoolsOnePyramidAgain(torch.nn.Module):
    """Every op reads the same lists of tensors, and so does a function of PyTorch's after them.

    One list is of a constant alone.
    """

    def forward(self, fine: Tensor, coarse: Tensor, rois: Tensor, index: Tensor) -> list[Tensor]:
        levels = rois[:, 0].long()
        source, scales = Source([fine, coarse], index), (0.25, 0.125)
        found = []
        for bins in (2, 3):
            size = (bins, bins)
            found.append(merged_roi_align([source], rois, levels, size, scales, 0, "sum"))
            found.append(selective_roi_align(coarse, rois, index, size, 0.125, 0))
            found.append(
                selective_roi_pool([fine, coarse], rois, index, size, scales, levels=levels)
            )
        found.append(selective_roi_align(fine, rois, torch.tensor(0), 2, 0.25, 0))
        return [*found, torch.cat([fine.flatten(), coarse.flatten()]), torch.cat([coarse])]


@needs_library
def test_ops_of_a_traced_graph_leave_each_other_their_inputs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    rois = torch.tensor([[0.0, 1, 2, 30, 40], [0, 5, 5, 9, 60]])
    arguments = [torch.randn(1, 2, 4, 16, 20), torch.randn(1, 2, 4, 8, 10), rois]
    arguments.append(torch.tensor([0, 1]).view(2, 1, 1))
    module = PoolsOnePyramidAgain()
    torch.jit.trace(module, tuple(arguments)).save(str(tmp_path / "model.ts"))
    torch.save(arguments, tmp_path / "arguments.pt")
    files = [tmp_path / name for name in ("model.ts", "arguments.pt", "answers.pt")]
    run_python(RUN_A_TRACED_GRAPH, op_library_path(), *files, path=tmp_path)
    for answer in torch.load(files[2]):
        torch.testing.assert_close(answer, module(*arguments))


@needs_library
def test_a_scripted_graph_whose_list_is_used_up_is_told_so(tmp_path: Path) -> None:
    told = run_python(SCRIPT_A_SHARED_LIST, op_library_path(), path=tmp_path)
    if told.strip() != "[2.0]":  # right where PyTorch leaves the list alone
        assert "inputs holds an undefined tensor" in told and "trace the whole model" in told


@needs_library
@pytest.mark.skipif(shutil.which("nm") is None, reason="nm (binutils) is not installed")
def test_the_library_asks_for_neither_python_nor_unstable_torch_symbols() -> None:
    """Else it would serve one CPython, or one torch, or no C++ program."""
    listing = subprocess.run(
        ["nm", "-D", "--undefined-only", str(op_library_path())],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    symbols = [line.split()[-1] for line in listing.splitlines()]
    assert any(symbol.startswith("aoti_torch_") for symbol in symbols)
    unstable = ("Py", "_Py", "_ZN2at", "_ZN3c10", "_ZNK2at", "_ZNK3c10", "_ZN5torch")
    assert [symbol for symbol in symbols if symbol.startswith(unstable)] == []


def test_the_library_lies_in_the_package() -> None:
    path = op_library_path()
    if path is not None:
        assert path.is_file() and path.parent == LAYERS.parent and path.name.startswith("_C")
