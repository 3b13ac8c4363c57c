"""Training and evaluation from a LazyConfig, by Detectron2's plain trainer and hooks."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from detectron2.config import CfgNode, get_cfg, instantiate
from detectron2.engine import AMPTrainer, SimpleTrainer, default_writers, hooks
from detectron2.engine.defaults import create_ddp_model
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm
from omegaconf import DictConfig
from torch import nn

from ..checkpoint import Checkpointer
from ..config import add_fsn_config
from ..data import register_datasets, register_digits
from ..engine.weights import load_weights, resume_or_load


def register_data(cfg: DictConfig, *, eval_only: bool) -> None:
    """Registers the data sets that the loaders name, and checks them.

    Raises:
        FileNotFoundError, ValueError: as `register_datasets`.
    """
    register_digits()
    register_datasets(_names(cfg), eval_only=eval_only)


def _names(cfg: DictConfig) -> CfgNode:
    """A YAML config that says no more than the names of the data sets."""
    names = get_cfg()
    add_fsn_config(names)
    train, test = (cfg.dataloader[part].dataset.names for part in ("train", "test"))
    names.DATASETS.TRAIN = (train,) if isinstance(train, str) else tuple(train)
    names.DATASETS.TEST = (test,) if isinstance(test, str) else tuple(test)
    names.DATASETS.CLASSES = list(cfg.train.get("classes", []))
    names.OUTPUT_DIR = cfg.train.output_dir
    names.MODEL.META_ARCHITECTURE = "none"  # whose number of classes would be checked
    return names


def evaluate(cfg: DictConfig, model: nn.Module | None = None) -> OrderedDict:
    """Evaluates on `dataloader.test`.

    Args:
        cfg: as from `load_lazy_config`.
        model: a trained one; None builds it and loads `train.init_checkpoint`.
    """
    if model is None:
        model = instantiate(cfg.model).to(cfg.train.device)
        load_weights(model, cfg.train.init_checkpoint)
    evaluator = instantiate(cfg.dataloader.evaluator)
    results = inference_on_dataset(model, instantiate(cfg.dataloader.test), evaluator)
    if comm.is_main_process():
        print_csv_format(results)
    return results


def train(cfg: DictConfig, *, resume: bool = False) -> OrderedDict:
    """Trains from `train.init_checkpoint` or, with `resume`, from the last checkpoint.

    Returns:
        the last evaluation's metrics.
    """
    model = instantiate(cfg.model).to(cfg.train.device)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    loader = instantiate(cfg.dataloader.train)
    model = create_ddp_model(model, **cfg.train.ddp)
    kind = AMPTrainer if cfg.train.amp.enabled else SimpleTrainer
    trainer = kind(model, loader, optimizer)
    checkpointer = Checkpointer(model, cfg.train.output_dir, optimizer=optimizer, trainer=trainer)
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
    resume_or_load(checkpointer, cfg.train.init_checkpoint, resume=resume)
    start = trainer.iter + 1 if resume and checkpointer.has_checkpoint() else 0
    trainer.train(start, cfg.train.max_iter)
    return results
