"""Hooks to watch a training by: validation loss, sample predictions, best model, early stopping,
and a picture of the curves. All but the curves act where TEST.EVAL_PERIOD asks for an evaluation.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Container, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import Metadata, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.detection_utils import build_augmentation
from detectron2.engine import HookBase, hooks
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from detectron2.utils.logger import log_first_n
from torch import nn

from ..checkpoint import Checkpointer
from ..data import TolerantMapper
from ..visualization.curves import save_curves
from ..visualization.drawing import draw_detections
from .loss_normalizers import loss_normalizers, set_loss_normalizers
from .nonfinite import refuses_numbers
from .random_state import own_random_numbers

__all__ = [
    "BestModel",
    "Curves",
    "EarlyStop",
    "EarlyStopping",
    "Evaluation",
    "KnownMetric",
    "Metric",
    "SampleImages",
    "ValidationLoss",
    "watching_hooks",
]

logger = logging.getLogger(__name__)
Batches = Callable[[], Iterable[list[dict[str, Any]]]]


class Evaluation(hooks.EvalHook):
    """Detectron2's hook, which after an interruption in the last iteration would still evaluate."""

    def after_train(self) -> None:
        if self.trainer.iter >= self.trainer.max_iter:
            super().after_train()


class _AtEvaluation(HookBase):
    """Acts when `Evaluation` does, during training; to stand behind it."""

    def __init__(self, period: int) -> None:
        self._period = period

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if self._period > 0 and done % self._period == 0 and done != self.trainer.max_iter:
            self.evaluated()

    def evaluated(self) -> None:
        raise NotImplementedError


class ValidationLoss(_AtEvaluation):
    """Puts the losses of images that are not trained on among the metrics, as "validation_loss".

    The model computes them as in training, without gradients; batch statistics stay as they are,
    and the random numbers of the training too.
    """

    def __init__(self, period: int, batches: Batches) -> None:
        """
        Args:
            period: TEST.EVAL_PERIOD.
            batches: gives the same batches with their ground truth at every call.
        """
        super().__init__(period)
        self._batches = batches

    def evaluated(self) -> None:
        model = self.trainer.model
        losses: list[float] = []
        with _as_in_training(model), torch.no_grad(), own_random_numbers(0, gpu=True):
            for batch in self._batches():
                # What the model counts is not the training's, nor are its pictures: in iteration 0
                # it would draw some, whatever VIS_PERIOD.
                with EventStorage(1):
                    losses.append(_loss(model, batch))
        parts = [value for part in comm.all_gather(losses) for value in part]
        if parts:
            mean = sum(parts) / len(parts)
            self.trainer.storage.put_scalar("validation_loss", mean, smoothing_hint=False)


def _loss(model: nn.Module, batch: list[dict[str, Any]]) -> float:
    try:
        return float(sum(model(batch).values()))
    except (FloatingPointError, AssertionError) as error:
        if not refuses_numbers(error):
            raise
        return math.nan


