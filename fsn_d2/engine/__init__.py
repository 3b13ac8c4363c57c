"""Engine: config to running job."""

from .setup import load_config, one_line_errors, setup
from .trainer import Trainer, evaluate, train
from .weights import load_weights

__all__ = [
    "Trainer",
    "evaluate",
    "load_config",
    "load_weights",
    "one_line_errors",
    "setup",
    "train",
]
