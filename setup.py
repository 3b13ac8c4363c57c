"""The compiled part of the package: one op library built against PyTorch's stable ABI.

Everything else about the package is in pyproject.toml. `FSN_D2_NO_EXTENSION=1` builds without the
library; the reference implementation in plain PyTorch then serves.
"""

import os
from glob import glob

from setuptools import setup

SOURCES = "fsn_d2/layers/csrc"

# The oldest torch whose stable ABI is used, 2.11, in the form torch/headeronly/version.h defines.
TORCH_TARGET_VERSION = "0x020b000000000000"


def extension_arguments() -> dict:
    """Returns the arguments of `setup` that build `fsn_d2/_C.abi3.so`.

    The library holds no Python symbols (torch.ops.load_library opens it), so one build serves every
    CPython from 3.10 and every torch from 2.11 on.
    """
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    library = CppExtension(
        "fsn_d2._C",
        sorted(glob(f"{SOURCES}/cpu/*.cpp")),
        depends=sorted(glob(f"{SOURCES}/**/*.h", recursive=True)),
        py_limited_api=True,
        extra_compile_args={
            "cxx": [
                "-O3",
                "-g0",
                "-std=c++17",
                "-fvisibility=hidden",
                f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}",
            ]
        },
    )
    return {
        "ext_modules": [library],
        "cmdclass": {"build_ext": BuildExtension.with_options(use_ninja=False)},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


without_extension = os.environ.get("FSN_D2_NO_EXTENSION", "0") not in ("", "0")
setup(**({} if without_extension else extension_arguments()))
