"""Deterministic mode: the same seed gives the same weights, bit for bit."""

from __future__ import annotations

import os

import torch
from detectron2.config import CfgNode

__all__ = ["apply_determinism"]


def apply_determinism(cfg: CfgNode) -> None:
    """Makes PyTorch choose deterministic algorithms, and refuse where it has none, if asked to.

    Args:
        cfg: reads DETERMINISTIC, SEED and CUDNN_BENCHMARK.

    Raises:
        ValueError: DETERMINISTIC without a seed, or with algorithms chosen by their speed.
    """
    if not cfg.DETERMINISTIC:
        return
    if cfg.SEED < 0:
        raise ValueError(
            f"DETERMINISTIC needs SEED >= 0, got {cfg.SEED}. Set SEED, for instance to 0."
        )
    if cfg.CUDNN_BENCHMARK:
        raise ValueError(
            "DETERMINISTIC and CUDNN_BENCHMARK are both True, and the benchmark may choose other "
            "algorithms every time. Set CUDNN_BENCHMARK False."
        )
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs for it
    torch.use_deterministic_algorithms(True)
