"""The C++ program of examples/cpp prints for an image what Python finds in it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from PIL import Image
from torch import Tensor, nn

from fsn_d2.export import export_torchscript
from fsn_d2.export.metadata import class_names
from fsn_d2.layers import op_library_path

SOURCE = Path(__file__).resolve().parents[2] / "examples" / "cpp"
BESIDE_PYTHON = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
CMAKE = shutil.which("cmake", path=BESIDE_PYTHON)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(CMAKE is None, reason="no cmake: pip install cmake"),
    pytest.mark.skipif(op_library_path() is None, reason="the extension is not built"),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    build = tmp_path_factory.mktemp("cpp")
    torch_folder = Path(torch.__file__).parent
    configure = [CMAKE, "-S", SOURCE, "-B", build, f"-DTORCH={torch_folder}"]
    subprocess.run([*map(str, configure), "-DCMAKE_BUILD_TYPE=Release"], check=True)
    subprocess.run([str(CMAKE), "--build", str(build)], check=True)
    return build / "detect"


def run(program: Path, *arguments: str | Path | None) -> subprocess.CompletedProcess[str]:
    command = [str(argument) for argument in (program, *arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def save_ppm(image: Tensor, order: str, path: Path) -> None:
    rgb = image if order == "RGB" else image.flip(0)
    Image.fromarray(rgb.to(torch.uint8).permute(1, 2, 0).numpy()).save(path)


def check_same(program: Path, cfg: CfgNode, model: nn.Module, images: list[Tensor]) -> int:
    """Compares what is printed with the eager model; returns how many detections there were."""
    folder = program.parent
    export_torchscript(cfg, model, images[0], folder / "model.ts")
    names, count = class_names(cfg), 0
    for image in images:
        image = image.round()
        save_ppm(image, cfg.INPUT.FORMAT, folder / "image.ppm")
        with torch.no_grad():
            found = model.inference([{"image": image}], do_postprocess=False)[0]
        result = run(program, folder / "model.ts", op_library_path(), folder / "image.ppm")
        assert result.returncode == 0, result.stderr
        lines = [line.split(" ") for line in result.stdout.splitlines()]
        assert [line[0] for line in lines] == [names[number] for number in found.pred_classes]
        printed = torch.tensor([[float(value) for value in line[1:]] for line in lines])
        torch.testing.assert_close(printed[:, 0], found.scores, rtol=0, atol=1e-4)
        torch.testing.assert_close(printed[:, 1:], found.pred_boxes.tensor, rtol=0, atol=0.01)
        count += len(found)
    return count


def test_it_prints_what_python_finds(
    program: Path, small_detector: Callable[..., tuple[CfgNode, nn.Module]]
) -> None:
    cfg, model = small_detector(
        "fsn_R50.yaml",
        DATASETS__TRAIN=(),
        DATASETS__TEST=(),
        DATASETS__CLASSES=["platelet", 'red"cell\\', "weiß"],
    )
    assert cfg.INPUT.FORMAT == "BGR"
    rng = torch.Generator().manual_seed(0)
    sizes = [(64, 80), (80, 64), (50, 131), (33, 40), (96, 96)]
    images = [torch.rand(3, *size, generator=rng) * 255 for size in sizes]
    assert check_same(program, cfg, model, images) >= 50


def test_it_prints_what_python_finds_in_photographs(program: Path, bccd_detector: Any) -> None:
    cfg, model, images = bccd_detector
    assert cfg.INPUT.FORMAT == "RGB"
    assert check_same(program, cfg, model, images[:5]) > 5


@pytest.mark.parametrize("missing", ["none.ts", "none.so"])
def test_what_is_missing_is_named(program: Path, missing: str) -> None:
    library = missing if missing.endswith(".so") else op_library_path()
    result = run(program, "none.ts", library, "none.ppm")
    assert result.returncode == 1
    assert result.stderr.startswith("error: ") and missing in result.stderr
