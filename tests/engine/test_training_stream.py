"""The stream of training batches: what is in it, and that it can go on anywhere."""

from __future__ import annotations

import gc
import random
import sys
from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, build_detection_train_loader
from detectron2.utils import comm
from torch.utils.data import IterableDataset

from fsn_d2.engine.memory import resident_memory_mib
from fsn_d2.engine.random_state import random_state
from fsn_d2.engine.training_stream import (
    SeededSamples,
    build_training_stream,
    grouped_batches,
)

SIZES = [(80, 64), (64, 80), (64, 64), (90, 60), (50, 70), (100, 40), (30, 90)]  # width, height
NAME = "training_stream_test"


def record(index: int) -> dict[str, Any]:
    width, height = SIZES[index]
    category = 0 if index == 6 else 1  # a rare class
    box = {"bbox": [0, 0, 9, 9], "bbox_mode": 0, "category_id": category}
    return {"image_id": index, "width": width, "height": height, "annotations": [box]}


@pytest.fixture
def records() -> Iterator[list[dict[str, Any]]]:
    """The training set, to be changed by a test."""
    content = [record(i) for i in range(len(SIZES))]
    DatasetCatalog.register(NAME, lambda: content)
    yield content
    DatasetCatalog.remove(NAME)


@pytest.fixture
def cfg(small_cfg: Callable[..., CfgNode], records: list) -> Callable[..., CfgNode]:
    """A config whose training set is the records above."""

    def build(**changes: Any) -> CfgNode:
        given = {"SOLVER__IMS_PER_BATCH": 3, "SEED": 11, **changes}
        return small_cfg(DATASETS__TRAIN=(NAME,), **given)

    return build


def augmented(sample: dict[str, Any]) -> dict[str, Any]:
    """Stands for a mapper: draws from every generator."""
    drawn = (np.random.rand(), random.random(), torch.rand(1).item())
    return {"image_id": sample["image_id"], "drawn": drawn} | {
        key: sample[key] for key in ("width", "height")
    }


def take(stream: Any, count: int) -> list:
    return list(islice(iter(stream), count))


def ids(batches: list) -> list[list[int]]:
    return [[sample["image_id"] for sample in batch] for batch in batches]


# ---------------------------------------------------------------------------- what is in it


@pytest.mark.parametrize("grouping", [True, False])
@pytest.mark.parametrize("sampler", ["TrainingSampler", "RepeatFactorTrainingSampler"])
def test_its_batches_are_those_of_detectron2_without_workers(
    sampler: str, grouping: bool, cfg: Callable[..., CfgNode]
) -> None:
    config = cfg(
        DATALOADER__ASPECT_RATIO_GROUPING=grouping,
        DATALOADER__SAMPLER_TRAIN=sampler,
        DATALOADER__REPEAT_THRESHOLD=0.5,
    )
    stream = build_training_stream(config, augmented)
    chosen = stream._build_sampler(11)
    assert type(chosen).__name__ == sampler
    theirs = build_detection_train_loader(config, mapper=augmented, sampler=chosen)
    found = ids(take(stream, 40))
    assert found == ids(take(theirs, 40))
    assert len({i for batch in found for i in batch}) == len(SIZES)


def test_batches_are_grouped_as_they_fill_up() -> None:
    places = [(0, 2), (1, 0), (2, 1), (3, 1), (4, 0), (5, 0), (6, 2)]
    expected = [[(0, 2), (2, 1)], [(1, 0), (4, 0)], [(3, 1), (6, 2)]]
    assert list(grouped_batches(places, 2, [8, 7, 7])) == expected
    assert list(grouped_batches(places, 3, None)) == [places[:3], places[3:6]]


def test_a_seed_gives_the_same_stream_and_another_seed_another(
    cfg: Callable[..., CfgNode],
) -> None:
    def batches(seed: int) -> list:
        return take(build_training_stream(cfg(SEED=seed), augmented), 10)

    assert batches(1) == batches(1)
    assert ids(batches(1)) != ids(batches(2))
    assert batches(1)[0][0]["drawn"] != batches(2)[0][0]["drawn"]


