"""The merges, worked by hand on one bin of two channels."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fsn_d2.modeling import build_merge


def bin_of(*channels: float) -> Tensor:
    return torch.tensor(channels)[None, :, None, None]


def two_sigmoid(x: float) -> float:
    return 2 / (1 + math.exp(-x))


ROI, SUB_REGION, RATIO = bin_of(2.0, -3.0), bin_of(0.5, 1.0), bin_of(-1.0, 0.5)


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        ("identity", (2 * -0.5, -3 * 1.5)),
        ("relu", (0.0, -3 * 1.5)),
        ("sigmoid", (2 * two_sigmoid(-0.5), -3 * two_sigmoid(1.5))),
    ],
)
def test_multiply_by_hand(activation: str, expected: tuple[float, float]) -> None:
    merge = build_merge("multiply", channels=2, num_banks=2, activation=activation)
    torch.testing.assert_close(merge(ROI, [SUB_REGION, RATIO]), bin_of(*expected))


def test_sum_by_hand() -> None:
    merge = build_merge("sum", channels=2, num_banks=2, activation="identity")
    torch.testing.assert_close(merge(ROI, [SUB_REGION, RATIO]), bin_of(1.5, -1.5))


def test_concat_by_hand() -> None:
    merge = build_merge("concat", channels=2, num_banks=2, activation="identity")
    weight = torch.tensor([[1.0, 10, 100, 1000, 10000, 100000], [0, 0, 0, 0, 0, 1]])
    with torch.no_grad():
        merge.conv.weight.copy_(weight[:, :, None, None])
        merge.conv.bias.copy_(torch.tensor([0.25, 0.0]))
    # ReLU of (2, -3 | 0.5, 1 | -1, 0.5) is (2, 0 | 0.5, 1 | 0, 0.5).
    expected = bin_of(2 + (2 + 50 + 1000 + 50000) + 0.25, -3 + 0.5)
    torch.testing.assert_close(merge(ROI, [SUB_REGION, RATIO]), expected)


@pytest.mark.parametrize("name", ["multiply", "sum"])
def test_without_attentions_there_is_nothing_to_merge(name: str) -> None:
    merge = build_merge(name, channels=2, num_banks=0, activation="identity")
    assert torch.equal(merge(ROI, []), ROI) and torch.equal(merge.finish(ROI), ROI)
    assert not list(merge.parameters())


def test_concat_without_attentions_is_its_convolution_by_hand() -> None:
    merge = build_merge("concat", channels=2, num_banks=0, activation="identity")
    with torch.no_grad():
        merge.conv.weight.copy_(torch.tensor([[1.0, 10], [100, 0]])[:, :, None, None])
    torch.testing.assert_close(merge(ROI, []), bin_of(2.0 + 2, -3.0 + 200))  # ReLU of (2, -3)


@pytest.mark.parametrize("name", ["concat", "multiply", "sum"])
@pytest.mark.parametrize("activation", ["identity", "relu", "sigmoid"])
@pytest.mark.parametrize("num_banks", [1, 2])
def test_at_the_sum_it_names_as_its_start_a_merge_is_close_to_plain_pooling(
    name: str, activation: str, num_banks: int
) -> None:
    torch.manual_seed(0)
    merge = build_merge(name, channels=40, num_banks=num_banks, activation=activation)
    roi = torch.randn(5, 40, 7, 7)
    assert merge.start is not None
    attention = [torch.full_like(roi, merge.start / num_banks) for _ in range(num_banks)]
    change = (merge(roi, attention) - roi).norm() / roi.norm()
    # concat: weights of 0.01 over 40 rectified channels of the RoI, 0.01 * sqrt(40 / 2) = 0.045.
    assert change < (0.06 if name == "concat" else 1e-6)


@pytest.mark.parametrize("name", ["concat", "multiply"])
def test_at_the_start_the_attention_gets_as_much_gradient_as_if_it_were_added(name: str) -> None:
    """A convolution that starts small all over would keep the banks from learning."""
    torch.manual_seed(0)
    roi, toward = torch.randn(64, 40, 3, 3), torch.randn(64, 40, 3, 3)

    def gradient(name: str) -> float:
        merge = build_merge(name, channels=40, num_banks=2, activation="sigmoid")
        attention = [(0.06 * torch.randn(64, 40, 3, 3)).requires_grad_() for _ in range(2)]
        (merge(roi, attention) * toward).sum().backward()
        return torch.stack([a.grad.norm() for a in attention]).norm().item()

    assert 0.3 < gradient(name) / gradient("sum") < 3


@pytest.mark.parametrize("name", ["concat", "multiply", "sum"])
def test_no_rois_give_no_features_and_zero_gradients(name: str) -> None:
    merge = build_merge(name, channels=4, num_banks=2, activation="sigmoid")
    empty = torch.zeros(0, 4, 7, 7, requires_grad=True)
    out = merge(empty, [empty, empty])
    assert out.shape == (0, 4, 7, 7)
    out.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in merge.parameters())


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"MODEL\.FSN\.MERGE.*'blend'"):
        build_merge("blend", channels=4, num_banks=2, activation="sigmoid")
    with pytest.raises(ValueError, match=r"MODEL\.FSN\.ACTIVATION.*'tanh'"):
        build_merge("multiply", channels=4, num_banks=2, activation="tanh")
