"""Mean, spread, and how sure a difference is that was taken seed by seed."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

EXACT_UP_TO = 6  # values: 6 ** 6 = 46656 resamples are all of them
RESAMPLES = 50_000


class Mean(NamedTuple):
    """The mean of some values and their standard deviation (0 for one value)."""

    mean: float
    deviation: float
    size: int


class Interval(NamedTuple):
    """The mean of some differences, and the bounds between which 95 % of resampled means lie."""

    mean: float
    low: float
    high: float
    size: int


def mean_of(values: Sequence[float]) -> Mean:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return Mean(statistics.fmean(values), deviation, len(values))


def paired_interval(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """The bootstrap's percentile interval of the mean difference, pairs resampled.

    Few pairs are resampled in all possible ways, more at random (seed 0).

    Args:
        ours, theirs: of the same seeds in the same order, at least one.

    Raises:
        ValueError: they are not pairs.
    """
    if len(ours) != len(theirs) or not ours:
        raise ValueError(f"pairs are needed, got {len(ours)} and {len(theirs)} values")
    differences = np.subtract(ours, theirs)
    count = len(differences)
    if count <= EXACT_UP_TO:
        drawn = np.array(list(itertools.product(range(count), repeat=count)))
    else:
        drawn = np.random.default_rng(0).integers(count, size=(RESAMPLES, count))
    low, high = np.percentile(differences[drawn].mean(axis=1), [2.5, 97.5])
    return Interval(float(differences.mean()), float(low), float(high), count)
