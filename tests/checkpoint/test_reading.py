"""Weights files: good ones read as Detectron2 reads them, hostile and broken ones refused."""

from __future__ import annotations

import builtins
import os
import pickle
import tarfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import pytest
import safetensors.torch
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.solver import build_lr_scheduler
from torch import nn

from fsn_d2.checkpoint import Checkpointer, read_plain_pickle, read_weights

from .pickles import Calls, payload, python2_pickle

RNG = np.random.default_rng(0)
ARRAYS = {
    "weight": RNG.normal(size=(3, 2)).astype("f4"),
    "bias": RNG.normal(size=3).astype("f4"),
    "filter": RNG.normal(size=(20, 5, 7)).astype("f8"),
    "count": np.array([2**40, -1]),
    "flags": np.array([True, False]),
}


def same(first: Any, second: Any) -> bool:
    """Equal values in containers of the same type; arrays and tensors of the same type too."""
    if isinstance(first, dict):
        equal = first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
        return isinstance(second, dict) and equal
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, np.ndarray):
        return first.dtype == second.dtype and np.array_equal(first, second)
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    return bool(first == second)


def by_detectron2(path: Path) -> dict[str, Any]:
    """What Detectron2's own reader makes of a file."""
    checkpointer = DetectionCheckpointer(nn.Linear(1, 1))
    checkpointer._parsed_url_during_load = urlparse(str(path))  # as `load` of main does
    return checkpointer._load_file(str(path))


# ---------------------------------------------------------------------------- good files


ZOO_FILES = {
    "detectron2": {"model": ARRAYS, "__author__": "someone"},
    "detectron": {"blobs": {**ARRAYS, "weight_momentum": ARRAYS["weight"]}, "cfg": "A: 1"},
    "imagenet": {**ARRAYS, "weight_momentum": ARRAYS["weight"]},
}


@pytest.mark.parametrize("content", ZOO_FILES.values(), ids=ZOO_FILES)
def test_a_pickle_of_python_2_is_read_as_by_detectron2(tmp_path: Path, content: dict) -> None:
    path = tmp_path / "zoo.pkl"
    path.write_bytes(python2_pickle(content))
    expected = by_detectron2(path)
    assert same(expected["model"], ARRAYS)  # the oracle reads what was put in
    assert same(expected, read_weights(path))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_of_any_protocol_is_read_as_by_detectron2(tmp_path: Path, protocol: int) -> None:
    model = {
        **ARRAYS,
        "columns": np.asfortranarray(ARRAYS["weight"]),
        "big endian": ARRAYS["weight"].astype(">f4"),
        "none": np.zeros((0, 3)),
        "point": np.array(3.5),
        "scalar": np.float32(2.5),
    }
    path = tmp_path / "zoo.pkl"
    rest = {"matching_heuristics": True, "steps": (1, [2.5, None]), "bytes": b"\xff", "set": {1}}
    content = {"model": OrderedDict(model), "__author__": "someone", **rest}
    path.write_bytes(pickle.dumps(content, protocol))
    loaded = read_weights(path)
    assert same(by_detectron2(path), loaded)
    assert loaded["model"]["columns"].flags.f_contiguous
    assert loaded["model"]["weight"].flags.writeable


def test_arrays_are_written_again_as_numpys_own(tmp_path: Path) -> None:
    path = tmp_path / "zoo.pkl"
    path.write_bytes(python2_pickle(ZOO_FILES["detectron2"]))
    for protocol in (2, pickle.HIGHEST_PROTOCOL):
        again = pickle.dumps(read_weights(path)["model"]["weight"], protocol)
        assert b"fsn_d2" not in again
        assert type(pickle.loads(again)) is np.ndarray


