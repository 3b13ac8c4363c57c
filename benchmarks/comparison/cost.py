"""What a method costs on a data set: time per step and image, and parameters and arithmetic of the
stage behind the pyramid. All methods take turns in one process.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.modeling import GeneralizedRCNN, build_model
from detectron2.structures import Boxes, ImageList, Instances
from fvcore.nn import FlopCountAnalysis
from harness.detectors import inference, still_optimizer, training_step
from harness.machine import facts
from harness.timing import Contender, clock_of, spread, take_turns
from torch import Tensor, nn

from fsn_d2.data import register_datasets, register_digits
from fsn_d2.engine import Trainer
from fsn_d2.modeling.meta_arch import FSAF

from .grid import Run
from .settings import config_of_run, settings_of

PROPOSALS = 300
# Without training, every proposal is detected by RoI heads, and nothing by a dense head: the
# suppression of what passes the threshold would be a difference that trained ones do not have.
NO_DETECTION = {
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 1.0,
    "MODEL.RETINANET.SCORE_THRESH_TEST": 1.0,
}


class Cost(NamedTuple):
    """Of the stage behind the pyramid: RoI heads without the RPN, or a dense detector's towers.

    Attributes:
        parameters: their number.
        gmac: multiplications with addition, in 10^9, for one image; the pooling is not in it.
    """

    parameters: int
    gmac: float


def measure_costs(runs: Mapping[str, Run], rounds: int) -> dict[str, Any]:
    """Measures every method on the same batch.

    Args:
        runs: method -> one of its runs, all on the same data.
        rounds: of training steps and of single images.
    """
    with tempfile.TemporaryDirectory() as folder:
        configs = {name: _timed_config(run, Path(folder)) for name, run in runs.items()}
        first = next(iter(configs.values()))
        batch = _first_batch(first)
        about = facts(torch.device(first.MODEL.DEVICE).type, torch.get_num_threads())
        measured = _measure(configs, batch, rounds)
        torch.cuda.empty_cache()  # the trainings that this process waits for want it
        return {
            "facts": about,
            "batch": len(batch),
            "proposals": PROPOSALS,
            "rounds": rounds,
            "methods": {
                name: {"settings": settings_of(run), **measured[name]} for name, run in runs.items()
            },
        }


def _timed_config(run: Run, output: Path) -> CfgNode:
    cfg = config_of_run(run, output)
    cfg.merge_from_list([word for pair in NO_DETECTION.items() for word in pair])
    return cfg


def _measure(
    configs: Mapping[str, CfgNode], batch: list[dict], rounds: int
) -> dict[str, dict[str, Any]]:
    models = {name: _model_of(cfg) for name, cfg in configs.items()}
    stages = {name: stage_cost(model, batch[0]) for name, model in models.items()}
    steps = {
        name: training_step(model, still_optimizer(model), batch) for name, model in models.items()
    }
    training = _take_turns(steps, configs, rounds)
    for model in models.values():
        model.eval()
    detect = {name: inference(model, batch[:1]) for name, model in models.items()}
    detecting = _take_turns(detect, configs, rounds)
    return {
        name: {
            "parameters": stages[name].parameters,
            "gmac": stages[name].gmac,
            "seconds_per_iteration": spread(training[name])._asdict(),
            "seconds_per_image": spread(detecting[name])._asdict(),
        }
        for name in models
    }


def _take_turns(
    calls: Mapping[str, Callable[[], Any]], configs: Mapping[str, CfgNode], rounds: int
) -> dict[str, list[float]]:
    for call in calls.values():
        call()
    contenders = {name: Contender(call, torch.get_num_threads()) for name, call in calls.items()}
    device = next(iter(configs.values())).MODEL.DEVICE
    return take_turns(contenders, clock_of(torch.device(device).type), 0.0, (rounds, rounds))


def _first_batch(cfg: CfgNode) -> list[dict]:
    register_digits()
    register_datasets(cfg)
    torch.manual_seed(0)
    return next(iter(Trainer.build_train_loader(cfg)))


def _model_of(cfg: CfgNode) -> nn.Module:
    torch.manual_seed(0)
    return build_model(cfg).train()


class _RoiStage(nn.Module):
    """RoI heads from pyramid to boxes, in tensors, on given proposals."""

    def __init__(self, heads: nn.Module, levels: list[str], images: ImageList, boxes: Boxes):
        super().__init__()
        self.heads = heads
        self.levels = levels
        self.images = images
        proposal = Instances(images.image_sizes[0])
        proposal.proposal_boxes = boxes
        proposal.objectness_logits = torch.zeros(len(boxes))
        self.proposals = [proposal]

    def forward(self, *features: Tensor) -> Tensor:
        found, _ = self.heads(
            self.images, dict(zip(self.levels, features, strict=True)), self.proposals
        )
        return found[0].pred_boxes.tensor


class _DenseStage(nn.Module):
    """A dense detector's towers and what is predicted from them."""

    def __init__(self, model: FSAF):
        super().__init__()
        self.head = model.head
        self.branch = model.branch
        self.anchors = model.anchors

    def forward(self, *features: Tensor) -> list[Tensor]:
        towers = self.head(list(features))
        outputs = [self.head.predict_from_anchors(towers)] if self.anchors else []
        outputs += [self.branch(*towers)[:2]] if self.branch is not None else []
        return [level for output in outputs for levels in output for level in levels]


def stage_cost(model: GeneralizedRCNN | FSAF, sample: dict) -> Cost:
    """Parameters and arithmetic of what follows the pyramid.

    Args:
        model: on any device.
        sample: an image, from a data loader. RoI heads get PROPOSALS boxes all over it.
    """
    with _evaluating(model), torch.no_grad():
        images = model.preprocess_image([sample])
        features = model.backbone(images.tensor)
        if isinstance(model, FSAF):
            stage: nn.Module = _DenseStage(model)
            inputs = tuple(features[name] for name in model.head_in_features)
        else:
            boxes = _boxes(*images.image_sizes[0]).to(images.tensor.device)
            stage = _RoiStage(model.roi_heads, list(features), images, boxes)
            inputs = tuple(features.values())
        count = FlopCountAnalysis(stage, inputs)
        count.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        parameters = sum(p.numel() for p in stage.parameters())
        return Cost(parameters, count.total() / 1e9)


@contextmanager
def _evaluating(model: nn.Module):
    was_training, level = model.training, logging.root.manager.disable
    logging.disable(logging.WARNING)  # of tracing
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
        logging.disable(level)


def _boxes(height: int, width: int) -> Boxes:
    """PROPOSALS boxes, of a quarter of the image's sides on average."""
    rng = torch.Generator().manual_seed(0)
    size = torch.tensor([width, height])
    sides = size * (0.05 + 0.4 * torch.rand(PROPOSALS, 2, generator=rng))
    corner = torch.rand(PROPOSALS, 2, generator=rng) * (size - sides)
    return Boxes(torch.cat([corner, corner + sides], dim=1))
