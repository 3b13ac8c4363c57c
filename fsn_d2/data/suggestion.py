"""A config for a user's data on this machine: which keys to set on a shipped one, and why."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from detectron2.config import CfgNode

from ..machine import Machine
from .config_delta import Setting
from .survey import SetSurvey, Survey

__all__ = ["base_config", "input_size", "suggest"]

# Our choices, all of them: a start that trains, not an optimum.
EPOCHS_CPU, LEAST_ITERATIONS_CPU = 4, 300  # as configs/fsn_Lite0_BCCD.yaml
EPOCHS_GPU, LEAST_ITERATIONS_GPU = 12, 1500  # 12 epochs of COCO are Detectron2's 1x schedule
GIB_PER_IMAGE = 3.5  # of GPU memory, ResNet-50 and FPN at 800 x 1333 in float32, with room to spare
SMALL_BOX = 10  # pixels of the network's input; what is smaller is hard to find
LARGEST_INPUT_CPU = 480  # pixels, shorter side
LEAST_BOXES = 20  # on a level, to choose its anchors by them


def base_config(machine: Machine) -> str:
    """Name of the shipped config to start from."""
    return "fsn_R50.yaml" if machine.gpus else "Base-Lite0-FPN.yaml"


def suggest(
    survey: Survey,
    machine: Machine,
    base: CfgNode,
    *,
    train: Sequence[str],
    test: Sequence[str],
    output_dir: str,
) -> list[Setting]:
    """Suggests a config for an FSN.

    Args:
        survey: of the data; its training sets hold boxes.
        machine: where the training will run.
        base: the config that `base_config` names, loaded.
        train: specs of the training sets.
        test: specs of the test sets, if any.
        output_dir: where the training will write.

    Returns:
        The keys to set on the base, in their order in the file.
    """
    settings = [*_model(machine), *_anchors(survey, machine, base)]
    settings += [
        Setting("MODEL.ROI_HEADS.NUM_CLASSES", len(survey.classes), "the data's classes"),
        Setting("DATASETS.TRAIN", list(train)),
        Setting("DATASETS.TEST", list(test)),
        Setting("DATASETS.CLASSES", survey.classes, "the order of the model's outputs; keep it"),
    ]
    settings += _input(survey, machine, base)
    settings += _schedule(survey, machine, base)
    return [*settings, Setting("OUTPUT_DIR", output_dir)]


def input_size(survey: Survey, machine: Machine, base: CfgNode) -> tuple[int, int]:
    """Least shorter and greatest longer side of the network's input, in pixels.

    The base's (the middle one, where it has several); on a CPU larger where a tenth of the boxes
    would come out below SMALL_BOX, though never larger than the images are.
    """
    sizes = sorted(base.INPUT.MIN_SIZE_TRAIN)
    least, greatest = sizes[len(sizes) // 2], base.INPUT.MAX_SIZE_TRAIN
    if machine.gpus:
        return least, greatest
    small = np.quantile(_box_sides(survey.train, least, greatest), 0.1)
    short = np.median(np.concatenate([each.image_sizes.min(1) for each in survey.train]))
    wanted = math.ceil(least * SMALL_BOX / small / 16) * 16
    larger = max(least, min(wanted, int(short), LARGEST_INPUT_CPU))
    return larger, round(greatest * larger / least)


def _model(machine: Machine) -> list[Setting]:
    if machine.gpus:
        return []  # the base is an FSN
    return [
        Setting("MODEL.ROI_HEADS.NAME", "FSNROIHeads"),
        Setting("MODEL.ROI_BOX_HEAD.NUM_FC", 1, "as in all configs of FSN"),
    ]


def _box_sides(sets: Iterable[SetSurvey], least: int, greatest: int) -> np.ndarray:
    return np.concatenate([each.box_sides(least, greatest) for each in sets])


def _anchors(survey: Survey, machine: Machine, base: CfgNode) -> list[Setting]:
    sides = _box_sides(survey.train, *input_size(survey, machine, base))
    shapes = np.concatenate([each.ratios for each in survey.train])
    sizes = anchor_sizes(sides, [level[0] for level in base.MODEL.ANCHOR_GENERATOR.SIZES])
    ratios = spread_ratios(shapes)
    low, high = np.quantile(shapes, (0.1, 0.9))
    return [
        Setting(
            "MODEL.ANCHOR_GENERATOR.SIZES",
            [[size] for size in sizes],
            "per level the median side of the boxes nearest to the base's size, in pixels of the "
            "network's input; the base's where there are few boxes",
        ),
        Setting(
            "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS",
            [ratios],
            f"height / width: eight boxes in ten lie between {low:.2f} and {high:.2f}; neighbours "
            "are a factor of 1.41 apart or more",
        ),
        Setting("MODEL.FSN.RATIOS", ratios, "the bank's maps, at the ratios of the anchors"),
    ]


def anchor_sizes(sides: np.ndarray, base: Sequence[float]) -> list[int]:
    """One anchor size per level, near the base's so that each stays within reach of its stride.

    Args:
        sides: [M], square roots of the boxes' areas in pixels of the network's input.
        base: sizes of the levels, each twice the one before.

    Returns:
        Per level the median of the boxes that are nearer to its base size than to another's on a
        log scale, within a factor of 1.41 of that size; the base size for LEAST_BOXES boxes or
        fewer.
    """
    nearest = np.abs(np.log(sides)[:, None] - np.log(base)).argmin(1)
    sizes = []
    for level, size in enumerate(base):
        own = sides[nearest == level]
        median = float(np.median(own)) if len(own) > LEAST_BOXES else size
        sizes.append(round(min(max(median, size / math.sqrt(2)), size * math.sqrt(2))))
    return sizes


def spread_ratios(ratios: np.ndarray, count: int = 3) -> list[float]:
    """Ratios evenly spaced on a log scale from the 10% to the 90% quantile.

    Args:
        ratios: [M], height / width of the boxes.
        count: how many.

    Returns:
        `count` ratios, ascending; spread around the middle until neighbours are a factor of
        sqrt(2) apart, for closer ones describe the same shapes.
    """
    low, high = np.log(np.quantile(ratios, (0.1, 0.9)))
    reach = max((high - low) / 2, (count - 1) / 2 * math.log(2) / 2)
    middle = (low + high) / 2
    return [float(f"{v:.3g}") for v in np.exp(np.linspace(middle - reach, middle + reach, count))]


def _input(survey: Survey, machine: Machine, base: CfgNode) -> list[Setting]:
    least, greatest = input_size(survey, machine, base)
    if machine.gpus or least == base.INPUT.MIN_SIZE_TRAIN[0]:
        return []
    why = f"so that fewer boxes come out below {SMALL_BOX} pixels; costs time"
    return [
        Setting("INPUT.MIN_SIZE_TRAIN", [least], why),
        Setting("INPUT.MAX_SIZE_TRAIN", greatest),
        Setting("INPUT.MIN_SIZE_TEST", least),
        Setting("INPUT.MAX_SIZE_TEST", greatest),
    ]


def batch_size(machine: Machine, base: CfgNode) -> int:
    """Images per iteration: the base's at most, on GPUs as many each as their memory holds."""
    most = base.SOLVER.IMS_PER_BATCH
    if not machine.gpus:
        return most
    each = min(int(machine.gpu_memory / GIB_PER_IMAGE), most // machine.gpus)
    return max(1, each) * machine.gpus


def _schedule(survey: Survey, machine: Machine, base: CfgNode) -> list[Setting]:
    images = sum(len(np.unique(each.box_images)) for each in survey.train)
    epochs, least = (
        (EPOCHS_GPU, LEAST_ITERATIONS_GPU) if machine.gpus else (EPOCHS_CPU, LEAST_ITERATIONS_CPU)
    )
    batch, solver = batch_size(machine, base), base.SOLVER
    iterations = max(least, math.ceil(epochs * images / batch))
    period = math.ceil(iterations / 3)
    rate = solver.BASE_LR * batch / solver.IMS_PER_BATCH
    return [
        Setting("SOLVER.IMS_PER_BATCH", batch, f"for {machine}"),
        Setting(
            "SOLVER.BASE_LR",
            float(f"{rate:.6g}"),
            f"the base's {solver.BASE_LR:g} for {solver.IMS_PER_BATCH} images, scaled with the "
            "batch",
        ),
        Setting(
            "SOLVER.MAX_ITER",
            iterations,
            f"{iterations * batch / images:.1f} times through {images} images with boxes; longer "
            "is often better",
        ),
        Setting(
            "SOLVER.STEPS",
            [round(0.7 * iterations), round(0.9 * iterations)],
            "the rate falls to a tenth at 70% and at 90%",
        ),
        Setting("SOLVER.WARMUP_ITERS", min(1000, iterations // 6), "a sixth, 1000 at most"),
        Setting("SOLVER.CHECKPOINT_PERIOD", period, "an interrupted training goes on from there"),
        Setting("TEST.EVAL_PERIOD", period if survey.test else 0, "three times, with a test set"),
    ]
