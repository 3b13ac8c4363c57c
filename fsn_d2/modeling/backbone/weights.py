"""Start weights of a backbone: a file's tensors are put into it, and every one has to fit."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def read_state_dict(path: str, key: str) -> dict[str, Tensor]:
    """Read the tensors of a local weights file, without running any code that it may hold.

    Args:
        path: a ``.safetensors`` file, or one written by ``torch.save`` that holds a state dict,
            bare or under the key ``state_dict`` or ``model``.
        key: the config key that gave the path, for the error message.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds something else than tensors under names.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"{key}: no file at {path!r}. Give the path of a weights file, or one of the words "
            "that the key's comment in the config lists."
        )
    if path.endswith(".safetensors"):
        from safetensors.torch import load_file

        return load_file(path)
    content: Any
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise ValueError(f"{key}: {path!r} is not a file of plain tensors ({error}).") from error
    if not isinstance(content, dict):
        raise ValueError(f"{key}: {path!r} holds a {type(content).__name__}, expected a dict.")
    state = content.get("state_dict") or content.get("model") or content
    return {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}


def load_every_tensor(network: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copy ``state`` into ``network``; the network's every tensor must be found and fit.

    Tensors the network lacks (a classifier's, say) are ignored. A feature extractor of timm's may
    name its outer module ``features_0`` where the file says ``features.0``: names are compared
    with the dots taken for underscores. Counters of batches are neither needed nor read.

    Args:
        network: filled in place.
        state: name to tensor.
        source: what the error calls ``state``.

    Raises:
        ValueError: a tensor of the network is absent from ``state`` or has another shape there.
    """
    given = {_flat(name): tensor for name, tensor in state.items()}
    wanted = without_batch_counters(network.state_dict())
    problems = [
        f"{name}: {describe_shape(given.get(_flat(name)))}, expected {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if describe_shape(given.get(_flat(name))) != describe_shape(tensor)
    ]
    if problems:
        raise ValueError(
            f"{source}: {len(problems)} of the backbone's {len(wanted)} tensors do not fit "
            f"({'; '.join(problems[:3])}). Use weights of this very model, in its library's format."
        )
    network.load_state_dict({name: given[_flat(name)] for name in wanted}, strict=False)


def without_batch_counters(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return ``state`` without batch normalisation's counters, which no frozen layer has."""
    return {name: t for name, t in state.items() if not name.endswith("num_batches_tracked")}


def describe_shape(tensor: Tensor | None) -> str:
    """Return the shape in words, or "absent"."""
    return "absent" if tensor is None else str(tuple(tensor.shape))


def _flat(name: str) -> str:
    return name.replace(".", "_")
