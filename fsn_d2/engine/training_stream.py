"""The training data as an endless stream of batches that can go on anywhere.

Detectron2 deals the stream out to the data loader's workers and groups by aspect ratio what comes
back, so that its batches depend on the number of workers, and a position in its stream includes
images waiting in a buffer. Here its samplers choose, indices are grouped, and torch's DataLoader
loads finished batches of indices in their order: batch number n follows from the seed alone, and
the batches before it need not be loaded.
"""

from __future__ import annotations

import gc
import logging
import random
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, build_detection_train_loader
from detectron2.data.build import trivial_batch_collator
from detectron2.utils import comm
from detectron2.utils.serialize import PicklableWrapper
from torch.utils.data import DataLoader, Dataset, IterableDataset

from .interruption import obey_parent_alone
from .random_state import own_random_numbers

__all__ = ["SeededSamples", "TrainingStream", "build_training_stream", "grouped_batches"]

Place = tuple[int, int]  # place in the stream of all processes, index in the data set
Batch = list[dict[str, Any]]
Mapper = Callable[[dict[str, Any]], dict[str, Any] | None]

logger = logging.getLogger(__name__)


def grouped_batches(
    places: Iterable[Place], batch_size: int, groups: Sequence[int] | None
) -> Iterator[list[Place]]:
    """Batches of places of one group each, in the order in which they fill up.

    Args:
        places: what the sampler chose.
        batch_size: places per batch.
        groups: group of every index of the data set; None: one group.
    """
    waiting: dict[int, list[Place]] = {}
    for place in places:
        group = groups[place[1]] if groups else 0
        batch = waiting.setdefault(group, [])
        batch.append(place)
        if len(batch) == batch_size:
            yield waiting.pop(group)


class SeededSamples(Dataset):
    """Mapped samples by place; the random numbers of a sample follow from (seed, place).

    For a sample that the mapper gives up (None), others are tried in a random order.
    """

    def __init__(self, dataset: Any, mapper: Mapper, seed: int) -> None:
        self._dataset = dataset
        self._mapper = PicklableWrapper(mapper)  # for workers that are not forked
        self._seed = seed

    def __getitem__(self, place: Place) -> dict[str, Any]:
        number, index = place
        with own_random_numbers(self._seed, number):
            for candidate in chain([index], self._replacements()):
                sample = self._mapper(self._dataset[candidate])
                if sample is not None:
                    return sample
        raise OSError("No image of DATASETS.TRAIN can be read: the mapper gave up all of them.")

    def _replacements(self) -> Iterator[int]:
        count = len(self._dataset)
        yield from random.sample(range(count), count)


