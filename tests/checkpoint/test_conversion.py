"""Weights taken from one format into another and back."""

from __future__ import annotations

import itertools
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from fsn_d2.checkpoint import Checkpointer, convert_weights, read_weights

from .pickles import payload, python2_pickle

WEIGHT = np.random.default_rng(0).normal(size=(3, 2)).astype("f4")
BIAS = np.array([1, 2, 3], "f4")


def network() -> nn.Module:
    return nn.Sequential(OrderedDict(fc=nn.Linear(2, 3)))


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    """Names that only Detectron2's heuristics match."""
    path = tmp_path / "zoo.pkl"
    path.write_bytes(python2_pickle({"blobs": {"weight": WEIGHT, "bias": BIAS}}))
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pkl"])
def test_converted_weights_load_as_the_original_does(zoo: Path, suffix: str) -> None:
    target = zoo.with_name(f"converted{suffix}")
    assert convert_weights(zoo, target) == 2
    model = network()
    Checkpointer(model).load(str(target))
    assert np.array_equal(model.fc.weight.detach(), WEIGHT)
    assert np.array_equal(model.fc.bias.detach(), BIAS)


def test_there_and_back_gives_the_same_tensors(tmp_path: Path) -> None:
    state = nn.BatchNorm2d(3).state_dict() | {"half": torch.rand(3).half(), "none": torch.ones(0)}
    torch.save({"model": state, "optimizer": {"lr": 1.0}, "iteration": 3}, tmp_path / "a.pth")
    files = [tmp_path / name for name in ("a.pth", "b.safetensors", "c.pkl", "d.pth")]
    for source, target in itertools.pairwise(files):
        convert_weights(source, target)
    loaded = torch.load(files[-1], weights_only=True)
    assert set(loaded) == {"model", "__author__"}
    assert list(loaded["model"]) == list(read_weights(files[1])["model"])
    for name, tensor in state.items():
        assert torch.equal(loaded["model"][name], tensor)
        assert loaded["model"][name].dtype == tensor.dtype


def test_a_pickle_that_is_written_is_read_by_detectron2(tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "a.pth")
    convert_weights(tmp_path / "a.pth", tmp_path / "b.pkl")
    model = network()
    DetectionCheckpointer(model).load(str(tmp_path / "b.pkl"))
    for name, tensor in torch.load(tmp_path / "a.pth").items():
        assert torch.equal(model.state_dict()[name], tensor)
    assert b"fsn_d2.checkpoint" not in (tmp_path / "b.pkl").read_bytes()


def test_tensors_may_share_memory_and_be_transposed(tmp_path: Path) -> None:
    values = torch.arange(6.0).reshape(2, 3)
    torch.save({"a": values, "b": values, "c": values.T, "d": values[1]}, tmp_path / "a.pth")
    convert_weights(tmp_path / "a.pth", tmp_path / "b.safetensors")
    loaded = safetensors.torch.load_file(tmp_path / "b.safetensors")
    assert {name: tensor.tolist() for name, tensor in loaded.items()} == {
        "a": [[0, 1, 2], [3, 4, 5]],
        "b": [[0, 1, 2], [3, 4, 5]],
        "c": [[0, 3], [1, 4], [2, 5]],
        "d": [3, 4, 5],
    }


def test_a_refused_source_leaves_no_target(tmp_path: Path) -> None:
    source, target = tmp_path / "a.pkl", tmp_path / "b.safetensors"
    source.write_bytes(pickle.dumps({"weight": payload(tmp_path / "mark")}))
    with pytest.raises(ValueError, match=r"a\.pkl.*posix\.mkdir"):
        convert_weights(source, target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pkl"]


def test_a_type_that_numpy_lacks_is_refused_and_an_old_target_kept(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(2, dtype=torch.bfloat16)}, tmp_path / "a.pth")
    (tmp_path / "b.pkl").write_bytes(b"old")
    with pytest.raises(ValueError, match="BFloat16"):
        convert_weights(tmp_path / "a.pth", tmp_path / "b.pkl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pth", "b.pkl"]
    assert (tmp_path / "b.pkl").read_bytes() == b"old"
    convert_weights(tmp_path / "a.pth", tmp_path / "b.safetensors")
    assert read_weights(tmp_path / "b.safetensors")["model"]["weight"].dtype == torch.bfloat16


def test_what_cannot_be_converted_is_named(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(2), "epoch": 3}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a\.pth holds a int as 'epoch'"):
        convert_weights(tmp_path / "a.pth", tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match=r"b\.onnx: the suffix .*\.safetensors, \.pth, \.pkl"):
        convert_weights(tmp_path / "a.pth", tmp_path / "b.onnx")
    with pytest.raises(FileNotFoundError, match=r"absent\.pth"):
        convert_weights(tmp_path / "absent.pth", tmp_path / "b.safetensors")
