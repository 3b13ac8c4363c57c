"""Training and evaluation from a LazyConfig, by Detectron2's plain trainer and hooks."""

from __future__ import annotations

from collections import OrderedDict
from functools import reduce
from typing import Any, NamedTuple

from detectron2.config import CfgNode, get_cfg, instantiate
from detectron2.engine import AMPTrainer, SimpleTrainer, default_writers, defaults, hooks
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm
from omegaconf import DictConfig
from torch import nn

from ..checkpoint import Checkpointer
from ..config import add_fsn_config
from ..data import register_datasets, register_digits
from ..engine.amp import require_device_of_amp
from ..engine.output_folder import begin_anew, claimed, remove_what_kills_left
from ..engine.weights import goes_on, load_weights, resume_or_load


def register_data(cfg: DictConfig, *, eval_only: bool) -> None:
    """Registers the data sets that the loaders name, and checks them.

    Raises:
        FileNotFoundError, ValueError: as `register_datasets`, in the words of a LazyConfig; or
            several test sets.
    """
    register_digits()
    try:
        register_datasets(_as_yaml(cfg), eval_only=eval_only)
    except ValueError as error:
        raise ValueError(_in_lazy_words(str(error))) from error


LAZY_NAMES = {
    "DATASETS.CLASSES": "train.classes",
    "DATASETS.TRAIN": "dataloader.train.dataset.names",
    "DATASETS.TEST": "dataloader.test.dataset.names",
    "MODEL.ROI_HEADS.NUM_CLASSES": "model.roi_heads.num_classes",
    "MODEL.RETINANET.NUM_CLASSES": "model.num_classes",
}


def _in_lazy_words(message: str) -> str:
    return reduce(lambda text, names: text.replace(*names), LAZY_NAMES.items(), message)


def _as_yaml(cfg: DictConfig) -> CfgNode:
    """A YAML config that says no more than what data and model are to agree on."""
    as_yaml = get_cfg()
    add_fsn_config(as_yaml)
    train, test = (cfg.dataloader[part].dataset.names for part in ("train", "test"))
    if not isinstance(test, str):
        raise ValueError(
            f"dataloader.test.dataset.names: expected the name of one data set, got {test}."
        )
    as_yaml.DATASETS.TRAIN = (train,) if isinstance(train, str) else tuple(train)
    as_yaml.DATASETS.TEST = (test,)
    as_yaml.DATASETS.CLASSES = list(cfg.train.get("classes", []))
    as_yaml.OUTPUT_DIR = cfg.train.output_dir
    as_yaml.MODEL.META_ARCHITECTURE = "none"  # whose number of classes is not known
    if "num_classes" in cfg.model.get("roi_heads", {}):
        as_yaml.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
        as_yaml.MODEL.ROI_HEADS.NUM_CLASSES = cfg.model.roi_heads.num_classes
    elif "num_classes" in cfg.model:
        as_yaml.MODEL.META_ARCHITECTURE = "RetinaNet"
        as_yaml.MODEL.RETINANET.NUM_CLASSES = cfg.model.num_classes
    return as_yaml


class PreparedTraining(NamedTuple):
    """All that a training needs.

    Attributes:
        trainer: with its weights loaded.
        start: the first iteration.
        results: metrics of the last evaluation, once there was one.
    """

    trainer: SimpleTrainer
    start: int
    results: OrderedDict[str, Any]


def _build_model(cfg: DictConfig, *, resume: bool) -> nn.Module:
    """Start weights of the backbone are not read where all weights will be replaced."""
    bottom_up = cfg.model.get("backbone", {}).get("bottom_up", {})
    replaced = cfg.train.init_checkpoint or goes_on(cfg.train.output_dir, resume=resume)
    if "pretrained" in bottom_up and replaced:
        bottom_up.pretrained = ""
    return instantiate(cfg.model).to(cfg.train.device)


def build_trained_model(cfg: DictConfig, *, resume: bool = False) -> nn.Module:
    """Builds the model and loads `train.init_checkpoint` into it.

    Args:
        cfg: as from `load_lazy_config`.
        resume: prefer the last checkpoint of `train.output_dir`, where there is one.

    Raises:
        FileNotFoundError, ValueError: the weights are missing or refused.
    """
    model = _build_model(cfg, resume=resume)
    last_of = cfg.train.output_dir if resume else ""
    load_weights(model, cfg.train.init_checkpoint, last_of=last_of)
    return model


def evaluate(cfg: DictConfig, model: nn.Module) -> OrderedDict:
    """Evaluates on `dataloader.test`.

    Args:
        cfg: as from `load_lazy_config`.
        model: such as that of `build_trained_model`.
    """
    loader = instantiate(cfg.dataloader.test)  # first: the digits are written when they are loaded
    results = inference_on_dataset(model, loader, instantiate(cfg.dataloader.evaluator))
    if comm.is_main_process():
        print_csv_format(results)
    return results


def prepare_training(cfg: DictConfig, *, resume: bool = False) -> PreparedTraining:
    """Builds model, data, optimizer and hooks; loads weights or, with `resume`, a checkpoint.

    Raises:
        FileNotFoundError, ValueError: as `build_trained_model`, or mixed precision is asked for
            without a GPU.
    """
    require_device_of_amp(cfg.train.amp.enabled, cfg.train.device, "train.amp.enabled")
    model = _build_model(cfg, resume=resume)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    loader = instantiate(cfg.dataloader.train)
    # By its module: on the CPU, `launch` replaces it there.
    model = defaults.create_ddp_model(model, **cfg.train.ddp)
    kind = AMPTrainer if cfg.train.amp.enabled else SimpleTrainer
    trainer = kind(model, loader, optimizer)
    checkpointer = Checkpointer(model, cfg.train.output_dir, trainer=trainer)
    results: OrderedDict[str, Any] = OrderedDict()

    def test() -> OrderedDict:
        results.update(evaluate(cfg, model))
        return results

    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
            hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer)
            if comm.is_main_process()
            else None,
            hooks.EvalHook(cfg.train.eval_period, test),
            hooks.PeriodicWriter(
                default_writers(cfg.train.output_dir, cfg.train.max_iter),
                period=cfg.train.log_period,
            )
            if comm.is_main_process()
            else None,
        ]
    )
    remove_what_kills_left(cfg.train.output_dir)
    resume_or_load(checkpointer, cfg.train.init_checkpoint, resume=resume)
    if not (resume and checkpointer.has_checkpoint()):
        begin_anew(checkpointer)
    start = trainer.iter + 1 if resume and checkpointer.has_checkpoint() else 0
    return PreparedTraining(trainer, start, results)


def train(cfg: DictConfig, prepared: PreparedTraining) -> OrderedDict:
    """Trains to `train.max_iter`.

    Args:
        cfg: as from `load_lazy_config`.
        prepared: as from `prepare_training`.

    Returns:
        the last evaluation's metrics.
    """
    with claimed(cfg.train.output_dir):
        prepared.trainer.train(prepared.start, cfg.train.max_iter)
    return prepared.results
