"""The generators that training draws from: their state, and numbers of its own for one sample."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

__all__ = ["own_random_numbers", "random_state", "set_random_state"]


def random_state() -> dict[str, Any]:
    """The states of this process: torch's on the CPU and the current GPU, numpy's, Python's.

    Returns:
        tensors, numbers, text and plain containers, as a checkpoint may hold.
    """
    state = _cpu_state() | _gpu_state()
    kind, words, *rest = state["numpy"]
    state["numpy"] = [kind, words.tolist(), *rest]
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Puts back what `random_state` gave; a GPU's part is left out where there is none."""
    torch.set_rng_state(state["torch"])
    np.random.set_state(tuple(state["numpy"]))
    random.setstate(state["python"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _cpu_state() -> dict[str, Any]:
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    return dict(zip(("torch", "numpy", "python"), states, strict=True))


def _gpu_state() -> dict[str, Any]:
    initialized = torch.cuda.is_available() and torch.cuda.is_initialized()
    return {"cuda": torch.cuda.get_rng_state()} if initialized else {}


@contextmanager
def own_random_numbers(*keys: int, gpu: bool = False) -> Iterator[None]:
    """Inside it, random numbers on the CPU follow from the keys alone; outside, nothing changes.

    Args:
        keys: integers >= 0; every combination has numbers of its own.
        gpu: those of the current GPU follow too. Not for loader workers, which have no GPU.
    """
    of_gpu = _gpu_state() if gpu else {}
    before = _cpu_state() | of_gpu
    words = np.random.SeedSequence(keys).generate_state(8)  # uint32
    seed = int.from_bytes(words[:2].tobytes(), "little")
    # Not torch.manual_seed: it would touch the GPU's generators.
    torch.default_generator.manual_seed(seed)
    if of_gpu:
        torch.cuda.manual_seed(seed)
    np.random.seed(words[2:6])
    random.seed(words[6:].tobytes())
    try:
        yield
    finally:
        set_random_state(before)