class _as_in_training:
    """The model in training mode, but for batch statistics; afterwards as before.

    What dense detectors normalize their losses by moves inside it, and is then put back.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modes = [(module, module.training) for module in model.modules()]
        self._normalizers = loss_normalizers(model)
        self._model = model

    def __enter__(self) -> None:
        self._model.train()
        for module, _ in self._modes:
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.training = False

    def __exit__(self, *error: object) -> None:
        for module, mode in self._modes:
            module.training = mode
        set_loss_normalizers(self._model, self._normalizers)


class SampleImages(_AtEvaluation):
    """Puts pictures of detections where TensorBoard shows images."""

    def __init__(
        self, period: int, batches: Batches, count: int, metadata: Metadata, image_format: str
    ) -> None:
        """
        Args:
            period: TEST.EVAL_PERIOD.
            batches: gives test images at every call, the same first ones.
            count: how many to draw.
            metadata: of the test set, for the classes' names.
            image_format: INPUT.FORMAT.
        """
        super().__init__(period)
        self._batches = batches
        self._count = count
        self._metadata = metadata
        self._format = image_format

    def evaluated(self) -> None:
        if not comm.is_main_process():
            return
        model = self.trainer.model
        model = model.module if hasattr(model, "module") else model
        was_training = model.training
        model.eval()
        samples = (sample for batch in self._batches() for sample in batch)
        # The visualizer draws colours at random.
        with torch.no_grad(), own_random_numbers(0):
            for number, sample in enumerate(islice(samples, self._count)):
                # Without the original size, detections and masks are in this image's pixels.
                alone = {key: sample[key] for key in sample if key not in ("height", "width")}
                found = model([alone])[0]
                if "instances" in found:  # an RPN alone has proposals
                    self._draw(number, sample, found["instances"])
        model.train(was_training)

    def _draw(self, number: int, sample: dict[str, Any], found: Any) -> None:
        image = sample["image"].permute(1, 2, 0).numpy().astype(np.uint8)
        rgb = image[:, :, ::-1] if self._format == "BGR" else image
        drawn = draw_detections(np.ascontiguousarray(rgb), found, self._metadata, 0.5)
        self.trainer.storage.put_image(f"detections/{number}", drawn.transpose(2, 0, 1))


class Metric(NamedTuple):
    """A metric to watch.

    Attributes:
        name: as the evaluators name it, "bbox/AP", or with several test sets "my_set/bbox/AP".
        first_set: the test set whose metric it is where there are several and none is named.
    """

    name: str
    first_set: str

    def find(self, known: Container[str]) -> str | None:
        """The name that it goes by among others."""
        names = (self.name, f"{self.first_set}/{self.name}")
        return next((name for name in names if name in known), None)


class KnownMetric(_AtEvaluation):
    """Ends a training whose evaluations have no such metric, instead of waiting for it in vain.

    An evaluation without any detection in a set tells nothing of that: it has the metrics of boxes
    alone, and none is a number.
    """

    def __init__(self, period: int, metric: Metric) -> None:
        """
        Args:
            period: TEST.EVAL_PERIOD.
            metric: to look for.
        """
        super().__init__(period)
        self._metric = metric

    def evaluated(self) -> None:
        """
        Raises:
            ValueError: there are results, as in the main process alone, and the metric is not
                among them.
        """
        results = self.trainer.last_results
        known = flatten_results_dict(results)
        of_sets = results.values() if self._metric.first_set in results else [results]
        if all(map(_says_something, of_sets)) and self._metric.find(known) is None:
            raise ValueError(
                f"WATCH.METRIC: expected one of the evaluation's metrics, {', '.join(known)}, got "
                f"{self._metric.name!r}. Name one of them."
            )


def _says_something(results: dict[str, Any]) -> bool:
    return any(math.isfinite(value) for value in flatten_results_dict(results).values())


class BestModel(hooks.BestCheckpointer):
    """Detectron2's hook, which keeps the best model as model_best.pth, across a resume too.

    Checkpoints to resume from stay what they are.
    """

    def __init__(self, period: int, checkpointer: Checkpointer, metric: Metric) -> None:
        """
        Args:
            period: TEST.EVAL_PERIOD.
            checkpointer: writes in the main process.
            metric: to be large.
        """
        super().__init__(period, _Untagged(checkpointer), metric.name)
        self._metric = metric

    def _best_checking(self) -> None:
        known = self.trainer.storage.latest()
        self._val_metric = self._metric.find(known) or self._metric.name
        super()._best_checking()

    def state_dict(self) -> dict[str, Any]:
        return {"best_metric": self.best_metric, "best_iter": self.best_iter}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best_metric, self.best_iter = state["best_metric"], state["best_iter"]


class _Untagged:
    """A checkpointer whose files are not taken for the last checkpoint."""

    def __init__(self, checkpointer: Checkpointer) -> None:
        self._checkpointer = checkpointer

    def save(self, name: str, **state: Any) -> None:
        with self._checkpointer.aside():
            self._checkpointer.save(name, **state)


class EarlyStop(BaseException):
    """Ends a training that no longer gets better. It is no error, hence no Exception."""


class EarlyStopping(_AtEvaluation):
    """Ends the training when a number of evaluations in a row was no better than the best."""

    def __init__(self, period: int, metric: Metric, patience: int) -> None:
        """
        Args:
            period: TEST.EVAL_PERIOD.
            metric: to be large.
            patience: evaluations.
        """
        super().__init__(period)
        self._metric = metric
        self._patience = patience
        self._best = -math.inf
        self._waited = 0

    def before_step(self) -> None:
        if self._waited >= self._patience:
            raise EarlyStop(
                f"{self._metric.name} was not above {self._best:.2f} in {self._waited} evaluations."
            )

    def evaluated(self) -> None:
        known = self.trainer.storage.latest()
        name = self._metric.find(known)
        if name is not None:  # known to the main process alone
            latest = known[name]
            is_better = latest[0] > self._best
            self._waited = 0 if is_better else self._waited + 1
            self._best = latest[0] if is_better else self._best
        self._best, self._waited = comm.all_gather((self._best, self._waited))[0]

    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best, "waited": self._waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._best, self._waited = state["best"], state["waited"]


class Curves(HookBase):
    """Draws metrics.json as curves.png when the training ends, however it does."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    def after_train(self) -> None:
        metrics = self._folder / "metrics.json"
        if metrics.is_file():
            save_curves(metrics, self._folder / "curves.png")


