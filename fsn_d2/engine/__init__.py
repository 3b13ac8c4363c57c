"""Engine: config to running job."""

from .setup import load_config, setup
from .trainer import Trainer, evaluate, train
from .weights import load_weights

__all__ = ["Trainer", "evaluate", "load_config", "load_weights", "setup", "train"]
