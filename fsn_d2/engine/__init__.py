"""Engine: config to running job."""

from .launch import argument_parser, check_launch, launch
from .predictor import Predictor
from .setup import load_config, one_line_errors, setup
from .trainer import (
    Trainer,
    build_trained_model,
    build_trainer,
    check_evaluation,
    evaluate,
    train,
)
from .weights import load_weights

__all__ = [
    "Predictor",
    "Trainer",
    "argument_parser",
    "build_trained_model",
    "build_trainer",
    "check_evaluation",
    "check_launch",
    "evaluate",
    "launch",
    "load_config",
    "load_weights",
    "one_line_errors",
    "setup",
    "train",
]
