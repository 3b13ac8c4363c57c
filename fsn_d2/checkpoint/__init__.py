"""Weights and checkpoints: read without running code, converted to be shared."""

from .checkpointer import Checkpointer
from .conversion import convert_weights
from .reading import read_plain_pickle, read_weights

__all__ = ["Checkpointer", "convert_weights", "read_plain_pickle", "read_weights"]
