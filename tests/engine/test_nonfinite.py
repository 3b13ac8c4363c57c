"""Losses that are infinite or not a number: stopping with names, or skipping the batch."""

from __future__ import annotations

import copy
import json
import math
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.engine import HookBase, SimpleTrainer
from detectron2.modeling import GeneralizedRCNN
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

import train_net
from fsn_d2.checkpoint import Checkpointer
from fsn_d2.engine import Trainer
from fsn_d2.engine.nonfinite import REACTIONS, BatchSkipped, NonFiniteLoss
from fsn_d2.engine.watching import ValidationLoss

Args = Callable[..., Namespace]
RUN = {
    "small": True,
    "SOLVER__MAX_ITER": 5,
    "SOLVER__CHECKPOINT_PERIOD": 2,
    "DATASETS__TEST": (),
}
RUNNING_STATISTICS = {"MODEL__RESNETS__NORM": "BN", "MODEL__BACKBONE__FREEZE_AT": 0}


class Spoil(HookBase):
    """Makes a part of the loss not finite in some iterations, and keeps what it saw."""

    def __init__(self, value: float, *iterations: int) -> None:
        self.value, self.iterations = value, iterations
        self.images: dict[int, list[str]] = {}
        self.states: dict[int, Any] = {}

    def before_train(self) -> None:
        self.trainer.model.register_forward_hook(self.spoil)

    def spoil(self, model: nn.Module, inputs: Any, losses: dict[str, Tensor]) -> Any:
        self.images[self.trainer.iter] = [sample["file_name"] for sample in inputs[0]]
        if self.trainer.iter in self.iterations:
            return {**losses, "loss_cls": losses["loss_cls"] * self.value}
        return None

    def before_step(self) -> None:
        self.states[self.trainer.iter] = self.snapshot()

    def after_train(self) -> None:
        self.states[self.trainer.iter] = self.snapshot()

    def snapshot(self) -> list[Tensor]:
        optimizer = self.trainer.optimizer.state.values()
        momentum = [s["momentum_buffer"] for s in optimizer if "momentum_buffer" in s]
        # Dense detectors of Detectron2 keep a number that is in no state_dict.
        normalizer = torch.tensor(getattr(self.trainer.model, "loss_normalizer", 0.0))
        state = self.trainer.model.state_dict().values()
        return [v.clone() for v in [*state, *momentum, normalizer]]


class SpoilFeatures(Spoil):
    """Makes what a part of the model gives infinite, which the boxes made of it inherit."""

    def __init__(self, part: str, *iterations: int) -> None:
        super().__init__(float("inf"), *iterations)
        self.part = part

    def before_train(self) -> None:
        self.trainer.model.register_forward_pre_hook(self.note)
        self.trainer.model.get_submodule(self.part).register_forward_hook(self.spoil_features)

    def note(self, model: nn.Module, inputs: Any) -> None:
        self.images[self.trainer.iter] = [sample["file_name"] for sample in inputs[0]]

    def spoil_features(self, part: nn.Module, inputs: Any, output: Any) -> Any:
        if self.trainer.iter not in self.iterations:
            return None
        if isinstance(output, dict):
            return {name: value * self.value for name, value in output.items()}
        return [value * self.value for value in output]


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[[Spoil], Spoil]:
    """Adds a hook to the training, before all others."""
    build = Trainer.build_hooks

    def add(hook: Spoil) -> Spoil:
        monkeypatch.setattr(Trainer, "build_hooks", lambda trainer: [hook, *build(trainer)])
        return hook

    return add


def equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(map(torch.equal, first, second))


# ---------------------------------------------------------------------------- stop


