"""The compiled part of the package: op libraries built against PyTorch's stable ABI.

`fsn_d2/_C` holds the CPU kernels. `fsn_d2/_C_cuda` adds those of CUDA: it is built where PyTorch
sees a GPU and its nvcc is installed, for that GPU, nowhere with `FORCE_CUDA=0`, and everywhere with
`FORCE_CUDA=1`, for the architectures of TORCH_CUDA_ARCH_LIST or for all. Everything else about the
package is in pyproject.toml. `FSN_D2_NO_EXTENSION=1` builds without libraries; the reference
implementation in plain PyTorch then serves.
"""

import os
import re
import subprocess
import sys
from glob import glob

from setuptools import Extension, setup

SOURCES = "fsn_d2/layers/csrc"

# The oldest torch whose stable ABI is used, 2.11, in the form torch/headeronly/version.h defines.
TORCH_TARGET_VERSION = "0x020b000000000000"

COMPILE_ARGUMENTS = ["-O3", "-std=c++17", f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}"]
CXX_ARGUMENTS = ["-g0", "-fvisibility=hidden"]
CUDA_ARCHITECTURES = "7.5;8.0;8.6;8.9;9.0;10.0;12.0+PTX"
CUDA_ARCHITECTURES_BEFORE_12_8 = "7.5;8.0;8.6;8.9;9.0+PTX"  # newer GPUs translate the PTX


def is_set(variable: str) -> bool:
    return os.environ.get(variable, "0") not in ("", "0")


def cpu_library() -> Extension:
    from torch.utils.cpp_extension import CppExtension

    return CppExtension(
        "fsn_d2._C",
        sorted(glob(f"{SOURCES}/cpu/*.cpp")),
        depends=sorted(glob(f"{SOURCES}/**/*.h", recursive=True)),
        py_limited_api=True,
        extra_compile_args={"cxx": [*COMPILE_ARGUMENTS, *CXX_ARGUMENTS]},
    )


def nvcc_release() -> str | None:
    """The version of the CUDA toolkit, "13.0", or None without its compiler."""
    from torch.utils.cpp_extension import CUDA_HOME

    try:
        answer = subprocess.check_output([f"{CUDA_HOME}/bin/nvcc", "--version"], text=True)
    except OSError:
        return None
    found = re.search(r"release (\d+\.\d+)", answer)
    return found.group(1) if found else None


def all_cuda_architectures() -> str:
    """Those that this nvcc knows, in the form of TORCH_CUDA_ARCH_LIST."""
    release = tuple(map(int, (nvcc_release() or "0.0").split(".")))
    return CUDA_ARCHITECTURES if release >= (12, 8) else CUDA_ARCHITECTURES_BEFORE_12_8


def wants_cuda() -> bool:
    import torch

    nvcc = nvcc_release()
    if os.environ.get("FORCE_CUDA") == "0":
        return False
    if is_set("FORCE_CUDA"):
        if torch.version.cuda is None:
            sys.exit("error: FORCE_CUDA=1 needs a PyTorch built with CUDA; this one is not")
        if nvcc is None:
            sys.exit("error: FORCE_CUDA=1 needs nvcc: install the CUDA toolkit and set CUDA_HOME")
        return True
    if not torch.cuda.is_available():
        return False
    if nvcc is None:
        print("building for the CPU alone: a GPU is there, but no nvcc; set CUDA_HOME to a toolkit")
        return False
    # PyTorch's build refuses a toolkit of another major version than its own.
    if nvcc.split(".")[0] != str(torch.version.cuda).split(".")[0]:
        print(f"building for the CPU alone: nvcc {nvcc}, PyTorch for CUDA {torch.version.cuda}")
        return False
    return True


def cuda_library() -> Extension:
    from torch.utils.cpp_extension import CppExtension, include_paths, library_paths

    if is_set("FORCE_CUDA"):
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", all_cuda_architectures())
    # Without -fmad a RoI's samples fall where they fall on the CPU; sums call fma themselves.
    nvcc_arguments = ["-DUSE_CUDA", "-fmad=false", "-Xcompiler", ",".join(CXX_ARGUMENTS)]
    return CppExtension(
        "fsn_d2._C_cuda",
        sorted(glob(f"{SOURCES}/cuda/*.cu")),
        depends=sorted(glob(f"{SOURCES}/**/*.h", recursive=True)),
        include_dirs=include_paths("cuda"),
        library_dirs=library_paths("cuda"),
        # The runtime goes into the library, and its symbols stay there: any driver that is new
        # enough then serves, and nothing meets the runtime of PyTorch.
        libraries=["torch_cuda", "cudart_static", "rt", "dl", "pthread"],
        extra_link_args=["-Wl,--exclude-libs,libcudart_static.a"],
        py_limited_api=True,
        extra_compile_args={"cxx": [], "nvcc": [*COMPILE_ARGUMENTS, *nvcc_arguments]},
    )


def extension_arguments() -> dict:
    """Returns the arguments of `setup` that build `fsn_d2/_C.abi3.so` and `_C_cuda.abi3.so`.

    The libraries hold no Python symbols (torch.ops.load_library opens them), so one build serves
    every CPython from 3.10 and every torch from 2.11 on.
    """
    from torch.utils.cpp_extension import BuildExtension

    return {
        "ext_modules": [cpu_library(), *([cuda_library()] if wants_cuda() else [])],
        "cmdclass": {"build_ext": BuildExtension.with_options(use_ninja=False)},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


setup(**({} if is_set("FSN_D2_NO_EXTENSION") else extension_arguments()))
