"""The LazyConfig tool trains in several processes on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.evaluation import (
    COCOEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    PascalVOCDetectionEvaluator,
)
from omegaconf import OmegaConf

from fsn_d2.checkpoint import Checkpointer
from fsn_d2.lazy import evaluate, lazy_config, load_lazy_config, train
from fsn_d2.lazy.loop import build_trained_model, prepare_training, register_data

ROOT = Path(__file__).parents[2]


def test_two_processes_train_on_the_cpu(coco_spec: Callable[..., str], tmp_path: Path) -> None:
    spec, output = coco_spec(10), tmp_path / "output"
    output.mkdir()
    (output / "model_0000001.pth.partial").write_text("of a training that was killed")
    (output / "metrics.json").write_text('{"iteration": 7}\n')
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
    assert not list(output.glob("*.partial"))
    assert "7" in (output / "metrics.1.json").read_text()
    assert '"iteration": 7' not in (output / "metrics.json").read_text()
    assert (output / "inference" / "coco_instances_results.json").is_file()


def digits(*overrides: str) -> Any:
    return load_lazy_config(str(ROOT / "configs" / "lazy" / "fsn_Lite0_digits.py"), [*overrides])


def of_set(spec: str) -> list[str]:
    return [f'dataloader.{part}.dataset.names="{spec}"' for part in ("train", "test")]


def test_a_training_goes_on_where_it_was(coco_spec: Callable[..., str], tmp_path: Path) -> None:
    overrides = [
        *of_set(coco_spec(10)),
        *(f"dataloader.{part}.num_workers=0" for part in ("train", "test")),
        "dataloader.train.total_batch_size=2",
        "model.backbone.bottom_up.pretrained=''",
        f'train.output_dir="{tmp_path}/output"',
    ]
    (tmp_path / "output").mkdir()
    starts = []
    for last in (2, 4):
        cfg = digits(*overrides, f"train.max_iter={last}")
        register_data(cfg, eval_only=False)
        prepared = prepare_training(cfg, resume=True)
        starts.append(prepared.start)
        momenta = [state["momentum_buffer"] for state in prepared.trainer.optimizer.state.values()]
        assert bool(momenta) == (last == 4) and all(momentum.any() for momentum in momenta[-3:])
        train(cfg, prepared)
    assert starts == [0, 2]
    checkpoint = torch.load(tmp_path / "output" / "model_final.pth", weights_only=False)
    assert checkpoint["iteration"] == 3


def test_start_weights_are_not_read_where_a_checkpoint_replaces_them(
    coco_spec: Callable[..., str], tmp_path: Path
) -> None:
    overrides = [*of_set(coco_spec(10)), f'train.output_dir="{tmp_path}"']
    nowhere = "model.backbone.bottom_up.pretrained='/nowhere/start.pth'"
    model = instantiate(digits(*overrides, "model.backbone.bottom_up.pretrained=''").model)
    Checkpointer(model, str(tmp_path)).save("model_0000001")
    path = f'train.init_checkpoint="{tmp_path}/model_0000001.pth"'
    given = build_trained_model(digits(*overrides, nowhere, path))
    last = build_trained_model(digits(*overrides, nowhere), resume=True)
    for loaded in (given, last):
        assert all(map(torch.equal, loaded.state_dict().values(), model.state_dict().values()))
    with pytest.raises(FileNotFoundError, match=r"/nowhere/start\.pth"):
        build_trained_model(digits(*overrides, nowhere))


@pytest.mark.parametrize(
    ("name", "kind"), [("fsn_R50_VOC", PascalVOCDetectionEvaluator), ("fsn_R50", COCOEvaluator)]
)
def test_a_set_has_its_own_evaluator(
    name: str, kind: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(COCOEvaluator, "__init__", lambda *args, **kwargs: None)  # without COCO
    parts = lazy_config(ROOT / "configs" / f"{name}.yaml")
    cfg = OmegaConf.create(
        {"dataloader": parts.dataloader, "train": parts.train}, flags={"allow_objects": True}
    )
    cfg.train.output_dir = str(tmp_path)
    assert cfg.dataloader.evaluator.output_dir == f"{tmp_path}/inference"
    assert isinstance(instantiate(cfg.dataloader.evaluator), kind)


def test_the_number_of_classes_is_compared_with_the_data(
    coco_spec: Callable[..., str], tmp_path: Path
) -> None:
    data = [*of_set(coco_spec(3)), f'train.output_dir="{tmp_path}/out"']
    with pytest.raises(ValueError, match=r"Set model\.roi_heads\.num_classes 3\."):
        register_data(digits(*data), eval_only=False)
    register_data(digits(*data, "model.roi_heads.num_classes=3"), eval_only=False)
    dense = str(ROOT / "configs" / "lazy" / "fsaf_R50.py")
    with pytest.raises(ValueError, match=r"model\.num_classes is 80"):
        register_data(load_lazy_config(dense, data), eval_only=False)
    with pytest.raises(ValueError, match=r"train\.classes"):
        register_data(digits(*data, "train.classes=[a,b]"), eval_only=False)
    with pytest.raises(ValueError, match="expected the name of one data set"):
        register_data(digits("dataloader.test.dataset.names=[a,b]"), eval_only=False)


def test_a_config_without_a_test_set_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "untested.yaml"
    path.write_text(f"_BASE_: {ROOT}/configs/fsn_R50.yaml\nDATASETS: {{TEST: []}}\n")
    with pytest.raises(ValueError, match=r"DATASETS\.TEST is empty"):
        lazy_config(path)


def test_mixed_precision_needs_a_gpu() -> None:
    with pytest.raises(ValueError, match=r"train\.amp\.enabled needs a CUDA GPU"):
        prepare_training(digits("train.amp.enabled=True", "train.device=cpu"))


def test_data_are_loaded_before_an_evaluator_reads_about_them() -> None:
    """Those of the digits are written when they are loaded."""
    order: list[str] = []

    def load() -> list:
        order.append("data")
        return []

    def build() -> DatasetEvaluator:
        order.append("evaluator")
        return DatasetEvaluators([])

    tree = {"dataloader": {"test": L(load)(), "evaluator": L(build)()}}
    evaluate(OmegaConf.create(tree, flags={"allow_objects": True}), torch.nn.Identity())
    assert order == ["data", "evaluator"]