def test_without_a_seed_a_random_one_is_drawn_and_kept(cfg: Callable[..., CfgNode]) -> None:
    first, second = (build_training_stream(cfg(SEED=-1), augmented) for _ in range(2))
    assert first.state_dict()["seed"] != second.state_dict()["seed"]
    expected = take(first, 12)
    second.load_state_dict({**first.state_dict(), "position": 5})
    assert take(second, 7) == expected[5:]


@pytest.mark.parametrize("grouping", [True, False])
def test_workers_do_not_change_the_batches(grouping: bool, cfg: Callable[..., CfgNode]) -> None:
    found = [
        take(
            build_training_stream(
                cfg(DATALOADER__NUM_WORKERS=workers, DATALOADER__ASPECT_RATIO_GROUPING=grouping),
                augmented,
            ),
            12,
        )
        for workers in (0, 1, 3)
    ]
    assert found[0] == found[1] == found[2]


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked, memory is read from /proc")
def test_what_a_worker_shares_with_its_parent_stays_shared(cfg: Callable[..., CfgNode]) -> None:
    """It was forked with; a collection in the parent leaves it alone, and can collect it later."""
    objects = [[number] for number in range(10**6)]
    stream = build_training_stream(cfg(DATALOADER__NUM_WORKERS=1), augmented)
    next(iter(stream))
    before = resident_memory_mib()
    gc.collect()
    assert resident_memory_mib() - before < sys.getsizeof(objects[0]) * len(objects) / 2**20 / 4
    stream.close()
    assert gc.get_freeze_count() == 0


def test_an_image_is_augmented_differently_each_time(cfg: Callable[..., CfgNode]) -> None:
    batches = take(build_training_stream(cfg(), augmented), 40)
    drawn = [number for batch in batches for sample in batch for number in sample["drawn"]]
    assert len(set(drawn)) == len(drawn) == 360


def test_loading_leaves_the_random_numbers_of_training_alone(cfg: Callable[..., CfgNode]) -> None:
    stream = build_training_stream(cfg(), augmented)
    before = random_state()
    take(stream, 3)
    after = random_state()
    assert before["numpy"] == after["numpy"]
    assert before["python"] == after["python"]
    assert before["torch"].equal(after["torch"])


# ---------------------------------------------------------------------------- going on


@pytest.mark.parametrize("workers", [0, 2])
def test_it_goes_on_from_any_position(workers: int, cfg: Callable[..., CfgNode]) -> None:
    config = cfg(DATALOADER__NUM_WORKERS=workers)
    whole = take(build_training_stream(config, augmented), 15)
    for position in (0, 1, 2, 7, 14):
        stream = build_training_stream(config, augmented)
        taken = take(stream, position)
        state = stream.state_dict()  # workers have loaded more by now
        assert state == {"seed": 11, "position": position, "records": 7}
        resumed = build_training_stream(cfg(), augmented)
        resumed.load_state_dict(state)
        assert taken + take(resumed, 15 - position) == whole


def test_a_set_of_another_size_is_warned_of(
    cfg: Callable[..., CfgNode], records: list, caplog: pytest.LogCaptureFixture
) -> None:
    state = build_training_stream(cfg(), augmented).state_dict()
    build_training_stream(cfg(), augmented).load_state_dict(state)
    del state["records"]  # of an earlier version
    build_training_stream(cfg(), augmented).load_state_dict(state)
    assert not caplog.records
    build_training_stream(cfg(), augmented).load_state_dict({**state, "records": 9})
    assert "had 9 images, and there are 7 now" in caplog.text


