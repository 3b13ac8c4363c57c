"""The trainer: Detectron2's default one, with this project's data mapper and evaluators."""

from __future__ import annotations

import os
from collections import OrderedDict

from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import DatasetEvaluator, print_csv_format, verify_results
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.utils import comm
from torch import nn
from torch.utils.data import DataLoader

from ..data import TolerantMapper
from ..evaluation import build_evaluator
from .weights import load_weights, resume_or_load


class Trainer(DefaultTrainer):
    """DefaultTrainer for COCO and VOC data, with test-time augmentation."""

    @property
    def last_results(self) -> OrderedDict:
        """The metrics of the last evaluation; empty before the first."""
        return OrderedDict(getattr(self, "_last_eval_results", {}))

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> DataLoader:
        return build_detection_train_loader(cfg, mapper=TolerantMapper(cfg, is_train=True))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader:
        mapper = TolerantMapper(cfg, is_train=False)
        return build_detection_test_loader(cfg, dataset_name, mapper=mapper)

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None
    ) -> DatasetEvaluator:
        folder = output_folder or os.path.join(cfg.OUTPUT_DIR, "inference")
        return build_evaluator(dataset_name, folder)

    def resume_or_load(self, resume: bool = True) -> None:
        resume_or_load(self.checkpointer, self.cfg.MODEL.WEIGHTS, resume=resume)
        if resume and self.checkpointer.has_checkpoint():
            self.start_iter = self.iter + 1

    @classmethod
    def test_with_tta(cls, cfg: CfgNode, model: nn.Module) -> OrderedDict:
        """Evaluates with test-time augmentation (TEST.AUG); its results end in "_TTA"."""
        evaluators = [
            cls.build_evaluator(cfg, name, os.path.join(cfg.OUTPUT_DIR, "inference_TTA"))
            for name in cfg.DATASETS.TEST
        ]
        results = cls.test(cfg, GeneralizedRCNNWithTTA(cfg, model), evaluators)
        return OrderedDict((f"{task}_TTA", values) for task, values in results.items())


def evaluate(cfg: CfgNode, model: nn.Module | None = None) -> OrderedDict:
    """Evaluates on every set of DATASETS.TEST, with test-time augmentation too if the config asks.

    Args:
        cfg: the config.
        model: a trained one; None builds it and loads MODEL.WEIGHTS.

    Returns:
        metrics per task, per data set first if there are several.
    """
    if model is None:
        model = Trainer.build_model(cfg)
        load_weights(model, cfg.MODEL.WEIGHTS)
    results = Trainer.test(cfg, model)
    if cfg.TEST.AUG.ENABLED:
        augmented = Trainer.test_with_tta(cfg, model)
        if comm.is_main_process():
            print_csv_format(augmented)
        results.update(augmented)
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


def train(cfg: CfgNode, *, resume: bool = False) -> OrderedDict:
    """Trains from MODEL.WEIGHTS or, with `resume`, from the last checkpoint; evaluates at the end.

    Returns:
        the last evaluation's metrics.
    """
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    results = trainer.last_results
    if cfg.TEST.AUG.ENABLED:
        results.update(Trainer.test_with_tta(cfg, trainer.model))
    return results
