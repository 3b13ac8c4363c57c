"""The LazyConfig tool trains in several processes on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]


def test_two_processes_train_on_the_cpu(coco_spec: Callable[..., str], tmp_path: Path) -> None:
    spec, output = coco_spec(10), tmp_path / "output"
    overrides = {
        "dataloader.train.dataset.names": f'"{spec}"',
        "dataloader.test.dataset.names": f'"{spec}"',
        "dataloader.train.num_workers": 0,
        "dataloader.test.num_workers": 0,
        "dataloader.train.total_batch_size": 2,
        "model.backbone.bottom_up.pretrained": '""',
        "train.max_iter": 2,
        "train.output_dir": f'"{output}"',
    }
    command = ["tools/lazyconfig_train_net.py", "--num-processes", "2", "--config-file"]
    command += ["configs/lazy/fsn_Lite0_digits.py", *(f"{k}={v}" for k, v in overrides.items())]
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    checkpoint = torch.load(output / "model_final.pth", weights_only=False)
    assert checkpoint["iteration"] == 1 and checkpoint["trainer"]["optimizer"]["state"]