def test_training_stops_with_the_part_the_images_and_the_last_checkpoint(
    tiny_args: Args, tmp_path: Path, spoil: Callable[[Spoil], Spoil]
) -> None:
    hook = spoil(Spoil(float("inf"), 3))
    with pytest.raises(FloatingPointError) as caught:
        train_net.main(tiny_args("fsn_R50.yaml", **RUN))
    message = str(caught.value)
    assert "iteration 3" in message
    assert "loss_cls = inf" in message
    assert "loss_box_reg" not in message
    assert len(hook.images[3]) == 2
    assert all(image in message for image in hook.images[3])
    assert str(tmp_path / "output" / "model_0000001.pth") in message
    assert "SOLVER.NONFINITE skip" in message
    assert not (tmp_path / "output" / "model_final.pth").exists()


def test_without_a_checkpoint_none_is_named(
    tiny_args: Args, spoil: Callable[[Spoil], Spoil], tmp_path: Path
) -> None:
    (tmp_path / "output").mkdir()
    Checkpointer(nn.Linear(1, 1), str(tmp_path / "output")).save("of_another_training")
    spoil(Spoil(float("nan"), 0))
    with pytest.raises(
        FloatingPointError, match=r"There is no good checkpoint yet\. Start anew with a lower"
    ):
        train_net.main(tiny_args("fsn_R50.yaml", **RUN))


def test_boxes_that_the_model_refuses_stop_it_in_the_same_way(
    tiny_args: Args, tmp_path: Path, spoil: Callable[[Spoil], Spoil]
) -> None:
    """Detectron2's RPN raises before there is a loss, and names neither images nor a checkpoint."""
    hook = spoil(SpoilFeatures("backbone", 3))
    with pytest.raises(FloatingPointError) as caught:
        train_net.main(tiny_args("fsn_R50.yaml", **RUN))
    message = str(caught.value)
    assert message.startswith("Loss is not finite at iteration 3") and "\n" not in message
    assert "Predicted boxes or scores contain Inf/NaN" in message
    assert len(hook.images[3]) == 2
    assert all(image in message for image in hook.images[3])
    assert str(tmp_path / "output" / "model_0000001.pth") in message


# ---------------------------------------------------------------------------- skip


def test_a_skipped_batch_changes_nothing_and_is_counted(
    tiny_args: Args, tmp_path: Path, spoil: Callable[[Spoil], Spoil]
) -> None:
    hook = spoil(Spoil(float("nan"), 1, 3))
    run = {**RUN, **RUNNING_STATISTICS, "SOLVER__NONFINITE": "skip"}
    train_net.main(tiny_args("fsn_R50.yaml", **run))
    changed = [not equal(hook.states[i], hook.states[i + 1]) for i in range(5)]
    assert changed == [True, False, True, False, True]
    lines = (tmp_path / "output" / "metrics.json").read_text().splitlines()
    assert json.loads(lines[-1])["skipped_batches"] == 2
    log = (tmp_path / "output" / "log.txt").read_text()
    assert hook.images[3][0] in log and "number 2 so far" in log


@pytest.mark.parametrize(
    ("config", "part", "changes"),
    [
        ("fsn_R50.yaml", "backbone", {}),
        # Refuse their boxes by an assertion.
        ("cascade_rcnn_R50.yaml", "roi_heads.box_predictor.0", {}),
        ("retinanet_R50.yaml", "backbone", {"MODEL__RETINANET__BBOX_REG_LOSS_TYPE": "giou"}),
        # Refuse none.
        ("retinanet_R50.yaml", "backbone", {}),
        ("fsaf_R50.yaml", "backbone", {"MODEL__FSAF__LOSS": "giou"}),
    ],
)
def test_a_batch_that_the_model_refuses_is_skipped(
    config: str,
    part: str,
    changes: dict[str, Any],
    tiny_args: Args,
    tmp_path: Path,
    spoil: Callable[[Spoil], Spoil],
) -> None:
    hook = spoil(SpoilFeatures(part, 1))
    run = {**RUN, **RUNNING_STATISTICS, "SOLVER__NONFINITE": "skip", "SOLVER__MAX_ITER": 3}
    run.update(changes)
    train_net.main(tiny_args(config, **run))
    changed = [not equal(hook.states[i], hook.states[i + 1]) for i in range(3)]
    assert changed == [True, False, True]
    log = (tmp_path / "output" / "log.txt").read_text()
    assert hook.images[1][0] in log and "number 1 so far" in log


