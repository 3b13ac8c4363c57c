"""Which libraries an installation builds."""

from __future__ import annotations

import os
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils import cpp_extension

SETUP = Path(__file__).parents[1] / "setup.py"


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """The names of what setup.py asks to be built, under the environment variables given."""
    given: dict[str, Any] = {}
    monkeypatch.setattr("setuptools.setup", lambda **arguments: given.update(arguments))
    for variable in ("FORCE_CUDA", "FSN_D2_NO_EXTENSION", "TORCH_CUDA_ARCH_LIST"):
        monkeypatch.delenv(variable, raising=False)

    def run(**environment: str) -> list[str]:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        runpy.run_path(str(SETUP))
        return [library.name for library in given.get("ext_modules", [])]

    return run


def put_nvcc(folder: Path, release: str) -> str:
    """A toolkit whose nvcc only tells its version."""
    nvcc = folder / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}.1'\n")
    nvcc.chmod(0o755)
    return str(folder)


def test_without_a_gpu_the_cpu_library_alone(libraries, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert libraries() == ["fsn_d2._C"]


def test_no_cuda_library_on_request(libraries, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", put_nvcc(tmp_path, "13.0"))
    assert libraries(FORCE_CUDA="0") == ["fsn_d2._C"]


def test_no_library_on_request(libraries) -> None:
    assert libraries(FSN_D2_NO_EXTENSION="1") == []


@pytest.mark.parametrize(("toolkit", "built"), [("13.1", True), ("12.8", False), (None, False)])
def test_with_a_gpu_a_toolkit_that_fits_is_used(
    libraries, monkeypatch, tmp_path: Path, toolkit: str | None, built: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    home = put_nvcc(tmp_path, toolkit) if toolkit else None
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", home)
    monkeypatch.setattr(cpp_extension, "library_paths", lambda device="cpu": [])
    monkeypatch.setattr(cpp_extension, "include_paths", lambda device="cpu": [])
    assert libraries() == ["fsn_d2._C", *(["fsn_d2._C_cuda"] if built else [])]


@pytest.mark.parametrize(
    ("toolkit", "last"), [("13.0", "12.0+PTX"), ("12.8", "12.0+PTX"), ("12.6", "9.0+PTX")]
)
def test_a_release_is_built_for_what_its_toolkit_knows(
    libraries, monkeypatch, tmp_path: Path, toolkit: str, last: str
) -> None:
    monkeypatch.setattr(torch.version, "cuda", toolkit)
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", put_nvcc(tmp_path, toolkit))
    monkeypatch.setattr(cpp_extension, "library_paths", lambda device="cpu": [])
    monkeypatch.setattr(cpp_extension, "include_paths", lambda device="cpu": [])
    monkeypatch.setattr(os, "environ", dict(os.environ))
    assert "fsn_d2._C_cuda" in libraries(FORCE_CUDA="1")
    assert os.environ["TORCH_CUDA_ARCH_LIST"].split(";")[-1] == last


def test_forced_without_what_it_needs_ends_in_one_line(libraries, monkeypatch) -> None:
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", None)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(SystemExit, match=r"^error: FORCE_CUDA=1 needs nvcc"):
        libraries(FORCE_CUDA="1")
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(SystemExit, match=r"^error: FORCE_CUDA=1 needs a PyTorch built with CUDA"):
        libraries(FORCE_CUDA="1")