@contextmanager
def present_objects_uncollected() -> Iterator[None]:
    """Has the garbage collector pass over the objects that exist now.

    It writes to every object that it visits, which gives this process and each forked worker a
    copy of its own of the memory that they share, some hundred iterations later.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class TrainingStream:
    """Endless batches for one training process, from a position on.

    Args:
        dataset: records by index.
        mapper: turns a record into a model input, or into None if it cannot.
        build_sampler: gives, for a seed, the sampler of this process: an endless stream of indices.
        batch_size: images per batch of this process.
        num_workers: processes that load; they do not change the batches.
        groups: group of every index, for batches of one group each; None: no grouping.
        seed: what everything random follows from, >= 0, the same in all processes.
    """

    def __init__(
        self,
        dataset: Any,
        mapper: Mapper,
        build_sampler: Callable[[int], Iterable[int]],
        *,
        batch_size: int,
        num_workers: int,
        groups: Sequence[int] | None,
        seed: int,
    ) -> None:
        self._dataset = dataset
        self._mapper = mapper
        self._build_sampler = build_sampler
        self._batch_size = batch_size
        self._num_workers = num_workers
        self._groups = groups
        self._seed = seed
        self._position = 0
        self._running: Generator[Batch, None, None] | None = None

    def __iter__(self) -> Iterator[Batch]:
        self._running = self._load()
        return self._running

    def close(self) -> None:
        """Ends the workers; without it they may hold up the end of the process."""
        if self._running is not None:
            self._running.close()

    def _load(self) -> Generator[Batch, None, None]:
        loader = DataLoader(
            SeededSamples(self._dataset, self._mapper, self._seed),
            batch_sampler=islice(self._batches(), self._position, None),
            num_workers=self._num_workers,
            collate_fn=trivial_batch_collator,
            worker_init_fn=obey_parent_alone,
            generator=torch.Generator(),  # else starting it would draw from the training's
        )
        with present_objects_uncollected():
            for batch in loader:
                self._position += 1
                yield batch

    def _batches(self) -> Iterator[list[Place]]:
        sampler = self._build_sampler(self._seed)
        rank, processes = comm.get_rank(), comm.get_world_size()
        places = ((rank + processes * i, index) for i, index in enumerate(sampler))
        return grouped_batches(places, self._batch_size, self._groups)

    def state_dict(self) -> dict[str, int]:
        """The seed, the number of batches that were handed out, and that of records."""
        records = len(self._dataset)
        return {"seed": self._seed, "position": self._position, "records": records}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on from a position; to be called before the next `iter`."""
        self._seed, self._position = state["seed"], state["position"]
        before, now = state.get("records"), len(self._dataset)
        if before not in (None, now):
            logger.warning(
                "The checkpoint's training set had %d images, and there are %d now: the run goes "
                "on with others than it would have had.",
                before,
                now,
            )


def build_training_stream(cfg: CfgNode, mapper: Mapper) -> TrainingStream:
    """The stream of DATASETS.TRAIN, by Detectron2's keys (DATALOADER, SOLVER.IMS_PER_BATCH, SEED).

    Args:
        cfg: the config. Without a SEED a random one is drawn, and kept in checkpoints.
        mapper: as Detectron2's `DatasetMapper`.

    Raises:
        ValueError: the batch cannot be divided among the processes, records lack what grouping
            needs, or the data set has no length.
    """
    dataset = _from_config(cfg, mapper, sampler=object())["dataset"]
    if isinstance(dataset, IterableDataset):
        raise ValueError(
            f"DATASETS.TRAIN {cfg.DATASETS.TRAIN}: expected records by index, got an iterable data "
            "set, which cannot be resumed. Override Trainer.build_train_loader for it."
        )

    def build_sampler(seed: int) -> Iterable[int]:
        seeded = cfg.clone()
        seeded.defrost()
        seeded.SEED = seed  # read by the samplers of Detectron2 after v0.6
        with own_random_numbers(seed):  # drawn from by the others
            return _from_config(seeded, mapper, dataset=dataset)["sampler"]

    return TrainingStream(
        DatasetFromList(dataset, copy=False) if isinstance(dataset, list) else dataset,
        mapper,
        build_sampler,
        batch_size=_batch_size(cfg),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        groups=_orientations(dataset) if cfg.DATALOADER.ASPECT_RATIO_GROUPING else None,
        seed=cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed(),
    )


def _from_config(cfg: CfgNode, mapper: Mapper, **parts: Any) -> dict[str, Any]:
    return build_detection_train_loader.from_config(cfg, mapper=mapper, **parts)


def _batch_size(cfg: CfgNode) -> int:
    total, processes = cfg.SOLVER.IMS_PER_BATCH, comm.get_world_size()
    if total < 1 or total % processes:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH: expected a multiple of the number of training processes, "
            f"{processes}, got {total}."
        )
    return total // processes


def _orientations(dataset: Iterable[dict[str, Any]]) -> list[int]:
    """0 for wide images, 1 for the others, as Detectron2 groups them."""
    try:
        return [0 if record["width"] > record["height"] else 1 for record in dataset]
    except KeyError as error:
        raise ValueError(
            f"DATALOADER.ASPECT_RATIO_GROUPING: a record of DATASETS.TRAIN has no {error}. Add "
            "width and height to every record, or set the key to False."
        ) from error
