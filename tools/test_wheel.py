"""Installs a built wheel beside a version of torch in an environment of its own, and runs the op's
tests there. Tests that need torchvision or Detectron2 skip where these are missing.

    python -m pip wheel --no-build-isolation --no-deps -w dist .
    python tools/test_wheel.py dist/fsn_d2-*.whl --python python3.12 --torch 2.11.0
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent / "tests/layers"


def run(*command: object, **options: object) -> None:
    print("+", *command, flush=True)
    subprocess.run([str(part) for part in command], check=True, **options)  # type: ignore[call-overload]


def test_wheel(wheel: Path, python: str, requirements: list[str], folder: Path) -> None:
    """Raises CalledProcessError where the installation or a test fails."""
    # The repository's constraints name one torch; here another one is wanted.
    environment = {name: v for name, v in os.environ.items() if name != "PIP_CONSTRAINT"}
    run(python, "-m", "venv", folder / "venv")
    interpreter = folder / "venv/bin/python"
    pip = [interpreter, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    run(*pip, *requirements, "numpy", "pytest", "setuptools<82", env=environment)
    run(*pip, "--no-deps", wheel, env=environment)
    shutil.copytree(TESTS, folder / "tests")
    version = (
        "import sys, torch; print('Python', sys.version.split()[0], 'torch', torch.__version__)"
    )
    run(interpreter, "-c", version)
    # Outside the repository, so that the installed package is what is imported.
    run(interpreter, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests", cwd=folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--python", default=sys.executable, help="the interpreter to test with")
    parser.add_argument("--torch", required=True, help="its version, such as 2.11.0")
    parser.add_argument("--torchvision", help="its version; without one its tests skip")
    arguments = parser.parse_args()
    requirements = [f"torch=={arguments.torch}"]
    if arguments.torchvision:
        requirements.append(f"torchvision=={arguments.torchvision}")
    with tempfile.TemporaryDirectory() as folder:
        try:
            test_wheel(arguments.wheel.resolve(), arguments.python, requirements, Path(folder))
        except subprocess.CalledProcessError as error:
            return error.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
