"""When a training saves: periodically, after its last iteration, and when it is asked to stop.

A checkpoint is a snapshot between two hooks of one iteration. It is taken before the evaluation,
which may take long or fail; what runs after it is then still pending and is made up for by a
resumed training. Where an evaluation did run, the snapshot is replaced by one taken after it.
"""

from __future__ import annotations

import logging

from detectron2.engine import hooks
from detectron2.utils import comm

from ..checkpoint import Checkpointer
from .interruption import EXIT_CODE, StopSignal
from .loss_normalizers import loss_normalizers
from .nonfinite import require_finite_weights
from .random_state import random_state

__all__ = ["Checkpoint", "CheckpointAfterEvaluation"]

logger = logging.getLogger(__name__)


class Checkpoint(hooks.PeriodicCheckpointer):
    """Saves before the evaluation; ends the training if a stop was requested.

    To be registered in all processes, which save together: every one has random states and loss
    normalizers of its own.

    Args:
        checkpointer: writes in the main process alone.
        period: iterations from one checkpoint to the next.
        eval_period: iterations from one evaluation to the next; 0: only after the last.
        stop: knows whether to stop.
    """

    def __init__(
        self, checkpointer: Checkpointer, period: int, eval_period: int, stop: StopSignal
    ) -> None:
        super().__init__(checkpointer, period)
        self._eval_period = eval_period
        self._stop = stop

    def after_step(self) -> None:
        self._save_or_stop(pending=self._evaluates())

    def _evaluates(self) -> bool:
        """The condition of Detectron2's EvalHook."""
        done = self.trainer.iter + 1
        return self._eval_period > 0 and done % self._eval_period == 0 and done != self.max_iter

    def _save_or_stop(self, *, pending: bool) -> None:
        done = self.trainer.iter + 1
        periodic = done % self.period == 0 or done >= self.max_iter
        stops = any(comm.all_gather(self._stop.requested))
        if periodic or stops:
            require_finite_weights(self.checkpointer)  # so that the last checkpoint is a good one
            state = {
                "random_states": comm.gather(random_state()),
                "loss_normalizers": comm.gather(loss_normalizers(self.checkpointer.model)),
                "hooks_pending": pending,
            }
            if periodic:
                self.step(self.trainer.iter, **state)
            else:
                name = f"{self.file_prefix}_{self.trainer.iter:07d}"
                self.save(name, iteration=self.trainer.iter, **state)
        if stops:
            comm.synchronize()  # a launcher ends the others when the first one ends
            self._say_goodbye()
            raise SystemExit(EXIT_CODE)

    def _say_goodbye(self) -> None:
        logger.warning(
            "Stopped by SIGTERM after iteration %d of %d; saved %s. To go on, give the same "
            "command with --resume.",
            self.trainer.iter + 1,
            self.max_iter,
            self.checkpointer.get_checkpoint_file(),
        )


class CheckpointAfterEvaluation(Checkpoint):
    """Replaces a checkpoint by one that knows the evaluation's outcome. To be the last hook."""

    def after_step(self) -> None:
        if self._evaluates():
            self._save_or_stop(pending=False)

    def after_train(self) -> None:
        """The last evaluation comes here, for a training that a resume may extend."""
        if self.trainer.iter < self.max_iter:
            return  # it did not come to its end
        self.trainer.iter -= 1  # back in the iteration that was evaluated
        self._save_or_stop(pending=False)
        self.trainer.iter += 1
