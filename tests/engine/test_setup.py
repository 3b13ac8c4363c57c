"""From a config file to a config that this machine can run."""

from __future__ import annotations

import importlib
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog

from fsn_d2.engine import load_config, setup

FSN = str(Path(__file__).parents[2] / "configs" / "fsn_R50.yaml")


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("asked", ["cuda", "cuda:1", "cpu"])
def test_without_a_gpu_the_device_is_the_cpu(asked: str) -> None:
    assert load_config(FSN, ["MODEL.DEVICE", asked]).MODEL.DEVICE == "cpu"


@pytest.mark.parametrize("asked", ["cuda", "cuda:1", "cpu"])
def test_with_a_gpu_the_device_stays(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert asked == load_config(FSN, ["MODEL.DEVICE", asked]).MODEL.DEVICE


def test_file_and_overrides_are_merged_in_this_order() -> None:
    cfg = load_config(FSN, ["MODEL.FSN.MERGE", "sum"])
    assert cfg.MODEL.ROI_HEADS.NAME == "FSNROIHeads"  # the file's
    assert cfg.SOLVER.MAX_ITER == 90000  # its base's
    assert cfg.MODEL.FSN.MERGE == "sum"
    assert cfg.MODEL.FSN.CHANNELS == 40  # the project's default


def test_a_timm_backbone_without_statistics_of_its_own_gets_those_of_its_weights() -> None:
    opts = ["MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "MODEL.TIMM.PRETRAINED", "embedded"]
    cfg = load_config("", opts)
    assert cfg.INPUT.FORMAT == "RGB"
    assert cfg.MODEL.PIXEL_MEAN == [127.0] * 3
    assert cfg.MODEL.PIXEL_STD == [128.0] * 3


def test_setup_freezes_the_config_keeps_a_copy_and_registers_the_data(
    tiny_args: Callable[..., Namespace], tmp_path: Path
) -> None:
    args = tiny_args("fsn_R50.yaml", small=True)
    cfg = setup(args)
    assert cfg.is_frozen()
    (name,) = cfg.DATASETS.TRAIN
    assert len(DatasetCatalog.get(name)) == 3
    assert MetadataCatalog.get(name).thing_classes == ["class00", "class01", "class02"]
    again = load_config(str(tmp_path / "output" / "config.yaml"))
    assert yaml.safe_load(again.dump()) == yaml.safe_load(cfg.dump())


def test_processes_on_the_cpu_do_not_meet_on_a_gpu(
    tiny_args: Callable[..., Namespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    args = tiny_args("fsn_R50.yaml", small=True, MODEL__DEVICE="cuda")
    args.num_processes = 2
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    module = importlib.import_module("fsn_d2.engine.setup")  # whose name its function has too
    monkeypatch.setattr(module, "default_setup", lambda cfg, args: None)
    assert setup(args).MODEL.DEVICE == "cpu"


def test_evaluation_does_not_need_the_training_set(tiny_args: Callable[..., Namespace]) -> None:
    absent = ("coco:///nowhere/a.json:/nowhere",)
    setup(tiny_args("fsn_R50.yaml", "--eval-only", small=True, DATASETS__TRAIN=absent))
    with pytest.raises(FileNotFoundError, match=r"/nowhere/a\.json"):
        setup(tiny_args("fsn_R50.yaml", small=True, DATASETS__TRAIN=absent))
