"""Start weights of a backbone: a file's tensors are put into it, and every one has to fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...checkpoint import read_weights


def read_state_dict(path: str, key: str) -> dict[str, Tensor]:
    """Read the tensors of a local weights file, without running any code that it may hold.

    Args:
        path: a file that `read_weights` reads; its state dict is bare or under the key ``model``
            or ``state_dict``.
        key: the config key that gave the path, for the error message.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is broken, or holds something else than tensors under names.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"{key}: no file at {path!r}. Give the path of a weights file, or one of the words "
            "that the key's comment in the config lists."
        )
    try:
        content = read_weights(path)["model"]
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error
    state = content.get("state_dict", content)
    if not isinstance(state, dict):
        raise ValueError(
            f"{key}: {path!r} holds a {type(state).__name__} as 'state_dict', expected a dict of "
            "names and tensors."
        )
    values = {name: _as_tensor(value) for name, value in state.items()}
    return {name: tensor for name, tensor in values.items() if isinstance(tensor, Tensor)}


def _as_tensor(value: Any) -> Any:
    """Arrays, which model zoos hold, as tensors; the rest as it is."""
    return torch.as_tensor(value) if isinstance(value, np.ndarray) else value


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
