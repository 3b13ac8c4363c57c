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
from fsn_d2.layers import op_library_path, selective_roi_align

LAYERS = Path(fsn_d2.layers.__file__).parent
needs_library = pytest.mark.skipif(op_library_path() is None, reason="the extension is not built")

# Pools twice in each direction, and reports the warnings and the results.
POOL_AND_REPORT = """
import json, sys, warnings
import torch

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from fsn_d2.layers import op_library_path, selective_roi_align
    bank, rois, index = torch.load(sys.argv[1])
    for _ in range(2):
        bank = bank.detach().requires_grad_()
        pooled = selective_roi_align(bank, rois, index, (2, 3), 0.125, 0)
        pooled.square().sum().backward()
torch.save((pooled.detach(), bank.grad), sys.argv[2])
path = op_library_path()
ours = [str(w.message) for w in caught if str(w.message).startswith("fsn_d2")]
print(json.dumps({"library": path and path.name, "warnings": ours}))
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