def test_other_errors_of_the_model_stay_what_they_are(
    tiny_args: Args, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*inputs: Any) -> None:
        raise AssertionError("no ground truth")

    monkeypatch.setattr(GeneralizedRCNN, "preprocess_image", fail)
    with pytest.raises(AssertionError, match="no ground truth"):
        train_net.main(tiny_args("fsn_R50.yaml", **RUN, SOLVER__NONFINITE="skip"))


def test_a_validation_loss_that_the_model_refuses_is_not_a_number(
    tiny_args: Args, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse = FloatingPointError("Predicted boxes or scores contain Inf/NaN.")
    forward = GeneralizedRCNN.forward

    def refuse_without_gradients(self: nn.Module, batch: list[dict[str, Any]]) -> Any:
        if self.training and not torch.is_grad_enabled():
            raise refuse
        return forward(self, batch)

    monkeypatch.setattr(GeneralizedRCNN, "forward", refuse_without_gradients)
    run = {key: value for key, value in RUN.items() if key != "DATASETS__TEST"}
    run = {**run, "SOLVER__MAX_ITER": 2, "TEST__EVAL_PERIOD": 1}
    train_net.main(tiny_args("fsn_R50.yaml", **run))
    lines = (tmp_path / "output" / "metrics.json").read_text().splitlines()
    losses = [json.loads(line).get("validation_loss", 0.0) for line in lines]
    assert any(map(math.isnan, losses))


def test_the_count_goes_on_after_a_resume(
    tiny_args: Args, tmp_path: Path, spoil: Callable[[Spoil], Spoil]
) -> None:
    spoil(Spoil(float("inf"), 0, 3))
    skipping = {**RUN, "SOLVER__NONFINITE": "skip"}
    train_net.main(tiny_args("fsn_R50.yaml", **{**skipping, "SOLVER__MAX_ITER": 2}))
    train_net.main(tiny_args("fsn_R50.yaml", "--resume", **skipping))
    lines = (tmp_path / "output" / "metrics.json").read_text().splitlines()
    assert json.loads(lines[-1])["skipped_batches"] == 2


class SpoilWeights(HookBase):
    """As a step of far too high a learning rate does."""

    def after_step(self) -> None:
        if self.trainer.iter == 1:
            next(self.trainer.model.parameters()).data[:] = torch.nan


def test_weights_that_are_no_numbers_are_not_skipped_over(
    tiny_args: Args, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = Trainer.build_hooks
    monkeypatch.setattr(Trainer, "build_hooks", lambda t: [*build(t), SpoilWeights()])
    run = {**RUN, **RUNNING_STATISTICS, "SOLVER__CHECKPOINT_PERIOD": 100}
    with pytest.raises(FloatingPointError, match=r"Weights are no longer finite.*no good checkpo"):
        train_net.main(tiny_args("fsn_R50.yaml", **run, SOLVER__NONFINITE="skip"))


class Averaging(HookBase):
    """Keeps a running average of the weights in a copy of the model, as EMA hooks do."""

    def before_train(self) -> None:
        self.model = self.trainer.model
        self.average = AveragedModel(self.model)

    def before_step(self) -> None:
        self.latest = copy.deepcopy(self.model)

    def after_step(self) -> None:
        self.average.update_parameters(self.model)


@pytest.mark.parametrize("reaction", REACTIONS)
def test_hooks_can_copy_the_model(
    reaction: str, tiny_args: Args, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook, build = Averaging(), Trainer.build_hooks
    monkeypatch.setattr(Trainer, "build_hooks", lambda trainer: [*build(trainer), hook])
    train_net.main(tiny_args("fsn_R50.yaml", **RUN, SOLVER__NONFINITE=reaction))
    assert hook.average.n_averaged == 5
    trained, average = hook.model.state_dict(), hook.average.module.state_dict()
    assert trained.keys() == average.keys()
    assert any(not trained[name].equal(average[name]) for name in trained)
    assert not any("forward" in vars(model) for model in (hook.model, hook.latest))


def test_another_reaction_is_refused(tiny_args: Args) -> None:
    with pytest.raises(SystemExit, match=r"error: SOLVER\.NONFINITE.*'stop', 'skip'.*'ignore'"):
        train_net.main(tiny_args("fsn_R50.yaml", **RUN, SOLVER__NONFINITE="ignore"))


# ---------------------------------------------------------------------------- several processes


class OneLoss(nn.Module):
    """Its loss is not a number for samples that are not; or it refuses them."""

    def __init__(self, refuses: bool) -> None:
        super().__init__()
        self.refuses = refuses
        self.norm = nn.BatchNorm1d(2)
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        values = torch.stack([sample["image"] for sample in batch])
        if self.refuses and not values.isfinite().all():
            self.norm(values)
            raise FloatingPointError("loss = nan in the boxes")
        return {"loss": (self.norm(values) * self.weight).sum(), "fine": self.weight.sum()}


def batches(rank: int) -> Iterator[list[dict[str, Any]]]:
    for number in range(4):
        image = torch.tensor([1.0 + rank, float("nan") if (rank, number) == (1, 2) else number])
        name = f"rank{rank}_{number}.png"
        yield [{"image": image, "file_name": name}, {"image": image + 1, "file_name": "b.png"}]


class Steps(SimpleTrainer):
    def run_step(self) -> None:
        guard = next(hook for hook in self._hooks if isinstance(hook, NonFiniteLoss))
        try:
            with guard.guarding():
                super().run_step()
        except BatchSkipped as skipped:
            self.skipped = (self.iter, str(skipped))


def train_in_parallel(rank: int, folder: str, reaction: str, refuses: bool) -> None:
    torch.set_num_threads(1)  # a forked process cannot use its parent's pool of threads
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    model = DistributedDataParallel(OneLoss(refuses), broadcast_buffers=False)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    trainer = Steps(model, list(batches(rank)), optimizer)
    # Losses without gradients are no matter of all processes: one has none, the other a bad one.
    spoilt = torch.tensor([float("nan"), 1.0])
    looked_at = [[{"image": spoilt}, {"image": spoilt}]] * rank
    trainer.register_hooks(
        [NonFiniteLoss(reaction, Checkpointer(model, folder)), ValidationLoss(2, lambda: looked_at)]
    )
    outcome = {}
    try:
        trainer.train(0, 4)
        outcome = {"model": model.state_dict(), "skipped": trainer.skipped}
    except FloatingPointError as error:
        outcome = {"error": str(error), "iteration": trainer.iter}
    torch.save(outcome, f"{folder}/{rank}.pth")


@pytest.mark.parametrize("reaction", ["stop", "skip"])
@pytest.mark.parametrize("refuses", [False, True])
def test_all_processes_react_when_one_has_such_a_loss(
    reaction: str, refuses: bool, tmp_path: Path
) -> None:
    mp.start_processes(
        train_in_parallel, nprocs=2, args=(str(tmp_path), reaction, refuses), start_method="fork"
    )
    first, second = (torch.load(tmp_path / f"{rank}.pth") for rank in range(2))
    if reaction == "stop":
        assert first["iteration"] == second["iteration"] == 2
        assert first["error"] == second["error"]
        message = first["error"]
    else:
        assert first["skipped"] == second["skipped"]
        assert first["model"]["module.weight"].isfinite().all()
        assert first["model"]["module.weight"].equal(second["model"]["module.weight"])
        assert second["model"]["module.norm.running_mean"].isfinite().all()
        assert second["model"]["module.norm.num_batches_tracked"] == 3
        iteration, message = first["skipped"]
        assert iteration == 2
    assert "rank1_2.png" in message and "loss = nan" in message
    assert "rank0_2.png" not in message and "fine" not in message
