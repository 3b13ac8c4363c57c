"""Installs Detectron2, which has no release on PyPI, into the Python that runs this script.

Three ways, the first that works: a Detectron2 that already imports is kept; else a pinned commit of
the official repository is built; else, where the repository is out of reach or does not build, the
official v0.6 tree is taken from PyPI (as `pb1-detectron2`, pinned by its hash), patched to run
without its C++ library and with today's dependencies, and installed as pure Python.

torch, setuptools and wheel must be installed before. The official build also needs git, a C++
compiler and Python's headers, and takes some minutes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

REPOSITORY = "https://github.com/facebookresearch/detectron2"
COMMIT = "02b5c4e295e990042a714712c21dc79b731e8833"
PROBE_SECONDS = 10

SDIST = "pb1-detectron2==0.6"
SDIST_SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"

# Projects that Detectron2's own setup.py installs inside the package.
PROJECTS = {
    "detectron2.projects.point_rend": "projects/PointRend/point_rend",
    "detectron2.projects.deeplab": "projects/DeepLab/deeplab",
    "detectron2.projects.panoptic_deeplab": "projects/Panoptic-DeepLab/panoptic_deeplab",
}

# What v0.6 states, less three: nothing in it imports future or pydot, and black, pinned to a
# version of 2021, serves only LazyConfig.to_py. iopath loses its upper limit.
REQUIREMENTS = (
    "Pillow>=7.1",
    "matplotlib",
    "pycocotools>=2.0.2",
    "termcolor>=1.1",
    "yacs>=0.1.8",
    "tabulate",
    "cloudpickle",
    "tqdm>4.29.0",
    "tensorboard",
    "fvcore>=0.1.5,<0.1.6",
    "iopath>=0.1.7",
    "omegaconf>=2.1",
    "hydra-core>=1.1",
)


class InstallError(RuntimeError):
    """Detectron2 cannot be installed this way; the message says why."""


@dataclass(frozen=True)
class Patch:
    """Replaces every `old` in `file` (relative to the source tree) by `new`."""

    file: str
    old: str
    new: str


def _guard(file: str) -> Patch:
    """The compiled library becomes optional: what needs it fails when used, not when imported."""
    return Patch(
        file,
        "from detectron2 import _C\n",
        "try:\n    from detectron2 import _C\nexcept ImportError:\n    _C = None\n",
    )


def _builtin(file: str, name: str) -> Patch:
    """numpy 1.24 dropped its aliases of Python's types (numpy 2 brought back np.bool alone)."""
    return Patch(file, f"np.{name})", f"{name})")


PATCHES = (
    _guard("detectron2/layers/deform_conv.py"),
    _guard("detectron2/layers/roi_align_rotated.py"),
    _guard("detectron2/layers/rotated_boxes.py"),
    # fast_eval_api keeps raising ImportError without the library; pycocotools then evaluates.
    Patch(
        "detectron2/evaluation/coco_evaluation.py",
        "from detectron2.evaluation.fast_eval_api import COCOeval_opt\n",
        "try:\n    from detectron2.evaluation.fast_eval_api import COCOeval_opt\n"
        "except ImportError:\n    COCOeval_opt = COCOeval\n",
    ),
    # api.py imports caffe2, which PyTorch no longer ships; tracing does not need it.
    Patch(
        "detectron2/export/__init__.py",
        "from .api import *\n",
        "try:\n    from .api import *\nexcept ImportError:\n    pass\n",
    ),
    # Pillow 10 dropped the alias.
    Patch("detectron2/data/transforms/transform.py", "Image.LINEAR", "Image.BILINEAR"),
    # As in today's main: a traced model cannot hold an autograd function.
    Patch(
        "detectron2/modeling/roi_heads/cascade_rcnn.py",
        "        box_features = _ScaleGradient.apply(",
        "        if self.training:\n            box_features = _ScaleGradient.apply(",
    ),
    # setuptools 82 dropped pkg_resources.
    Patch("detectron2/model_zoo/model_zoo.py", "import pkg_resources\n", ""),
    Patch(
        "detectron2/model_zoo/model_zoo.py",
        "pkg_resources.resource_filename(\n"
        '        "detectron2.model_zoo", os.path.join("configs", config_path)\n'
        "    )",
        'os.path.join(os.path.dirname(__file__), "configs", config_path)',
    ),
    _builtin("detectron2/data/build.py", "int"),
    _builtin("detectron2/data/datasets/pascal_voc.py", "str"),
    _builtin("detectron2/evaluation/pascal_voc_evaluation.py", "bool"),
    _builtin("detectron2/evaluation/sem_seg_evaluation.py", "int"),
    _builtin("detectron2/evaluation/sem_seg_evaluation.py", "float"),
    _builtin("detectron2/structures/masks.py", "bool"),
    _builtin("detectron2/utils/video_visualizer.py", "bool"),
    _builtin("detectron2/utils/visualizer.py", "bool"),
)


def apply_patches(tree: Path, patches: tuple[Patch, ...] = PATCHES) -> None:
    """Applies `patches` to the source tree, in order.

    Raises:
        InstallError: a file, or the text to replace in it, is not there. The message names both.
    """
    for patch in patches:
        path = tree / patch.file
        if not path.is_file():
            raise InstallError(f"patching {patch.file}: there is no such file in {tree}")
        source = path.read_text(encoding="utf-8")
        if patch.old not in source:
            raise InstallError(f"patching {patch.file}: it does not contain {patch.old!r}")
        path.write_text(source.replace(patch.old, patch.new), encoding="utf-8")


