"""Data, optimizer and schedule as LazyConfig trees, in the places where Detectron2 has them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.config import LazyCall as L
from detectron2.data import (
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data import transforms as T
from detectron2.solver import WarmupParamScheduler
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from fvcore.common.param_scheduler import MultiStepParamScheduler
from omegaconf import DictConfig, OmegaConf

from ..data import TolerantMapper
from ..evaluation import build_evaluator, first_test_set
from .shared import require_values


def lazy_data(cfg: CfgNode) -> DictConfig:
    """Loaders of DATASETS.TRAIN and of the first of DATASETS.TEST, and its evaluator.

    Raises:
        ValueError: the config names no test set, or asks for another sampler, or to allow images
            from outside.
    """
    require_values(
        cfg, {"DATALOADER.SAMPLER_TRAIN": "TrainingSampler", "DATASETS.ALLOW_OUTSIDE": False}
    )
    image = cfg.INPUT
    crop = L(T.RandomCrop)(crop_type=image.CROP.TYPE, crop_size=list(image.CROP.SIZE))
    flip = L(T.RandomFlip)(
        horizontal=image.RANDOM_FLIP == "horizontal", vertical=image.RANDOM_FLIP == "vertical"
    )
    resize = L(T.ResizeShortestEdge)(
        short_edge_length=list(image.MIN_SIZE_TRAIN),
        max_size=image.MAX_SIZE_TRAIN,
        sample_style=image.MIN_SIZE_TRAIN_SAMPLING,
    )
    for_training = [
        *([crop] if image.CROP.ENABLED else []),
        resize,
        *([flip] if image.RANDOM_FLIP != "none" else []),
    ]
    for_test = L(T.ResizeShortestEdge)(
        short_edge_length=image.MIN_SIZE_TEST,
        max_size=image.MAX_SIZE_TEST,
        sample_style="choice",
    )
    return OmegaConf.create(
        {
            "train": L(build_detection_train_loader)(
                dataset=L(get_detection_dataset_dicts)(
                    names=cfg.DATASETS.TRAIN,
                    filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
                ),
                mapper=_mapper(cfg, for_training, train=True),
                total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
                aspect_ratio_grouping=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
                num_workers=cfg.DATALOADER.NUM_WORKERS,
            ),
            "test": L(build_detection_test_loader)(
                dataset=L(get_detection_dataset_dicts)(
                    names=first_test_set(cfg), filter_empty=False
                ),
                mapper=_mapper(cfg, [for_test], train=False),
                num_workers=cfg.DATALOADER.NUM_WORKERS,
            ),
            "evaluator": L(build_evaluator)(
                dataset="${..test.dataset.names}", output_dir="${train.output_dir}/inference"
            ),
        },
        flags={"allow_objects": True},
    )


def _mapper(cfg: CfgNode, augmentations: list[Any], *, train: bool) -> Any:
    return L(TolerantMapper)(
        is_train=train,
        augmentations=augmentations,
        image_format=cfg.INPUT.FORMAT,
        max_pixels=cfg.INPUT.MAX_PIXELS,
    )


def lazy_optimizer(cfg: CfgNode) -> Any:
    """SGD; `params.model` is to be set before it is instantiated."""
    solver = cfg.SOLVER
    clip = yaml.safe_load(solver.CLIP_GRADIENTS.dump())
    return L(sgd)(
        params=L(get_default_optimizer_params)(
            base_lr="${..lr}",
            weight_decay="${..weight_decay}",
            weight_decay_norm=solver.WEIGHT_DECAY_NORM,
            bias_lr_factor=solver.BIAS_LR_FACTOR,
            weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        ),
        lr=solver.BASE_LR,
        momentum=solver.MOMENTUM,
        weight_decay=solver.WEIGHT_DECAY,
        nesterov=solver.NESTEROV,
        clip=clip if solver.CLIP_GRADIENTS.ENABLED else None,
    )


def sgd(params: Iterable[Any], clip: dict[str, Any] | None, **options: Any) -> Any:
    """torch's SGD, with gradients clipped as SOLVER.CLIP_GRADIENTS says.

    Args:
        params: parameters or groups of them.
        clip: the keys below SOLVER.CLIP_GRADIENTS; None: no clipping.
        options: of SGD.
    """
    kind = torch.optim.SGD
    if clip is not None:
        cfg = CfgNode({"SOLVER": {"CLIP_GRADIENTS": dict(clip)}})
        kind = maybe_add_gradient_clipping(cfg, kind)
    return kind(params, **options)


def lazy_schedule(cfg: CfgNode) -> Any:
    """Steps with a warm-up, as multiples of the learning rate.

    Raises:
        ValueError: the config asks for another scheduler.
    """
    require_values(cfg, {"SOLVER.LR_SCHEDULER_NAME": "WarmupMultiStepLR"})
    solver = cfg.SOLVER
    steps = [step for step in solver.STEPS if step <= solver.MAX_ITER]
    return L(WarmupParamScheduler)(
        scheduler=L(MultiStepParamScheduler)(
            values=[solver.GAMMA**k for k in range(len(steps) + 1)],
            milestones=steps,
            num_updates=solver.MAX_ITER,
        ),
        warmup_factor=solver.WARMUP_FACTOR,
        warmup_length=min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0),
        warmup_method=solver.WARMUP_METHOD,
    )


def lazy_run(cfg: CfgNode) -> dict[str, Any]:
    """What remains, under `train`, as in Detectron2's configs/common/train.py.

    Raises:
        ValueError: the config asks for what this project's trainer does, but Detectron2's plain
            one does not.
    """
    require_values(
        cfg,
        {
            "SOLVER.REFERENCE_WORLD_SIZE": 0,
            "SOLVER.NONFINITE": "stop",
            "DETERMINISTIC": False,
            "WATCH.PATIENCE": 0,
            "TEST.AUG.ENABLED": False,
            "TEST.EXPECTED_RESULTS": [],
            "TEST.PRECISE_BN.ENABLED": False,
        },
    )
    return {
        "output_dir": cfg.OUTPUT_DIR,
        "init_checkpoint": cfg.MODEL.WEIGHTS,
        "max_iter": cfg.SOLVER.MAX_ITER,
        "amp": {"enabled": cfg.SOLVER.AMP.ENABLED},
        "ddp": {"broadcast_buffers": False, "find_unused_parameters": False},
        "checkpointer": {"period": cfg.SOLVER.CHECKPOINT_PERIOD, "max_to_keep": 100},
        "eval_period": cfg.TEST.EVAL_PERIOD,
        "log_period": 20,
        "cudnn_benchmark": cfg.CUDNN_BENCHMARK,
        "device": cfg.MODEL.DEVICE,
        "seed": cfg.SEED,
        "classes": cfg.DATASETS.CLASSES,
    }
