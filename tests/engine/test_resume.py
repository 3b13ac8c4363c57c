"""Trainings that are interrupted and resumed, against the same ones without interruption."""

from __future__ import annotations

import errno
import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.engine import AMPTrainer, HookBase, hooks
from detectron2.utils import comm

import train_net
from fsn_d2.checkpoint import Checkpointer
from fsn_d2.engine import Trainer, setup

Args = Callable[..., Namespace]
RUN = {
    "small": True,
    "SOLVER__MAX_ITER": 6,
    "SOLVER__CHECKPOINT_PERIOD": 2,
    "SOLVER__BASE_LR": 0.002,
    "DATASETS__TEST": (),
}
AUGMENTED = {
    "INPUT__CROP__ENABLED": True,
    "INPUT__MIN_SIZE_TRAIN": (48, 56, 64),
    "DATALOADER__ASPECT_RATIO_GROUPING": True,
}


class Interrupt(HookBase):
    """Ends the training like Ctrl-C after the given number of iterations."""

    def __init__(self, after: int) -> None:
        self.after = after

    def after_step(self) -> None:
        if self.trainer.iter + 1 == self.after:
            raise KeyboardInterrupt


class Memory(HookBase):
    """Stands for hooks that act on evaluations: remembers which it saw, and draws."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, float]] = []

    def after_step(self) -> None:
        value = self.trainer.storage.latest().get("bbox/AP")
        if value is not None and value[1] == self.trainer.iter:
            self.seen.append((self.trainer.iter, torch.rand(1).item()))

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]


@pytest.fixture
def extra_hooks(monkeypatch: pytest.MonkeyPatch) -> list[HookBase]:
    """What this list holds is added behind the evaluation."""
    added: list[HookBase] = []
    build = Trainer.build_hooks

    def build_with_added(trainer: Trainer) -> list[HookBase]:
        built = build(trainer)
        place = next(i for i, hook in enumerate(built) if isinstance(hook, hooks.EvalHook)) + 1
        return [*built[:place], *added, *built[place:]]

    monkeypatch.setattr(Trainer, "build_hooks", build_with_added)
    return added


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def same(first: Any, second: Any) -> bool:
    """Equal to the last bit."""
    if isinstance(first, torch.Tensor):
        return first.equal(second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


# ---------------------------------------------------------------------------- the same end


def test_a_resumed_training_ends_as_the_uninterrupted_one(
    tiny_args: Args, tmp_path: Path, extra_hooks: list[HookBase]
) -> None:
    workers = {**RUN, **AUGMENTED, "DATALOADER__NUM_WORKERS": 2}
    train_net.main(tiny_args("fsn_R50.yaml", **workers, OUTPUT_DIR=tmp_path / "whole"))
    extra_hooks.append(Interrupt(after=3))
    with pytest.raises(KeyboardInterrupt):
        train_net.main(tiny_args("fsn_R50.yaml", **workers))
    extra_hooks.clear()
    alone = {**RUN, **AUGMENTED, "DATALOADER__NUM_WORKERS": 0}
    train_net.main(tiny_args("fsn_R50.yaml", "--resume", **alone))
    for name in ("model_0000003.pth", "model_0000005.pth", "model_final.pth"):
        expected, found = (load(tmp_path / run / name) for run in ("whole", "output"))
        assert same(expected, found)
    assert found["trainer"]["iteration"] == 5
    assert found["data"] == {"seed": 1, "position": 6, "records": 3}
    momentum = found["trainer"]["_trainer"]["optimizer"]["state"][0]["momentum_buffer"]
    assert momentum.abs().sum() > 0
    assert found["trainer"]["hooks"]["LRScheduler"]["last_epoch"] == 6
    assert not same(load(tmp_path / "whole/model_0000003.pth")["model"], found["model"])


def near(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Equal but for rounding, in which two RetinaNets of one process can differ."""
    return all(torch.allclose(first[k], second[k], rtol=0, atol=1e-7) for k in first)


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ("fsn_Lite0_digits.yaml", "MODEL__TIMM__PRETRAINED"),
        ("fsn_GoogLeNet.yaml", "MODEL__GOOGLENET__PRETRAINED"),
    ],
)
def test_start_weights_may_be_gone_by_the_time_of_a_resume(
    config: str, key: str, tiny_args: Args, tmp_path: Path
) -> None:
    run = {"small": True, "DATASETS__TEST": ()}
    train_net.main(tiny_args(config, **run, SOLVER__MAX_ITER=1))
    gone = {key: tmp_path / "gone.pth"}
    with pytest.raises(SystemExit, match=r"gone\.pth"):
        train_net.main(tiny_args(config, "--resume", **run, **gone, OUTPUT_DIR=tmp_path / "new"))
    train_net.main(tiny_args(config, "--resume", **run, **gone))
    assert load(tmp_path / "output/model_final.pth")["trainer"]["iteration"] == 1
    train_net.main(tiny_args(config, "--eval-only", "--resume", **run, **gone))


