"""The trainer: Detectron2's default one, for data as it comes, and for interruptions."""

from __future__ import annotations

import logging
import os
import sys
import weakref
from collections import OrderedDict
from contextlib import nullcontext
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase, hooks
from detectron2.evaluation import DatasetEvaluator, verify_results
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, GeneralizedRCNNWithTTA
from detectron2.utils import comm
from torch import nn
from torch.utils.data import DataLoader

from ..checkpoint import Checkpointer
from ..checkpoint.writing import disk_is_full
from ..data import TolerantMapper
from ..evaluation import build_evaluator, evaluation_folder, evaluator_kind
from .amp import require_device_of_amp
from .interruption import StopSignal, obey_parent_alone
from .loss_normalizers import set_loss_normalizers
from .memory import PeakMemory
from .nonfinite import BatchSkipped, NonFiniteLoss
from .output_folder import begin_anew, claimed, remove_what_kills_left
from .random_state import set_random_state
from .saving import Checkpoint, CheckpointAfterEvaluation
from .training_stream import TrainingStream, build_training_stream
from .watching import Curves, EarlyStop, Evaluation, watching_hooks
from .weights import (
    goes_on,
    last_checkpoint,
    load_weights,
    resume_or_load,
    without_start_weights,
)

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """DefaultTrainer for COCO and VOC data, with test-time augmentation.

    A training that was interrupted, by whatever and at any moment, is resumed to the same weights
    that it would have had otherwise: docs/training.md.
    """

    iter: int
    _resumed_from: dict[str, Any] | None = None  # what hooks and checkpointables do not hold

    @property
    def last_results(self) -> OrderedDict:
        """The metrics of the last evaluation; empty before the first."""
        return OrderedDict(getattr(self, "_last_eval_results", {}))

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TrainingStream:
        return build_training_stream(cfg, TolerantMapper(cfg, is_train=True))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader:
        mapper = TolerantMapper(cfg, is_train=False)
        loader = build_detection_test_loader(cfg, dataset_name, mapper=mapper)
        loader.worker_init_fn = obey_parent_alone
        loader.generator = torch.Generator()  # else an evaluation would draw from the training's
        return loader

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None
    ) -> DatasetEvaluator:
        folder = output_folder or evaluation_folder(cfg, dataset_name)
        return build_evaluator(dataset_name, folder, cfg.TEST.KEYPOINT_OKS_SIGMAS)

    def build_hooks(self) -> list[HookBase]:
        """Detectron2's hooks and this project's, in the order in which they run.

        A hook that has a state (`state_dict`, `load_state_dict`) finds it again after a resume.
        One that acts on an evaluation belongs between `Evaluation` and the writers.
        """
        self.checkpointer = self._build_checkpointer()
        inherited = super().build_hooks()
        inherited = [h for h in inherited if not isinstance(h, hooks.PeriodicCheckpointer)]
        place = next(i for i, h in enumerate(inherited) if isinstance(h, hooks.EvalHook))
        stop, solver, eval_period = StopSignal(), self.cfg.SOLVER, self.cfg.TEST.EVAL_PERIOD
        saving = (self.checkpointer, solver.CHECKPOINT_PERIOD, eval_period, stop)
        return [
            stop,
            *inherited[:place],
            NonFiniteLoss(solver.NONFINITE, self.checkpointer),
            PeakMemory(),
            Checkpoint(*saving),
            Evaluation(eval_period, self._test),
            *watching_hooks(self.cfg, self.checkpointer),
            *inherited[place + 1 :],
            CheckpointAfterEvaluation(*saving),
            *([Curves(self.cfg.OUTPUT_DIR)] if comm.is_main_process() else []),
        ]

    def _test(self) -> OrderedDict:
        self._last_eval_results = self.test(self.cfg, self.model)
        return self._last_eval_results

    def _build_checkpointer(self) -> Checkpointer:
        parts: dict[str, Any] = {"trainer": weakref.proxy(self)}
        if hasattr(self.data_loader, "state_dict"):  # an overridden build_train_loader's may not
            parts["data"] = self.data_loader
        return Checkpointer(self.model, self.cfg.OUTPUT_DIR, **parts)

    def resume_or_load(self, resume: bool = True) -> None:
        """Goes on from the last checkpoint (with `resume`, where there is one), or loads weights.

        In the second case what an earlier training of the folder left as metrics.json is kept
        under another name.

        Raises:
            FileNotFoundError, ValueError: the file is missing, broken, does not fit the model or
                holds no training state; or another training writes to OUTPUT_DIR.
        """
        remove_what_kills_left(self.cfg.OUTPUT_DIR)
        rest = resume_or_load(self.checkpointer, self.cfg.MODEL.WEIGHTS, resume=resume)
        last = last_checkpoint(self.checkpointer)
        if resume and last:
            self.checkpointer.last_checkpoint = last
            self.start_iter = self.iter + 1
            self._resumed_from = rest
        else:
            begin_anew(self.checkpointer)

    def state_dict(self) -> dict[str, Any]:
        """Iteration, hooks, optimizer, gradient scaler; Detectron2 v0.6 has the first two alone."""
        return {**TrainerBase.state_dict(self), "_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if "_trainer" not in state:
            raise ValueError(
                f"{self.checkpointer.get_checkpoint_file()} holds no optimizer state, so it cannot "
                "be resumed. Start from its weights: MODEL.WEIGHTS, without --resume."
            )
        TrainerBase.load_state_dict(self, state)
        self._trainer.load_state_dict(state["_trainer"])

    def train(self) -> Any:
        with claimed(self.cfg.OUTPUT_DIR):
            try:
                return super().train()
            except EarlyStop as stop:
                logger.info("Ended after iteration %d of %d: %s", self.iter, self.max_iter, stop)
                with self.checkpointer.aside():
                    self.checkpointer.save("model_final", iteration=self.iter - 1)
                return None

    def before_train(self) -> None:
        super().before_train()
        if self._resumed_from is not None:
            self._restore_random_state(self._resumed_from.get("random_states", []))
            self._restore_loss_normalizers(self._resumed_from.get("loss_normalizers", []))
            self._complete_iteration(hooks_pending=self._resumed_from.get("hooks_pending", False))

    def _restore_random_state(self, states: list[dict[str, Any]]) -> None:
        if len(states) == comm.get_world_size():
            set_random_state(states[comm.get_rank()])
        else:
            logger.warning(
                "The checkpoint has random states of %d processes, and %d train now: the run goes "
                "on with other random numbers.",
                len(states),
                comm.get_world_size(),
            )

    def _restore_loss_normalizers(self, values: list[list[float | None]]) -> None:
        if values:  # as many as there were processes; any one's is nearer than the initial value
            set_loss_normalizers(self.model, values[comm.get_rank() % len(values)])

    def _complete_iteration(self, *, hooks_pending: bool) -> None:
        """Makes up for what the iteration of the checkpoint still had to do.

        That is model_final where a kill came between it and the last periodic checkpoint, and the
        hooks behind the checkpoint, such as the evaluation.
        """
        saving = next(i for i, hook in enumerate(self._hooks) if isinstance(hook, Checkpoint))
        left = self._hooks[saving + 1 :] if hooks_pending else []
        last = os.path.basename(self.checkpointer.last_checkpoint)
        if self.start_iter >= self.max_iter and last != "model_final.pth":
            left = [self._hooks[saving], *left]
        if left:
            self.iter = self.storage.iter = self.start_iter - 1
        for hook in left:
            hook.after_step()

    def run_step(self) -> None:
        guards = (hook.guarding() for hook in self._hooks if isinstance(hook, NonFiniteLoss))
        try:
            with next(guards, nullcontext()):
                super().run_step()
        except BatchSkipped as skipped:
            logger.warning("%s", skipped)

    def after_train(self) -> None:
        if isinstance(self.data_loader, TrainingStream):
            self.data_loader.close()
        self.iter = min(self.iter, self.max_iter)  # more, if resumed after the last iteration
        super().after_train()

    @classmethod
    def test_with_tta(cls, cfg: CfgNode, model: nn.Module) -> OrderedDict:
        """Evaluates with test-time augmentation (TEST.AUG); its results end in "_TTA"."""
        evaluators = [
            cls.build_evaluator(cfg, name, evaluation_folder(cfg, name, "inference_TTA"))
            for name in cfg.DATASETS.TEST
        ]
        results = cls.test(cfg, GeneralizedRCNNWithTTA(cfg, model), evaluators)
        return OrderedDict((f"{task}_TTA", values) for task, values in results.items())


def check_evaluation(cfg: CfgNode) -> None:
    """Looks for settings with which the evaluation, after all of the training, would fail.

    Args:
        cfg: reads DATASETS.TEST, whose sets are registered, TEST.AUG and MODEL.

    Raises:
        ValueError: a set asks for an evaluator that is not known, or test-time augmentation is on
            for a model that Detectron2 has none for; names the key to change.
    """
    for dataset in cfg.DATASETS.TEST:
        evaluator_kind(dataset)
    if not cfg.TEST.AUG.ENABLED:
        return
    name, reason = cfg.MODEL.META_ARCHITECTURE, ""
    architecture = META_ARCH_REGISTRY.get(name)
    if isinstance(architecture, type) and not issubclass(architecture, GeneralizedRCNN):
        reason = f"MODEL.META_ARCHITECTURE is {name!r}, expected GeneralizedRCNN"
    for key in ("KEYPOINT_ON", "LOAD_PROPOSALS"):
        reason = f"MODEL.{key} is True" if cfg.MODEL[key] else reason
    if reason:
        raise ValueError(
            f"TEST.AUG.ENABLED is True, and {reason}: Detectron2 has no test-time augmentation for "
            "that. Set TEST.AUG.ENABLED False."
        )


def _to_be_built(cfg: CfgNode, *, resume: bool) -> CfgNode:
    """The backbone's start weights may be gone by the time that a checkpoint replaces them."""
    return without_start_weights(cfg) if goes_on(cfg.OUTPUT_DIR, resume=resume) else cfg


def build_trained_model(cfg: CfgNode, *, resume: bool = False) -> nn.Module:
    """Builds the model and loads MODEL.WEIGHTS or, with `resume`, the last checkpoint into it.

    Args:
        cfg: the config.
        resume: take the last checkpoint of OUTPUT_DIR where there is one.

    Raises:
        FileNotFoundError, ValueError: the weights are missing or refused, or a key of the config
            has a value that the model cannot have.
    """
    model = Trainer.build_model(_to_be_built(cfg, resume=resume))
    load_weights(model, cfg.MODEL.WEIGHTS, last_of=cfg.OUTPUT_DIR if resume else "")
    return model


def build_trainer(cfg: CfgNode, *, resume: bool = False) -> Trainer:
    """Builds model, data and optimizer; loads MODEL.WEIGHTS or, with `resume`, the last checkpoint.

    Args:
        cfg: the config.
        resume: go on from the last checkpoint of OUTPUT_DIR where there is one.

    Raises:
        FileNotFoundError, ValueError: as `resume_or_load` and `check_evaluation`, or mixed
            precision is asked for without a GPU, or checkpoints of no period, or a batch cannot
            be scaled from the REFERENCE_WORLD_SIZE.
    """
    check_evaluation(cfg)
    solver = cfg.SOLVER
    if solver.CHECKPOINT_PERIOD < 1:
        raise ValueError(
            f"SOLVER.CHECKPOINT_PERIOD: expected 1 iteration or more, got "
            f"{solver.CHECKPOINT_PERIOD}."
        )
    if solver.REFERENCE_WORLD_SIZE > 0 and solver.IMS_PER_BATCH % solver.REFERENCE_WORLD_SIZE:
        raise ValueError(
            f"SOLVER.REFERENCE_WORLD_SIZE: expected a number of processes among which the "
            f"{solver.IMS_PER_BATCH} images of SOLVER.IMS_PER_BATCH can be shared out, got "
            f"{solver.REFERENCE_WORLD_SIZE}. Give the number that the config was made for, or 0."
        )
    require_device_of_amp(cfg.SOLVER.AMP.ENABLED, cfg.MODEL.DEVICE, "SOLVER.AMP.ENABLED")
    trainer = Trainer(_to_be_built(cfg, resume=resume))
    trainer.resume_or_load(resume=resume)
    return trainer


def evaluate(cfg: CfgNode, model: nn.Module) -> OrderedDict:
    """Evaluates on every set of DATASETS.TEST, with test-time augmentation too if the config asks.

    Args:
        cfg: the config.
        model: such as that of `build_trained_model`.

    Returns:
        metrics per task, per data set first if there are several.
    """
    results = Trainer.test(cfg, model)
    if cfg.TEST.AUG.ENABLED:
        results.update(Trainer.test_with_tta(cfg, model))
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


def train(trainer: Trainer) -> OrderedDict:
    """Trains to SOLVER.MAX_ITER, and evaluates at the end.

    Args:
        trainer: with its weights loaded, as from `build_trainer`.

    Returns:
        the last evaluation's metrics.

    Raises:
        SystemExit: after SIGTERM, with code 143; where the disk is full, with what to do.
        FloatingPointError: the loss is not finite.
    """
    try:
        trainer.train()
    except Exception as error:
        if not disk_is_full(error):
            raise
        sys.exit(f"error: {trainer.checkpointer.full_disk_message()}")
    results = trainer.last_results
    if trainer.cfg.TEST.AUG.ENABLED:
        results.update(trainer.test_with_tta(trainer.cfg, trainer.model))
    return results
