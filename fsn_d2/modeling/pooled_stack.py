"""What one pass of the op pools for Feature Selective Networks: the RoI feature and, side by side
with it, what is read of the banks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from fsn_d2.layers import Source

from .attention_banks import DeferredMaps


class Bank(NamedTuple):
    """A bank as it is read.

    Attributes:
        source: its maps, or what they are to be convolved from; without levels, that is the RoI
            feature, which is pooled anyway.
        deferred: the convolution that is left, the same at all levels; None: none is.
    """

    source: Source
    deferred: DeferredMaps | None = None

    def of_rois(self, part: slice, count: int) -> Bank:
        return self._replace(source=self.source.of_rois(part, count))


def bank_of(
    levels: list[Tensor | DeferredMaps | None],
    bank_index: Tensor,
    origins: Sequence[tuple[int, int]] = (),
) -> Bank:
    """A bank of a pyramid. A deferred one is read as if its input were there once per map."""
    deferred = [level for level in levels if isinstance(level, DeferredMaps)]
    if not deferred:
        ready = [level for level in levels if isinstance(level, Tensor)]
        return Bank(Source(ready, bank_index, origins))
    inputs = [
        level.input.unsqueeze(1).expand(-1, len(level.weight), -1, -1, -1)
        for level in deferred
        if level.input is not None
    ]
    return Bank(Source(inputs, bank_index, origins), deferred[0])


def any_deferred(banks: list[Bank]) -> bool:
    return any(bank.deferred for bank in banks)


class PooledStack(NamedTuple):
    """What was pooled for K RoIs.

    Attributes:
        pooled: Tensor[K, S * C, PH, PW], side by side: the RoI feature, then what was read of the
            banks that have a source of their own.
        coverage: Tensor[K, 1, PH, PW] in 0..1, what part of a bin's samples lies on the feature;
            None where no bank is deferred.
        banks: those that were pooled.
        output_size: (PH, PW).
    """

    pooled: Tensor
    coverage: Tensor | None
    banks: list[Bank]
    output_size: tuple[int, int]

    def split(self, size: int) -> list[PooledStack]:
        """In portions of `size` RoIs."""
        count = len(self.pooled)
        pooled = self.pooled.split(size)
        coverage = [None] * len(pooled) if self.coverage is None else self.coverage.split(size)
        banks = [
            [bank.of_rois(slice(first, first + size), count) for bank in self.banks]
            for first in range(0, count, size)
        ]
        sizes = [self.output_size] * len(pooled)
        return list(map(PooledStack, pooled, coverage, banks, sizes))

    def parts(self) -> tuple[Tensor, list[Tensor]]:
        """The RoI feature and each bank's attention, every one Tensor[K, C, PH, PW]."""
        own = sum(bool(bank.source.levels) for bank in self.banks)
        roi, *others = self.pooled.chunk(1 + own, dim=1)
        rest = iter(others)
        read = [next(rest) if bank.source.levels else roi for bank in self.banks]
        return roi, list(map(self._attention, self.banks, read))

    def _attention(self, bank: Bank, read: Tensor) -> Tensor:
        if bank.deferred is None or self.coverage is None:
            return read
        index = bank.source.bank_index
        return bank.deferred.of_pooled(read, index, self.coverage, self.output_size)
