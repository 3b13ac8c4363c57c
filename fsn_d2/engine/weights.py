"""Loading model weights, with an error that helps when they cannot be downloaded."""

from __future__ import annotations

import logging
import os

from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from torch import nn

from ..checkpoint import Checkpointer
from ..checkpoint.checkpointer import MATCHING_HEURISTICS

logger = logging.getLogger(__name__)


def _where_to_put(weights: str) -> str:
    if weights.startswith("detectron2://"):
        url = "https://dl.fbaipublicfiles.com/detectron2/" + weights[len("detectron2://") :]
        cache = os.path.expanduser(os.getenv("FVCORE_CACHE", "~/.torch/iopath_cache"))
        return f"Download {url} elsewhere and put it at {cache}/detectron2/{url.split('/', 4)[-1]}"
    return f"Download {weights} elsewhere"


def resume_or_load(
    checkpointer: Checkpointer, weights: str, *, resume: bool, strict: bool = False
) -> dict:
    """Loads the last checkpoint (with `resume`, where there is one) or the weights.

    Args:
        checkpointer: of the model, with its output folder.
        weights: MODEL.WEIGHTS, a path or URL; empty: keep the model as it is.
        resume: prefer the output folder's last checkpoint, which has to fit the model.
        strict: the weights have to fit it too, each of its tensors.

    Returns:
        what a checkpoint holds beside the states of the model and the checkpointer's objects.

    Raises:
        FileNotFoundError: the file is missing or cannot be downloaded; says where to put it.
        ValueError: the file is broken, holds something else than tensors and plain containers, or
            does not fit the model; or processes would go on from different checkpoints.
    """
    if resume:
        _require_one_folder(checkpointer)
    found = resume and checkpointer.has_checkpoint()
    checkpointer.strict = strict or found
    if found:
        _require_last(checkpointer)
    elif weights:
        _require(weights)
    return checkpointer.resume_or_load(weights, resume=resume)


def load_weights(model: nn.Module, weights: str, *, last_of: str = "") -> None:
    """Loads MODEL.WEIGHTS into a model that is to be used, each of its tensors.

    Args:
        model: gets the weights, in place.
        weights: path or URL; empty: keep the model as it is, with a warning.
        last_of: folder of a training, whose last checkpoint goes before, where there is one.

    Raises:
        FileNotFoundError, ValueError: as `resume_or_load`, or the weights do not fit.
    """
    checkpointer = Checkpointer(model, last_of)
    if not weights and not (last_of and checkpointer.has_checkpoint()):
        logger.warning("MODEL.WEIGHTS is empty: the model has learnt nothing yet.")
    resume_or_load(checkpointer, weights, resume=bool(last_of), strict=True)


def goes_on(output_dir: str, *, resume: bool) -> bool:
    """Whether a checkpoint of the folder will replace whatever a model starts with."""
    return resume and PathManager.isfile(os.path.join(output_dir, "last_checkpoint"))


def without_start_weights(cfg: CfgNode) -> CfgNode:
    """The config of the same model, to be built without any weights: others replace them."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = ""
    for backbone in ("TIMM", "GOOGLENET"):
        if backbone in cfg.MODEL:  # a config without this project's keys has none
            cfg.MODEL[backbone].PRETRAINED = ""
    return cfg


def last_checkpoint(checkpointer: Checkpointer) -> str:
    """Path of the checkpoint that a resumed training goes on from; "" if there is none."""
    return checkpointer.get_checkpoint_file() if checkpointer.has_checkpoint() else ""


def _require_one_folder(checkpointer: Checkpointer) -> None:
    """Processes that go on from different checkpoints would train different models."""
    seen = comm.all_gather(os.path.basename(last_checkpoint(checkpointer)))
    if len(set(seen)) > 1:
        named = ", ".join(name or "none" for name in seen)
        raise ValueError(
            f"--resume: the processes see different last checkpoints in OUTPUT_DIR "
            f"{checkpointer.save_dir}: {named}. Give a folder that all machines share, or copy it "
            "to every machine."
        )


def _require_last(checkpointer: Checkpointer) -> None:
    checkpoint = checkpointer.get_checkpoint_file()
    if not PathManager.isfile(checkpoint):
        raise FileNotFoundError(
            f"--resume: {checkpoint} does not exist, and {checkpointer.save_dir}/last_checkpoint "
            "names it. Write the name of a checkpoint that is there into that file, or remove it "
            "to start anew."
        )


def _require(weights: str) -> None:
    weights = weights.removesuffix(MATCHING_HEURISTICS)
    if "://" not in weights:
        if not os.path.isfile(weights):
            raise FileNotFoundError(
                f"MODEL.WEIGHTS: {os.path.abspath(weights)} does not exist. Give the path of a "
                "checkpoint, or '' to start without one."
            )
        return
    try:
        PathManager.get_local_path(weights)
    except Exception as error:  # the download libraries raise many unrelated types
        raise FileNotFoundError(
            f"MODEL.WEIGHTS: {weights} could not be downloaded ({error}). "
            f"{_where_to_put(weights)}, or set MODEL.WEIGHTS to the path of the file, or to '' to "
            "start without it."
        ) from error