def test_what_was_passed_before_is_not_loaded(cfg: Callable[..., CfgNode]) -> None:
    loaded = []

    def mapper(sample: dict[str, Any]) -> dict[str, Any]:
        loaded.append(sample["image_id"])
        return sample

    stream = build_training_stream(cfg(), mapper)
    stream.load_state_dict({"seed": 11, "position": 1000})
    (batch,) = take(stream, 1)
    assert loaded == ids([batch])[0]


def test_nothing_is_loaded_before_the_first_batch_is_asked_for(
    cfg: Callable[..., CfgNode],
) -> None:
    """Detectron2 v0.6 calls `iter` when it builds the trainer, before a checkpoint is loaded."""
    expected = take(build_training_stream(cfg(), augmented), 9)
    stream = build_training_stream(cfg(), augmented)
    batches = iter(stream)
    stream.load_state_dict({"seed": 11, "position": 8})
    assert next(batches) == expected[8]


# ---------------------------------------------------------------------------- several processes


def test_processes_share_one_stream_and_a_place_has_its_random_numbers_in_all(
    cfg: Callable[..., CfgNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    def samples(batch_size: int, count: int) -> list:
        config = cfg(SOLVER__IMS_PER_BATCH=batch_size, DATALOADER__ASPECT_RATIO_GROUPING=False)
        batches = take(build_training_stream(config, augmented), count)
        return [sample for batch in batches for sample in batch]

    monkeypatch.setattr(comm, "shared_random_seed", lambda: 5)
    alone = samples(1, 24)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        assert samples(4, 6) == alone[rank::2]


def test_a_batch_that_cannot_be_divided_among_the_processes_is_refused(
    cfg: Callable[..., CfgNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match=r"SOLVER\.IMS_PER_BATCH.* 2, got 3"):
        build_training_stream(cfg(), augmented)


# ---------------------------------------------------------------------------- broken data


@pytest.mark.parametrize("workers", [0, 2])
def test_another_image_replaces_one_that_cannot_be_read(
    workers: int, cfg: Callable[..., CfgNode]
) -> None:
    def mapper(sample: dict[str, Any]) -> dict[str, Any] | None:
        return None if sample["image_id"] in (0, 4) else augmented(sample)

    config = cfg(DATALOADER__NUM_WORKERS=workers)
    planned = ids(take(build_training_stream(config, augmented), 30))
    batches = take(build_training_stream(config, mapper), 30)
    found = ids(batches)
    replacements = []
    for expected, image in zip(chain(*planned), chain(*found), strict=True):
        if expected in (0, 4):
            replacements.append(image)
        else:
            assert image == expected
    assert set(replacements) == {1, 2, 3, 5, 6}
    resumed = build_training_stream(cfg(), mapper)
    resumed.load_state_dict({"seed": 11, "position": 20})
    assert take(resumed, 10) == batches[20:]


def test_a_set_of_which_nothing_can_be_read_is_said() -> None:
    samples = SeededSamples([record(i) for i in range(3)], lambda sample: None, 0)
    with pytest.raises(OSError, match=r"DATASETS\.TRAIN"):
        samples[(0, 1)]


def test_grouping_needs_the_sizes_of_all_images(cfg: Callable[..., CfgNode], records: list) -> None:
    del records[1]["width"]
    with pytest.raises(ValueError, match=r"ASPECT_RATIO_GROUPING.*'width'"):
        build_training_stream(cfg(), augmented)
    stream = build_training_stream(cfg(DATALOADER__ASPECT_RATIO_GROUPING=False), lambda s: s)
    assert len(take(stream, 1)[0]) == 3


class Endless(IterableDataset):
    def __iter__(self) -> Any:
        return iter(int, 1)


def test_a_set_without_indices_is_refused(
    cfg: Callable[..., CfgNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        build_detection_train_loader, "from_config", lambda *a, **k: {"dataset": Endless()}
    )
    with pytest.raises(ValueError, match=r"build_train_loader"):
        build_training_stream(cfg(), augmented)