def trained(folder: Path) -> Path:
    """A checkpoint as a training of Detectron2 leaves it, with a metric that is numpy's."""
    cfg = get_cfg()
    model = nn.Linear(2, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = build_lr_scheduler(cfg, optimizer)
    model(torch.ones(2)).sum().backward()
    optimizer.step()
    scheduler.step()
    saver = DetectionCheckpointer(
        model, str(folder), save_to_disk=True, optimizer=optimizer, scheduler=scheduler
    )
    state = np.random.default_rng(1).bytes(8)
    saver.save("it", iteration=7, best=np.float64(41.5), random=np.arange(4, dtype="u4"), raw=state)
    return folder / "it.pth"


def test_the_checkpoint_of_a_training_is_read_as_by_torch(tmp_path: Path) -> None:
    path = trained(tmp_path)
    expected = torch.load(path, weights_only=False)
    assert expected["optimizer"]["state"] and expected["scheduler"] and expected["best"] == 41.5
    assert same(expected, read_weights(path))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrapped", [True, False])
def test_a_file_of_torch_is_read_as_by_detectron2(
    tmp_path: Path, zipped: bool, wrapped: bool
) -> None:
    state = nn.BatchNorm2d(3).state_dict()
    path = tmp_path / "weights.pth"
    content = {"model": state, "iteration": 3} if wrapped else state
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    loaded = read_weights(path)
    assert same(by_detectron2(path), loaded)
    assert same(dict(state), dict(loaded["model"]))


def test_a_file_of_pycls_is_read_as_by_detectron2(tmp_path: Path) -> None:
    path = tmp_path / "weights.pyth"
    torch.save({"epoch": 3, "model_state": nn.BatchNorm2d(3).state_dict()}, path)
    loaded = read_weights(path)
    assert same(by_detectron2(path), loaded)
    assert "num_batches_tracked" not in loaded["model"] and "weight" in loaded["model"]


def test_safetensors_hold_the_model_and_how_to_match_it(tmp_path: Path) -> None:
    tensors = {name: torch.from_numpy(array) for name, array in ARRAYS.items()}
    safetensors.torch.save_file(tensors, tmp_path / "bare.safetensors")
    assert same(read_weights(tmp_path / "bare.safetensors"), {"model": tensors})
    notes = {"__author__": "Caffe2", "matching_heuristics": "True", "other": "left out"}
    safetensors.torch.save_file(tensors, tmp_path / "zoo.safetensors", notes)
    expected = {"model": tensors, "__author__": "Caffe2", "matching_heuristics": True}
    assert same(read_weights(tmp_path / "zoo.safetensors"), expected)


def test_what_is_read_reaches_the_model_as_with_detectron2(tmp_path: Path) -> None:
    """The name heuristics of the zoo apply: `fc.weight` takes `weight`."""
    path = tmp_path / "zoo.pkl"
    content = {"weight": ARRAYS["weight"], "bias": ARRAYS["bias"]}
    path.write_bytes(python2_pickle({**ZOO_FILES["imagenet"], **content}))
    models = [nn.Sequential(OrderedDict(fc=nn.Linear(2, 3))) for _ in range(2)]
    for kind, model in zip((Checkpointer, DetectionCheckpointer), models, strict=True):
        kind(model).load(str(path))
    for ours, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert np.array_equal(models[0].fc.weight.detach(), ARRAYS["weight"])


def test_a_query_that_detectron2s_main_takes_off_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(nn.Linear(2, 3).state_dict(), path)
    checkpointer = Checkpointer(nn.Linear(2, 3))
    checkpointer._parsed_url_during_load = urlparse(f"{path}?magic=1")  # as `load` of main does
    with pytest.raises(ValueError, match=r"weights\.pth has the query 'magic=1'"):
        checkpointer._load_file(str(path))
    checkpointer._load_file(str(path))


def test_a_refused_load_does_not_stand_in_the_way_of_the_next(tmp_path: Path) -> None:
    (tmp_path / "bad.pth").write_bytes(b"no weights")
    state = nn.Linear(2, 3).state_dict()
    torch.save({"model": state}, tmp_path / "good.pth")
    model = nn.Linear(2, 3)
    checkpointer = Checkpointer(model)
    with pytest.raises(ValueError, match=r"bad\.pth was not loaded"):
        checkpointer.load(str(tmp_path / "bad.pth"))
    checkpointer.load(str(tmp_path / "good.pth"))
    assert same(dict(state), dict(model.state_dict()))


# ---------------------------------------------------------------------------- hostile files


def save_bare(protocol: int) -> Callable[[Any, Path], None]:
    return lambda content, path: path.write_bytes(pickle.dumps(content, protocol)) and None


def save_legacy(content: Any, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def save_zip_of_protocol_4(content: Any, path: Path) -> None:
    torch.save(content, path, pickle_protocol=4)


WAYS: dict[str, tuple[str, Callable[[Any, Path], Any]]] = {
    "zip": (".pth", torch.save),
    "zip of protocol 4": (".pth", save_zip_of_protocol_4),
    "before torch 1.6": (".pth", save_legacy),
    ".pt": (".pt", torch.save),
    "no suffix": ("", torch.save),
    "pycls": (".pyth", torch.save),
    **{f"bare pickle {p} in .pth": (".pth", save_bare(p)) for p in (0, 2, 4, 5)},
    **{f"zoo {p}": (".pkl", save_bare(p)) for p in (0, 2, 4, 5)},
}
FUNCTIONS = {"posix.mkdir": os.mkdir, "os.makedirs": os.makedirs, "eval": builtins.eval}


def arguments_for(function: Any, mark: Path) -> Any:
    return f"__import__('os').mkdir({str(mark)!r})" if function is eval else str(mark)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("way", WAYS)
def test_a_payload_does_not_run_and_is_named(tmp_path: Path, way: str, name: str) -> None:
    suffix, save = WAYS[way]
    mark, path = tmp_path / "mark", tmp_path / f"weights{suffix}"
    attack = Calls(FUNCTIONS[name], arguments_for(FUNCTIONS[name], mark))
    save({"model": {"weight": attack}, "model_state": {}, "__author__": "someone"}, path)
    with pytest.raises(ValueError) as caught:
        read_weights(path)
    message = str(caught.value)
    assert str(path) in message and name in message and "docs/security.md" in message
    assert "\n" not in message
    assert not mark.exists()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_payloads_are_live(tmp_path: Path, name: str) -> None:
    """So that the test above can fail: an ordinary load runs them."""
    function = FUNCTIONS[name]
    pickle.loads(pickle.dumps(Calls(function, arguments_for(function, tmp_path / "mark"))))
    assert (tmp_path / "mark").exists()


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_a_payload_inside_an_array_of_objects_does_not_run(tmp_path: Path, suffix: str) -> None:
    mark, path = tmp_path / "mark", tmp_path / f"weights{suffix}"
    array = np.array([None], dtype=object)
    array[0] = payload(mark)
    content = {"model": {"weight": array}, "__author__": "someone"}
    (torch.save if suffix == ".pth" else save_bare(2))(content, path)
    with pytest.raises(ValueError, match=r"numpy\.dtype\('O8'\)"):
        read_weights(path)
    assert not mark.exists()


RECORD = np.dtype([("a", "f4")])
MISUSES = {
    "objects from bytes": Calls(np.ndarray, (1,), "O", b"A" * 8),
    "an array of records": np.zeros(2, RECORD),
    "text": np.array(["a"]),
    "a dtype from a type": Calls(np.dtype, OrderedDict),
    "a scalar of objects": Calls(np._core.multiarray.scalar, np.dtype("O"), payload(Path("x"))),
}


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
@pytest.mark.parametrize("content", MISUSES.values(), ids=MISUSES)
def test_numpy_is_asked_for_numbers_alone(tmp_path: Path, content: Any, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    (torch.save if suffix == ".pth" else save_bare(2))({"model": {"weight": content}}, path)
    with pytest.raises(ValueError, match="was not loaded"):
        read_weights(path)


def with_state(array_state: tuple[Any, ...], dtype_state: tuple[Any, ...]) -> bytes:
    """A pickle of an array whose states are given: numpy's own `__setstate__` trusts them."""

    class DType:
        def __reduce__(self) -> tuple[Any, ...]:
            return np.dtype, ("f4", False, True), dtype_state

    class Array:
        def __reduce__(self) -> tuple[Any, ...]:
            state = tuple(DType() if item is np.dtype else item for item in array_state)
            return np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b"), state

    return pickle.dumps({"weight": Array()}, 2)


GOOD_DTYPE = (3, "<", None, None, None, -1, -1, 0)


@pytest.mark.parametrize(
    "dtype_state",
    [
        (3, "<", None, None, None, -1, -1, 63),  # numpy itself takes numbers for pointers then
        (3, "<", None, None, None, -1, -1, 1),
        (3, "<", (np.dtype, (2,)), None, None, -1, -1, 0),
        (3, "<", None, ("a",), {"a": 0}, 8, 8, 0),
    ],
)
def test_a_dtype_that_is_more_than_a_number_is_refused(tmp_path: Path, dtype_state: tuple) -> None:
    path = tmp_path / "weights.pkl"
    values = np.array([1.5, -2.0], "f4")
    state = (1, (2,), np.dtype, False, values.tobytes())
    path.write_bytes(with_state(state, GOOD_DTYPE))
    assert read_weights(path)["model"]["weight"].tolist() == [1.5, -2.0]
    path.write_bytes(with_state(state, dtype_state))
    for read in (read_weights, read_plain_pickle):
        with pytest.raises(ValueError, match=r"asks for numpy\.dtype with the state"):
            read(path)


@pytest.mark.parametrize(
    "state",
    [
        (1, (-1, -2), np.dtype, False, b"\0" * 8),
        (1, (1000,), np.dtype, False, b"\0" * 8),
        (1, (2**62, 2**62), np.dtype, False, b""),
        (1, (2,), "f4", False, b"\0" * 8),
        (1, (2,), np.dtype, False, ["an", "object"]),
        (1, (2,)),
    ],
)
def test_an_array_that_contradicts_itself_is_refused(tmp_path: Path, state: tuple) -> None:
    path = tmp_path / "weights.pkl"
    path.write_bytes(with_state(state, GOOD_DTYPE))
    with pytest.raises(ValueError, match=r"weights\.pkl was not loaded"):
        read_weights(path)


def test_a_torchscript_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(2)), str(path))
    with pytest.raises(ValueError, match="TorchScript"):
        read_weights(path)


def test_an_environment_variable_does_not_open_the_door(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save({"model": payload(tmp_path / "mark")}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"posix\.mkdir"):
        read_weights(tmp_path / "weights.pth")
    assert not (tmp_path / "mark").exists()


def test_what_is_admitted_for_reading_is_admitted_for_that_alone(tmp_path: Path) -> None:
    before = torch.serialization.get_safe_globals()
    read_weights(trained(tmp_path))
    assert set(torch.serialization.get_safe_globals()) == set(before)


def test_any_plain_pickle_is_read_under_the_same_rules(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.pkl", tmp_path / "bad.pkl"
    good.write_bytes(pickle.dumps([ARRAYS, 3], 2))
    assert same([ARRAYS, 3], read_plain_pickle(good))
    bad.write_bytes(pickle.dumps([payload(tmp_path / "mark")], 2))
    with pytest.raises(ValueError, match=r"bad\.pkl was not loaded: it asks for posix\.mkdir"):
        read_plain_pickle(bad)
    assert not (tmp_path / "mark").exists()


# ---------------------------------------------------------------------------- broken files


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".pyth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"no weights at all", b"\x80\x02}q", b"PK\x03\x04"])
def test_a_broken_file_is_named(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"weights\.\w+ was not loaded"):
        read_weights(path)


def test_a_tar_file_is_named(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "weights.pth", "w") as file:
        file.addfile(tarfile.TarInfo("pickle"))
    with pytest.raises(ValueError, match=r"\.tar format"):
        read_weights(tmp_path / "weights.pth")


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
@pytest.mark.parametrize("content", [[1, 2], 3.0, {"model": [1], "__author__": "someone"}])
def test_a_file_without_names_is_refused(tmp_path: Path, suffix: str, content: Any) -> None:
    path = tmp_path / f"weights{suffix}"
    (torch.save if suffix == ".pth" else save_bare(2))(content, path)
    with pytest.raises(ValueError, match="where a dict of names and tensors is expected"):
        read_weights(path)


def test_a_pycls_file_without_a_model_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "weights.pyth")
    with pytest.raises(ValueError, match="model_state"):
        read_weights(tmp_path / "weights.pyth")


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".safetensors"])
def test_a_missing_file_stays_a_missing_file(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(FileNotFoundError):
        read_weights(tmp_path / f"absent{suffix}")
