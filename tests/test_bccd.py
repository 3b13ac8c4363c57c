"""The whole way on real photographs, by the configs as a user runs them; minutes each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog

from fsn_d2.data import TolerantMapper, register_datasets
from fsn_d2.engine import Trainer, load_config
from fsn_d2.export import compare_export, export_torchscript

ROOT = Path(__file__).resolve().parent.parent
BCCD = Path(os.environ.get("FSN_BCCD", ROOT.parent / "shared/data/bccd")) / "BCCD"
CONFIG = "configs/fsn_Lite0_BCCD.yaml"
HALF = 150

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not BCCD.is_dir(), reason=f"no BCCD photographs in {BCCD}"),
]


def options(output: Path) -> list[str]:
    return [
        *("DATASETS.TRAIN", f"('voc://{BCCD}:trainval',)"),
        *("DATASETS.TEST", f"('voc://{BCCD}:test',)"),
        *("SOLVER.CHECKPOINT_PERIOD", str(HALF), "OUTPUT_DIR", str(output)),
    ]


def start(output: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "train_net.py", "--config-file", CONFIG, *arguments]
    return subprocess.Popen(
        [*command, *options(output)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


def run(output: Path, *arguments: str) -> str:
    process = start(output, *arguments)
    text, _ = process.communicate()
    assert process.returncode == 0, text[-2000:]
    return text


def iterations(output: Path) -> list[int]:
    lines = (output / "metrics.json").read_text().splitlines()
    return [json.loads(line)["iteration"] for line in lines]


def printed_results(text: str) -> str:
    """The line of numbers that Detectron2 prints for bbox."""
    return [line for line in text.splitlines() if "copypaste: " in line][-1].split("copypaste: ")[1]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Trained to the end with one stop at half; (output folder, what the second run printed)."""
    output = tmp_path_factory.mktemp("bccd")
    process = start(output)
    while not (output / "last_checkpoint").exists():
        assert process.poll() is None
        time.sleep(0.5)
    process.kill()
    process.communicate()
    before = iterations(output)
    text = run(output, "--resume")
    after = iterations(output)[len(before) :]
    assert f"Starting training from iteration {HALF}" in text
    assert min(after) >= HALF > max(before)
    assert max(after) in (299, 300)
    return output, text


def test_it_learns(trained: tuple[Path, str]) -> None:
    ap, ap50 = (float(value) for value in printed_results(trained[1]).split(",")[:2])
    print(f"AP {ap}, AP50 {ap50}")
    assert ap >= 51
    assert ap50 >= 88


def test_eval_only_gives_the_same_numbers(trained: tuple[Path, str]) -> None:
    output, text = trained
    checkpoint = output / "model_final.pth"
    again = run(output, "--eval-only", "MODEL.WEIGHTS", str(checkpoint))
    assert printed_results(again) == printed_results(text)


@pytest.mark.parametrize("merge", ["sum", "multiply", "concat"])
@pytest.mark.parametrize("sub_region", ["roi", "image"])
def test_the_exported_model_detects_the_same(
    trained: tuple[Path, str], tmp_path: Path, sub_region: str, merge: str
) -> None:
    variant = ["MODEL.FSN.SUB_REGION", sub_region, "MODEL.FSN.MERGE", merge]
    cfg = load_config(str(ROOT / CONFIG), [*options(tmp_path), *variant])
    register_datasets(cfg, eval_only=True)
    model = Trainer.build_model(cfg)
    # All share the trained weights; concat's convolution, which they do not have, is as it begins.
    weights = torch.load(trained[0] / "model_final.pth", weights_only=True)["model"]
    fits = model.load_state_dict(weights, strict=False)
    assert not fits.unexpected_keys
    assert all(".merge.conv." in name for name in fits.missing_keys)
    records = DatasetCatalog.get(cfg.DATASETS.TEST[0])
    assert len(records) == 72
    exported = None
    for side in (160, 200, 240, 288, 333):
        cfg.INPUT.MIN_SIZE_TEST = side
        cfg.INPUT.MAX_SIZE_TEST = 2 * side
        mapper = TolerantMapper(cfg, is_train=False)
        images = [mapper(record)["image"].float() for record in records]
        if exported is None:
            exported = export_torchscript(cfg, model, images[0], tmp_path / "model.ts")
        with torch.no_grad():
            difference = compare_export(model, exported, images)
        print(f"{sub_region} {merge} {side}: {difference}")
        assert difference.detections > 72
        assert difference.within(boxes=0.01, scores=1e-4)
