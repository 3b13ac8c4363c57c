"""What an exported file says about itself, whatever its format."""

from __future__ import annotations

import hashlib
import importlib
import json
from contextlib import suppress

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import nn

from ..data.wording import printable

PACKAGES = ("fsn_d2", "torch", "torchvision", "detectron2", "onnx", "onnxruntime")


def metadata(cfg: CfgNode, model: nn.Module) -> dict[str, str]:
    """Everything a file carries beside the network, by name.

    Args:
        cfg: the config that is exported.
        model: the eager one, with its weights.

    Returns:
        "config.yaml": the whole config; "classes.json": the class names, in the order of their
        numbers; "versions.json": package -> version at the time of export; "weights.sha256": see
        `weights_sha256`.
    """
    return {
        "config.yaml": cfg.dump(),
        "classes.json": json.dumps(list(map(printable, class_names(cfg))), ensure_ascii=False),
        "versions.json": json.dumps(versions()),
        "weights.sha256": weights_sha256(model),
    }


def class_names(cfg: CfgNode) -> list[str]:
    """The names of the classes, from the data sets or DATASETS.CLASSES; empty: nobody knows."""
    for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        if names := MetadataCatalog.get(name).get("thing_classes"):
            return list(names)
    return list(map(str, cfg.DATASETS.CLASSES))


def versions() -> dict[str, str]:
    """The installed one of each of `PACKAGES`, where there is one."""
    found = {}
    for package in PACKAGES:
        with suppress(ImportError):
            found[package] = importlib.import_module(package).__version__
    return found


def weights_sha256(model: nn.Module) -> str:
    """A hash of the model's weights, the same for every file they are kept in.

    It runs over the entries of the state dict, sorted by name: "name dtype shape" in one line, then
    the values, row-major and little-endian.

    Args:
        model: of which the whole state dict counts.

    Returns:
        SHA-256, 64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