def check_sha256(archive: Path, expected: str = SDIST_SHA256) -> None:
    """Raises InstallError unless the file has the SHA-256 `expected` (hexadecimal)."""
    actual = hashlib.sha256(archive.read_bytes()).hexdigest()
    if actual != expected:
        raise InstallError(
            f"{archive.name} has the SHA-256 {actual}, expected {expected}: it was changed on its "
            "way here; empty pip's cache (pip cache purge) and look at the index that pip uses"
        )


def unpack(archive: Path, into: Path) -> Path:
    """Unpacks a source distribution and returns its one top folder.

    Raises:
        InstallError: a member is neither a file nor a folder or would lie outside `into`, or the
            archive has not exactly one top folder.
    """
    tops = set()
    with tarfile.open(archive) as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            if path.is_absolute() or ".." in path.parts or not (member.isfile() or member.isdir()):
                raise InstallError(f"{archive.name} holds the unsafe member {member.name!r}")
            tops.add(path.parts[0])
            content = tar.extractfile(member)
            if content is not None:
                (into / path.parent).mkdir(parents=True, exist_ok=True)
                (into / path).write_bytes(content.read())
    if len(tops) != 1:
        raise InstallError(f"{archive.name} must hold one top folder, it holds {sorted(tops)}")
    return into / tops.pop()


def write_build_files(tree: Path) -> None:
    """Makes the tree a pure-Python project `detectron2` 0.6; its own setup.py compiles C++."""
    for name in ("setup.py", "setup.cfg"):
        (tree / name).unlink(missing_ok=True)
    (tree / "pyproject.toml").write_text(_pyproject(tree), encoding="utf-8")


def _pyproject(tree: Path) -> str:
    packages = sorted(
        ".".join(init.parent.relative_to(tree).parts)
        for init in (tree / "detectron2").rglob("__init__.py")
    )
    folders = "\n".join(f"{json.dumps(name)} = {json.dumps(at)}" for name, at in PROJECTS.items())
    return f"""\
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "detectron2"
version = "0.6"
description = "Detectron2 v0.6 without its C++ library"
dependencies = {json.dumps(REQUIREMENTS)}

[tool.setuptools]
packages = {json.dumps([*packages, *PROJECTS])}
license-files = ["LICENSE"]

[tool.setuptools.package-data]
"detectron2.model_zoo" = ["configs/**/*.yaml", "configs/**/*.py"]

[tool.setuptools.package-dir]
{folders}
"""


def pip(*arguments: str) -> None:
    """Runs pip in this interpreter; raises InstallError where it fails (it says why itself)."""
    command = [sys.executable, "-m", "pip", *arguments]
    if subprocess.run(command).returncode != 0:
        raise InstallError(f"pip {' '.join(arguments)} failed, see its output above")


def find_installed() -> str | None:
    """Returns version and place of a Detectron2 that imports, or None.

    Its layers are imported too: a library built for another torch fails there.
    """
    code = (
        "import detectron2.layers as l, detectron2 as d; print(d.__version__, 'in', d.__path__[0])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return run.stdout.strip().splitlines()[-1] if run.returncode == 0 else None


def repository_answers() -> bool:
    """Whether git reaches the official repository within PROBE_SECONDS, without asking anyone."""
    try:
        run = subprocess.run(
            ["git", "ls-remote", REPOSITORY, "HEAD"],
            env={**os.environ, "GIT_TERMINAL_PROMPT": "0"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PROBE_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return run.returncode == 0


def install_from_repository() -> None:
    """Builds and installs the pinned commit of the official repository."""
    pip("install", "--no-build-isolation", f"git+{REPOSITORY}@{COMMIT}")


def download_sdist(into: Path) -> Path:
    """Downloads the source distribution; pip checks the hash before it runs anything of it."""
    pinned = into / "requirements.txt"
    pinned.write_text(f"{SDIST} --hash=sha256:{SDIST_SHA256}\n", encoding="utf-8")
    options = ("--no-deps", "--no-binary=:all:", "--no-build-isolation", "--require-hashes")
    try:
        pip("download", *options, f"--dest={into}", f"--requirement={pinned}")
    except InstallError as error:
        # Its metadata links to GitHub, in an extra that we drop; --no-deps does not help there.
        raise InstallError(
            f"{SDIST} was not downloaded: check the network; from 26.3 on pip refuses this archive "
            f"for a link in its metadata, then run {sys.executable} -m pip install 'pip<26.3' first"
        ) from error
    return next(into.glob("*.tar.gz"))


def install_from_pypi() -> None:
    """Downloads, patches and installs v0.6 as pure Python."""
    with tempfile.TemporaryDirectory() as folder:
        archive = download_sdist(Path(folder))
        check_sha256(archive)
        tree = unpack(archive, Path(folder) / "source")
        apply_patches(tree)
        write_build_files(tree)
        pip("install", "--no-build-isolation", str(tree))


def install() -> None:
    """Installs from the official repository or, where that does not work, from PyPI."""
    if repository_answers():
        try:
            return install_from_repository()
        except InstallError as error:
            print(f"{error}\nThe official build failed; going on with v0.6 from PyPI.", flush=True)
    else:
        print(f"{REPOSITORY} is out of reach; going on with v0.6 from PyPI.", flush=True)
    install_from_pypi()


def parse_args() -> argparse.Namespace:
    """There are none; `--help` must not install."""
    return argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()


def main() -> int:
    """Returns the exit status: 0 where Detectron2 imports in the end."""
    found = find_installed()
    if found is None:
        try:
            install()
        except InstallError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        found = find_installed()
    if found is None:
        print(
            "error: Detectron2 is installed but `import detectron2.layers` fails: see its "
            "message with python -c 'import detectron2.layers'",
            file=sys.stderr,
        )
        return 1
    print(f"Detectron2 {found}")
    return 0


if __name__ == "__main__":
    parse_args()
    sys.exit(main())
