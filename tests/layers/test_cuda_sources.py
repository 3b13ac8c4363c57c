"""What nvcc makes of the sources, looked at without a GPU."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

import fsn_d2.layers

SOURCES = Path(fsn_d2.layers.__file__).parent / "csrc" / "cuda"
NVCC = f"{cpp_extension.CUDA_HOME}/bin/nvcc"

pytestmark = [
    pytest.mark.skipif(torch.version.cuda is None, reason="PyTorch without CUDA"),
    pytest.mark.skipif(shutil.which(NVCC) is None, reason="no nvcc"),
    pytest.mark.skipif(shutil.which("nm") is None, reason="no nm"),
    pytest.mark.skipif(not SOURCES.is_dir(), reason="the sources are not at hand"),
]


@pytest.mark.parametrize("op", ["selective_roi_align", "selective_roi_pool"])
def test_the_host_calls_no_function_of_the_device(op: str, tmp_path: Path) -> None:
    """In a template nvcc does not refuse that: it puts an `exit` in the function's place."""
    command = [NVCC, "-c", "-O0", "-std=c++17", "-arch=sm_90", "--expt-relaxed-constexpr", "-w"]
    command += ["-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020b000000000000", "-Xptxas", "-O0"]
    for path in cpp_extension.include_paths("cuda"):
        command += ["-isystem", path]
    target = tmp_path / "op.o"
    result = subprocess.run(
        [*command, str(SOURCES / f"{op}.cu"), "-o", str(target)], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    symbols = subprocess.run(["nm", "-u", str(target)], capture_output=True, text=True, check=True)
    undefined = {line.split()[-1] for line in symbols.stdout.splitlines()}
    assert any("LaunchKernel" in name for name in undefined)  # this is the host's side
    assert "exit" not in undefined
