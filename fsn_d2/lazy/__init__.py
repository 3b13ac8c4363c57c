"""This project's models in Detectron2's newer style of configs, from the same YAML values."""

from .configs import LazyParts, lazy_config, load_lazy_config
from .loop import evaluate, train
from .models import lazy_model

__all__ = ["LazyParts", "evaluate", "lazy_config", "lazy_model", "load_lazy_config", "train"]