@pytest.mark.parametrize("config", ["retinanet_R50.yaml", "fsaf_R50_joint.yaml"])
def test_a_dense_detector_goes_on_with_its_loss_normalizer(
    config: str, tiny_args: Args, tmp_path: Path, extra_hooks: list[HookBase]
) -> None:
    """Detectron2 keeps it outside every state_dict."""
    train_net.main(tiny_args(config, **RUN, OUTPUT_DIR=tmp_path / "whole"))
    extra_hooks.append(Interrupt(after=3))
    with pytest.raises(KeyboardInterrupt):
        train_net.main(tiny_args(config, **RUN))
    extra_hooks.clear()
    train_net.main(tiny_args(config, "--resume", **RUN))
    expected, found = (load(tmp_path / run / "model_final.pth") for run in ("whole", "output"))
    assert near(expected["model"], found["model"])
    assert not near(load(tmp_path / "whole/model_0000003.pth")["model"], found["model"])
    assert expected["loss_normalizers"] == found["loss_normalizers"]


@pytest.mark.parametrize("moment", ["in the evaluation", "in the next iteration"])
def test_an_interrupted_evaluation_is_made_up_for(
    moment: str,
    tiny_args: Args,
    tmp_path: Path,
    extra_hooks: list[HookBase],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sets = {key: value for key, value in RUN.items() if key != "DATASETS__TEST"}
    run = {**sets, "SOLVER__MAX_ITER": 4, "TEST__EVAL_PERIOD": 2}
    extra_hooks[:] = [Memory()]
    train_net.main(tiny_args("fsn_R50.yaml", **run, OUTPUT_DIR=tmp_path / "whole"))
    expected = load(tmp_path / "whole" / "model_0000003.pth")
    assert [iteration for iteration, _ in expected["trainer"]["hooks"]["Memory"]["seen"]] == [1]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        extra_hooks[:] = [Memory()]
        if moment == "in the evaluation":
            patch.setattr(Trainer, "test", lambda *args: interrupt())
        else:
            extra_hooks.append(Interrupt(after=3))
        train_net.main(tiny_args("fsn_R50.yaml", **run))
    pending = load(tmp_path / "output" / "model_0000001.pth")["hooks_pending"]
    assert pending == (moment == "in the evaluation")

    extra_hooks[:] = [Memory()]
    train_net.main(tiny_args("fsn_R50.yaml", "--resume", **run))
    assert same(load(tmp_path / "output" / "model_0000003.pth"), expected)


def test_evaluations_do_not_change_the_weights(tiny_args: Args, tmp_path: Path) -> None:
    sets = {key: value for key, value in RUN.items() if key != "DATASETS__TEST"}
    run = {**sets, "SOLVER__MAX_ITER": 3}
    for period in (0, 1):
        changes = {"TEST__EVAL_PERIOD": period, "OUTPUT_DIR": tmp_path / str(period)}
        train_net.main(tiny_args("fsn_R50.yaml", **run, **changes))
    first, second = (load(tmp_path / str(period) / "model_final.pth") for period in (0, 1))
    assert same(first["model"], second["model"])
    (without,), (evaluating,) = first["random_states"], second["random_states"]
    assert without["torch"].equal(evaluating["torch"])  # what the model draws from in training


def interrupt() -> None:
    raise KeyboardInterrupt


def test_what_was_interrupted_in_the_last_evaluation_is_evaluated(
    tiny_args: Args, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = {"small": True, "SOLVER__MAX_ITER": 2}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "test", lambda *args: interrupt())
        train_net.main(tiny_args("fsn_R50.yaml", **run))
    before = load(tmp_path / "output" / "model_final.pth")
    results = train_net.main(tiny_args("fsn_R50.yaml", "--resume", **run))
    assert "bbox" in results
    metrics = (tmp_path / "output" / "metrics.json").read_text().splitlines()
    assert json.loads(metrics[-1])["iteration"] == 2
    assert "bbox/AP" in metrics[-1]
    after = load(tmp_path / "output" / "model_final.pth")
    for checkpoint in (before, after):  # numpy's numbers are drawn from by the evaluation
        del checkpoint["random_states"][0]["numpy"]
    assert same(after, before)


def test_a_kill_before_the_last_of_two_checkpoints_does_not_lose_it(
    tiny_args: Args, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the last iteration a periodic checkpoint is written, then model_final."""
    run = {**RUN, "SOLVER__MAX_ITER": 4, "DATALOADER__NUM_WORKERS": 0}
    train_net.main(tiny_args("fsn_R50.yaml", **run, OUTPUT_DIR=tmp_path / "whole"))
    expected = load(tmp_path / "whole" / "model_final.pth")
    save = Checkpointer.save

    def killed_at_final(self: Checkpointer, name: str, **state: Any) -> None:
        if name == "model_final":
            interrupt()
        save(self, name, **state)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Checkpointer, "save", killed_at_final)
        train_net.main(tiny_args("fsn_R50.yaml", **run))
    last = tmp_path / "output" / "last_checkpoint"
    assert last.read_text() == "model_0000003.pth"
    train_net.main(tiny_args("fsn_R50.yaml", "--resume", **run))
    assert last.read_text() == "model_final.pth"
    assert same(load(tmp_path / "output" / "model_final.pth"), expected)


def test_the_gradient_scaler_is_part_of_the_state(tiny_args: Args, tmp_path: Path) -> None:
    def trainer(scale: float) -> Trainer:
        built = Trainer(setup(tiny_args("fsn_R50.yaml", **RUN)))
        parts = (built.model, built.data_loader, built.optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        built._trainer = AMPTrainer(*parts, grad_scaler=scaler)
        return built

    trainer(8.0).checkpointer.save("model", iteration=3)
    resumed = trainer(2.0)
    resumed.resume_or_load(resume=True)
    assert resumed._trainer.grad_scaler.get_scale() == 8.0


# ---------------------------------------------------------------------------- what is said


def test_what_a_killed_write_left_is_removed_at_the_next_start(
    tiny_args: Args, tmp_path: Path
) -> None:
    (tmp_path / "output").mkdir()
    leftover = tmp_path / "output" / "model_0000001.pth.partial"
    leftover.write_bytes(b"half")
    trainer = Trainer(setup(tiny_args("fsn_R50.yaml", **RUN)))
    trainer.resume_or_load(resume=True)
    assert not leftover.exists()
    assert leftover.name in (tmp_path / "output" / "log.txt").read_text()


def test_a_checkpoint_without_optimizer_state_is_not_resumed(
    tiny_args: Args, tmp_path: Path
) -> None:
    """Detectron2 v0.6 writes such ones."""
    trainer = Trainer(setup(tiny_args("fsn_R50.yaml", **RUN)))
    old = Checkpointer(trainer.model, str(tmp_path / "output"))
    old.save("model_0000001", trainer={"iteration": 1}, iteration=1)
    with pytest.raises(ValueError, match=r"model_0000001\.pth.*no optimizer state.*MODEL\.WEIGHTS"):
        trainer.resume_or_load(resume=True)


def test_each_process_finds_its_own_loss_normalizer_again(
    tiny_args: Args, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = {**RUN, "SOLVER__MAX_ITER": 1}
    train_net.main(tiny_args("retinanet_R50.yaml", **run))
    path = tmp_path / "output" / "model_final.pth"
    state = load(path)
    ((value,),) = state["loss_normalizers"]
    assert 0 < value < 100  # a moving average that begins with Detectron2's 100
    torch.save({**state, "loss_normalizers": [[7.0], [11.0]]}, path)
    for rank, expected in ((0, 7.0), (1, 11.0), (2, 7.0)):
        trainer = Trainer(setup(tiny_args("retinanet_R50.yaml", **run)))
        trainer.resume_or_load(resume=True)
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        trainer._restore_loss_normalizers(trainer._resumed_from["loss_normalizers"])
        monkeypatch.undo()
        assert trainer.model.loss_normalizer == expected


def test_another_number_of_processes_is_warned_of(tiny_args: Args, tmp_path: Path) -> None:
    train_net.main(tiny_args("fsn_R50.yaml", **{**RUN, "SOLVER__MAX_ITER": 1}))
    path = tmp_path / "output" / "model_final.pth"
    state = load(path)
    torch.save({**state, "random_states": state["random_states"] * 2}, path)
    train_net.main(tiny_args("fsn_R50.yaml", "--resume", **{**RUN, "SOLVER__MAX_ITER": 2}))
    assert "random states of 2 processes, and 1 train now" in (path.parent / "log.txt").read_text()


class Poison(HookBase):
    def after_step(self) -> None:
        if self.trainer.iter == 3:
            next(self.trainer.model.roi_heads.parameters()).data.fill_(float("inf"))


def test_weights_that_are_not_finite_are_not_saved(
    tiny_args: Args, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = Trainer.build_hooks
    monkeypatch.setattr(Trainer, "build_hooks", lambda trainer: [Poison(), *build(trainer)])
    with pytest.raises(FloatingPointError, match=r"roi_heads.*not saved.*model_0000001\.pth"):
        train_net.main(tiny_args("fsn_R50.yaml", **RUN))
    assert (tmp_path / "output" / "last_checkpoint").read_text() == "model_0000001.pth"


class FullDisk(HookBase):
    """Stands for a writer of metrics that finds no space left."""

    def after_step(self) -> None:
        if self.trainer.iter == 3:
            raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_ends_the_training_with_one_line(
    tiny_args: Args, tmp_path: Path, extra_hooks: list[HookBase]
) -> None:
    extra_hooks.append(FullDisk())
    with pytest.raises(SystemExit) as caught:
        train_net.main(tiny_args("fsn_R50.yaml", **RUN))
    line = str(caught.value.code)
    assert line.startswith("error: The disk of OUTPUT_DIR")
    assert str(tmp_path / "output" / "model_0000003.pth") in line
    assert "\n" not in line
