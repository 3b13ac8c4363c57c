"""Deterministic mode: the same seed gives the same weights."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import train_net
from fsn_d2.engine import load_config
from fsn_d2.engine.determinism import apply_determinism

Args = Callable[..., Namespace]
RUN = {
    "small": True,
    "SOLVER__MAX_ITER": 3,
    "SOLVER__BASE_LR": 0.01,
    "DATASETS__TEST": (),
    "DETERMINISTIC": True,
}


@pytest.fixture(autouse=True)
def torch_state(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(os.environ, "CUBLAS_WORKSPACE_CONFIG", "")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


class ThreadsOfTheOp(TorchDispatchMode):
    """Runs this project's ops with a number of threads of their own; counts their calls."""

    def __init__(self, threads: int) -> None:
        super().__init__()
        self.threads = threads
        self.calls: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace != "fsn_d2":
            return func(*args, **(kwargs or {}))
        name = str(func)
        self.calls[name] = self.calls.get(name, 0) + 1
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            return func(*args, **(kwargs or {}))
        finally:
            torch.set_num_threads(before)


def final(output: Path) -> dict[str, torch.Tensor]:
    return torch.load(output / "model_final.pth", weights_only=True)["model"]


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(first[k].equal(second[k]) for k in first)


def test_the_same_seed_gives_the_same_weights_with_one_and_two_threads_of_the_op(
    tiny_args: Args, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    found = []
    for threads in (1, 1, 2):
        with ThreadsOfTheOp(threads) as mode:
            train_net.main(tiny_args("fsn_R50.yaml", **RUN))
        assert len(mode.calls) == 2, mode.calls  # forward and backward
        assert all(calls >= 3 for calls in mode.calls.values())
        found.append(final(tmp_path / "output"))
    assert equal(found[0], found[1])
    assert equal(found[0], found[2])
    train_net.main(tiny_args("fsn_R50.yaml", **{**RUN, "SEED": 2}))
    assert not equal(found[0], final(tmp_path / "output"))


def test_with_two_threads_of_everything_two_runs_are_equal(tiny_args: Args, tmp_path: Path) -> None:
    torch.set_num_threads(2)
    found = []
    for _ in range(2):
        train_net.main(tiny_args("fsn_R50.yaml", **RUN))
        found.append(final(tmp_path / "output"))
    assert equal(*found)


def gradient_of_indexing() -> torch.Tensor:
    """Adds many numbers to few places, which several threads do in any order."""
    values = torch.linspace(-1, 1, 500 * 40).reshape(500, 40).requires_grad_()
    picked = values[torch.arange(100_000) % 500]
    picked.backward(torch.randn(picked.shape, generator=torch.Generator().manual_seed(0)))
    assert values.grad is not None
    return values.grad


def test_what_is_not_deterministic_by_itself_becomes_so() -> None:
    torch.set_num_threads(1)
    cfg = load_config("", ["DETERMINISTIC", "True", "SEED", "0"])
    apply_determinism(cfg)
    expected = gradient_of_indexing()
    torch.set_num_threads(2)
    assert all(gradient_of_indexing().equal(expected) for _ in range(5))
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()


def test_cublas_gets_the_memory_that_it_needs_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(os.environ, "CUBLAS_WORKSPACE_CONFIG")
    apply_determinism(load_config("", ["DETERMINISTIC", "True", "SEED", "0"]))
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] in (":4096:8", ":16:8")


def test_by_default_nothing_is_changed() -> None:
    apply_determinism(load_config("", []))
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(
    ("opts", "message"),
    [(["SEED", "-1"], r"SEED >= 0, got -1"), (["CUDNN_BENCHMARK", "True"], "CUDNN_BENCHMARK")],
)
def test_what_contradicts_it_is_refused(opts: list[str], message: str, tiny_args: Args) -> None:
    cfg = load_config("", ["DETERMINISTIC", "True", "SEED", "0", *opts])
    with pytest.raises(ValueError, match=message):
        apply_determinism(cfg)


def test_the_command_refuses_it_in_one_line(tiny_args: Args) -> None:
    with pytest.raises(SystemExit, match=r"^error: DETERMINISTIC needs SEED"):
        train_net.main(tiny_args("fsn_R50.yaml", **{**RUN, "SEED": -1}))
