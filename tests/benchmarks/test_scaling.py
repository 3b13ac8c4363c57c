"""The estimate for many GPUs, by hand."""

from __future__ import annotations

import pytest
from scaling import Setting, estimate, reduce_seconds, table

SETTING = Setting(
    step=0.2, images=2, gradients=100_000_000, machine=8, inside=200e9, between=10e9, epochs=1.0
)


def test_one_gpu_reduces_nothing() -> None:
    row = estimate(SETTING, 1)
    assert row.reduce == 0 and row.batch == 2 and row.iterations == 59144  # 118287 / 2
    assert row.best_hours == row.worst_hours == pytest.approx(59144 * 0.2 / 3600)
    assert row.images_per_second == pytest.approx(10)


def test_the_links_by_hand() -> None:
    # 2 * 7/8 * 100 MB over 200 GB/s; with two machines 2 * 1/2 * 100 MB over 10 GB/s on top.
    assert reduce_seconds(SETTING, 8) == pytest.approx(0.000875)
    assert reduce_seconds(SETTING, 16) == pytest.approx(0.000875 + 0.01)
    assert reduce_seconds(SETTING, 512) == pytest.approx(0.000875 + 2 * 63 / 64 * 0.01)


def test_the_table_has_a_row_per_number_of_gpus() -> None:
    lines = table(SETTING).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == [str(2**k) for k in range(10)]
