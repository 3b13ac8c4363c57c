"""A loss that is infinite or not a number: found before it reaches a weight, its images named.
And weights that became so nevertheless."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from fvcore.nn.precise_bn import get_bn_modules
from torch import Tensor, nn

from ..checkpoint import Checkpointer
from .loss_normalizers import loss_normalizers, set_loss_normalizers

__all__ = [
    "REACTIONS",
    "BatchSkipped",
    "NonFiniteLoss",
    "refuses_numbers",
    "require_finite_weights",
]

REACTIONS = ("stop", "skip")
# What Detectron2's Boxes.clip ("Box tensor contains infinite or NaN!") and fvcore's IoU losses
# ("bad box: x1 larger than x2") say when they assert: no coder of boxes gives others that are bad.
NOT_NUMBERS = ("NaN", "bad box")


class BatchSkipped(Exception):
    """A batch had a loss that is not finite and is to be left out; says which."""


class NonFiniteLoss(HookBase):
    """Looks at the losses of every training step, in all processes alike.

    The trainer takes its step inside `guarding`; between steps the model is left as it is, so that
    it can be copied.

    Detectron2 refuses boxes that are not finite inside the forward pass, before there are losses:
    what it raises in training mode counts as a loss that is not a number.

    "stop" raises FloatingPointError, which names the parts of the loss, the images and the last
    good checkpoint. "skip" raises `BatchSkipped`, for the trainer to go on with the next batch:
    weights, optimizer, running statistics of norms and loss normalizers stay as they were. The
    count goes to the metrics as ``skipped_batches`` and into checkpoints. Where the weights are the
    reason, no batch would help, and it stops too.

    Args:
        reaction: "stop" or "skip" (SOLVER.NONFINITE).
        checkpointer: asked for its last checkpoint.

    Raises:
        ValueError: another reaction.
    """

    def __init__(self, reaction: str, checkpointer: Checkpointer) -> None:
        if reaction not in REACTIONS:
            raise ValueError(f"SOLVER.NONFINITE: expected one of {REACTIONS}, got {reaction!r}.")
        self._skips = reaction == "skip"
        self._checkpointer = checkpointer
        self._skipped = 0
        self._statistics: list[Tensor] = []
        self._normalizers: list[float | None] = []
        self._refusal = ""  # what the model said in the running forward pass

    @contextmanager
    def guarding(self) -> Iterator[None]:
        """Looks at what the trainer's model computes inside it."""
        model = self.trainer.model
        own = {"forward": vars(model)["forward"]} if "forward" in vars(model) else {}
        self._forward = model.forward
        vars(model)["forward"] = self._guarded  # goes before the class's method
        handles = [model.register_forward_hook(self._check)]
        if self._skips:
            handles.append(model.register_forward_pre_hook(self._keep_statistics))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            del vars(model)["forward"]
            vars(model).update(own)

    def after_step(self) -> None:
        if self._skips:
            self.trainer.storage.put_scalar("skipped_batches", self._skipped, smoothing_hint=False)

    def state_dict(self) -> dict[str, int]:
        return {"skipped": self._skipped}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._skipped = state["skipped"]

    def _keep_statistics(self, model: nn.Module, inputs: tuple[Any, ...]) -> None:
        if _trains(model):
            self._statistics = [buffer.clone() for buffer in _running_statistics(model)]
            self._normalizers = loss_normalizers(model)

    def _guarded(self, *inputs: Any, **named: Any) -> Any:
        """The model's forward pass, which hands over a loss that is not a number where it refuses.

        Raised from here, the error would end this process alone and leave the others waiting.
        """
        self._refusal = ""
        try:
            return self._forward(*inputs, **named)
        except (FloatingPointError, AssertionError) as error:
            if not (refuses_numbers(error) and self.trainer.model.training):
                raise
            self._refusal = str(error)
            return {"refused": torch.tensor(torch.nan)}

    def _check(self, model: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if not _trains(model):
            return
        losses = output if isinstance(output, dict) else {"total_loss": output}
        finite = bool(torch.isfinite(sum(loss.detach().sum() for loss in losses.values())))
        if not all(comm.all_gather(finite)):
            self._react(model, "" if finite else self._describe(losses, inputs[0]))

    def _react(self, model: nn.Module, description: str) -> None:
        found = "; ".join(text for text in comm.all_gather(description) if text)
        message = f"Loss is not finite at iteration {self.trainer.iter}: {found}."
        if not self._skips:
            raise FloatingPointError(
                f"{message} {_how_to_go_on(self._checkpointer)} with a lower SOLVER.BASE_LR, look "
                "at the images' annotations, or leave such batches out with SOLVER.NONFINITE skip."
            )
        require_finite_weights(self._checkpointer)
        for buffer, before in zip(_running_statistics(model), self._statistics, strict=True):
            buffer.copy_(before)
        set_loss_normalizers(model, self._normalizers)
        self._skipped += 1
        raise BatchSkipped(f"{message} The batch is skipped, number {self._skipped} so far.")

    def _describe(self, losses: dict[str, Tensor], batch: list[dict[str, Any]]) -> str:
        parts = [
            f"{name} = {loss.detach().sum().item()}"
            for name, loss in losses.items()
            if not torch.isfinite(loss).all()
        ]
        what = f'"{self._refusal}"' if self._refusal else ", ".join(parts)
        images = [str(sample.get("file_name", "without file_name")) for sample in batch]
        return f"{what or 'the sum of all parts'} for {', '.join(images)}"


def refuses_numbers(error: Exception) -> bool:
    """Whether a model in training mode raised it in the place of a loss that is not a number."""
    asserted = isinstance(error, AssertionError) and any(w in str(error) for w in NOT_NUMBERS)
    return isinstance(error, FloatingPointError) or asserted


def require_finite_weights(checkpointer: Checkpointer) -> None:
    """
    Raises:
        FloatingPointError: a weight of the checkpointer's model is infinite or not a number.
    """
    for name, weight in checkpointer.model.named_parameters():
        if not torch.isfinite(weight).all():
            raise FloatingPointError(
                f"Weights are no longer finite, {name} for one, so they are not saved. "
                f"{_how_to_go_on(checkpointer)} with a lower SOLVER.BASE_LR, or clip gradients "
                "(SOLVER.CLIP_GRADIENTS)."
            )


def _how_to_go_on(checkpointer: Checkpointer) -> str:
    if not checkpointer.last_checkpoint:
        return "There is no good checkpoint yet. Start anew"
    return (
        f"Last good checkpoint: {checkpointer.last_checkpoint}. Start from it (MODEL.WEIGHTS, "
        "without --resume, which keeps its learning rate)"
    )


def _trains(model: nn.Module) -> bool:
    """A loss without gradients, as for validation, reaches no weight and is no other process's."""
    return model.training and torch.is_grad_enabled()


def _running_statistics(model: nn.Module) -> Iterator[Tensor]:
    for module in get_bn_modules(model):
        yield from module.buffers(recurse=False)
