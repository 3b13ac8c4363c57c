"""What the reference does beyond the values shared with the compiled op: it bounds its memory, and
its gradient is written out.
"""

from __future__ import annotations

import pytest
import torch

from fsn_d2.layers import reference, selective_roi_align_reference

ROIS = torch.tensor(
    [[0, 2, 3, 30, 25], [1, -9, -9, 60, 70], [1, 5, 5, 5, 5], [0, 40, 30, 10, 8], [1, 0, 0, 8, 40]],
    dtype=torch.float64,
)
INDEX = torch.tensor([0, 2, 1, 1, 0])[:, None, None]


@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("rows_at_once", [1, 300])
def test_pooling_in_parts_changes_nothing(
    ratio: int, rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = torch.randn(2, 3, 2, 7, 8, dtype=torch.float64)
    arguments = (bank, ROIS, INDEX, [2, 3], 0.125, ratio)
    whole = selective_roi_align_reference(*arguments)
    collect, parts = reference._collect_bags, []

    def count_rois(size, rois, *rest):
        parts.append(len(rois))
        return collect(size, rois, *rest)

    monkeypatch.setattr(reference, "_collect_bags", count_rois)
    monkeypatch.setattr(reference, "_MAX_ROWS_AT_ONCE", rows_at_once)
    assert selective_roi_align_reference(*arguments).equal(whole)
    assert sum(parts) == len(ROIS) and len(parts) > 1


@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize(
    ("bound", "value"), [("ROWS", 1), ("ROWS", 300), ("VALUES", 600), ("VALUES", 2**26)]
)
def test_the_gradient_is_that_of_autograd_through_the_forward(
    ratio: int, bound: str, value: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, f"_MAX_{bound}_AT_ONCE", value)
    bank = torch.randn(2, 3, 2, 7, 8, dtype=torch.float64, requires_grad=True)
    pooled = selective_roi_align_reference(bank, ROIS, INDEX, [2, 3], 0.125, ratio)
    grad_output = torch.randn_like(pooled)
    (expected,) = torch.autograd.grad(pooled, bank, grad_output)
    grad = reference.selective_roi_align_backward_reference(
        grad_output, ROIS, INDEX, list(bank.shape), 0.125, ratio
    )
    torch.testing.assert_close(grad, expected)


def test_taps_along_one_axis_by_hand() -> None:
    """An RoI over cells 1 to 3 in two bins of two samples, at 0.75, 1.25, 1.75 and 2.25."""
    start, extent = torch.tensor([0.5]), torch.tensor([2.0])
    taps = reference._axis_taps(start, extent, bins=2, sampling_ratio=2, size=5)
    dense = torch.zeros(2, 5)
    for b in range(2):
        for t in range(int(taps.first[0, b]), int(taps.first[0, b] + taps.counts[0, b])):
            dense[b, taps.cell[t]] += taps.weight[t]
    assert dense.tolist() == [[0.25, 1.5, 0.25, 0, 0], [0, 0.25, 1.5, 0.25, 0]]
    assert taps.grid.tolist() == [2]


def test_ragged_ranges() -> None:
    owner, position = reference.ragged_ranges(torch.tensor([2, 0, 3]))
    assert owner.tolist() == [0, 0, 2, 2, 2]
    assert position.tolist() == [0, 1, 0, 1, 2]