def watching_hooks(cfg: CfgNode, checkpointer: Checkpointer) -> list[HookBase]:
    """What WATCH asks for, to stand behind EvalHook.

    Args:
        cfg: reads WATCH, TEST.EVAL_PERIOD, DATASETS.TEST and INPUT.
        checkpointer: of the training.
    """
    watch, period = cfg.WATCH, cfg.TEST.EVAL_PERIOD
    if period <= 0 or not cfg.DATASETS.TEST:
        return []
    found: list[HookBase] = []
    if watch.LOSS_IMAGES:
        found.append(ValidationLoss(period, partial(_with_ground_truth, cfg)))
    if watch.SAMPLES:
        metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])
        images = partial(_without_ground_truth, cfg)
        found.append(SampleImages(period, images, watch.SAMPLES, metadata, cfg.INPUT.FORMAT))
    metric = Metric(watch.METRIC, cfg.DATASETS.TEST[0])
    found.append(KnownMetric(period, metric))
    if comm.is_main_process():  # which alone knows the metrics
        found.append(BestModel(period, checkpointer, metric))
    if watch.PATIENCE:
        found.append(EarlyStopping(period, metric, watch.PATIENCE))
    return found


def _with_ground_truth(cfg: CfgNode) -> Iterator[list[dict[str, Any]]]:
    """This process's share of the images for the loss, at test size, one by one.

    None of a set without any object: images alone have no loss.
    """
    augmentations = build_augmentation(cfg, is_train=False)
    mapper = TolerantMapper(cfg, is_train=True, augmentations=augmentations)
    records = [record for record in _first_test_set(cfg) if "annotations" in record]
    if not any(record["annotations"] for record in records):
        records = []
        words = "No validation loss: %s has no annotations."
        log_first_n(logging.WARNING, words % cfg.DATASETS.TEST[0], name=__name__)
    records = records[: cfg.WATCH.LOSS_IMAGES][comm.get_rank() :: comm.get_world_size()]
    return ([sample] for sample in map(mapper, records) if sample is not None)


def _without_ground_truth(cfg: CfgNode) -> Iterator[list[dict[str, Any]]]:
    mapper = TolerantMapper(cfg, is_train=False)
    return ([mapper(record)] for record in _first_test_set(cfg))


def _first_test_set(cfg: CfgNode) -> list[dict[str, Any]]:
    proposals = cfg.DATASETS.PROPOSAL_FILES_TEST[:1] if cfg.MODEL.LOAD_PROPOSALS else None
    return get_detection_dataset_dicts(
        cfg.DATASETS.TEST[0], filter_empty=False, proposal_files=proposals
    )
