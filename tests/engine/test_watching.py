"""What a training is watched by: it sees what it should, and changes nothing of the training."""

from __future__ import annotations

import json
import math
import pickle
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, Metadata
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils.events import EventStorage, get_event_storage
from torch import nn

import train_net
from fsn_d2.engine import Trainer, build_trainer, setup
from fsn_d2.engine.watching import (
    EarlyStop,
    EarlyStopping,
    Metric,
    SampleImages,
    ValidationLoss,
    _with_ground_truth,
)
from fsn_d2.visualization.curves import read_series, save_curves

Args = Callable[..., Namespace]
WATCHED = {"TEST__EVAL_PERIOD": 2, "SOLVER__MAX_ITER": 4, "SOLVER__STEPS": "()"}


def lines_of(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]


@pytest.fixture
def evaluations(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[float]], None]:
    """Lets Trainer.test say these APs one after the other."""

    def use(values: list[float]) -> None:
        left = iter(values)
        said = classmethod(lambda cls, cfg, model: {"bbox": {"AP": next(left)}})
        monkeypatch.setattr(Trainer, "test", said)

    return use


# ---------------------------------------------------------------------------- a whole training


def test_a_watched_training_leaves_losses_pictures_and_curves(
    tiny_args: Args, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images: list[str] = []
    put_image = EventStorage.put_image
    monkeypatch.setattr(
        EventStorage,
        "put_image",
        lambda self, name, image: (images.append(name), put_image(self, name, image)),
    )
    train_net.main(tiny_args("fsn_R50.yaml", small=True, **WATCHED))
    output = tmp_path / "output"
    losses = [line["validation_loss"] for line in lines_of(output) if "validation_loss" in line]
    assert losses and all(math.isfinite(loss) and loss > 0 for loss in losses)
    assert images and set(images) <= {f"detections/{number}" for number in range(4)}
    assert cv2.imread(str(output / "curves.png")).std() > 5


@pytest.mark.parametrize("config", ["fsn_R50.yaml", "retinanet_R50.yaml", "fsaf_R50_joint.yaml"])
def test_watching_changes_nothing_of_the_training(
    config: str, tiny_args: Args, tmp_path: Path
) -> None:
    weights = []
    for watch in ({"WATCH__LOSS_IMAGES": 0, "WATCH__SAMPLES": 0}, {}):
        output = tmp_path / f"run{len(weights)}"
        changes = {**WATCHED, **watch, "OUTPUT_DIR": output, "SEED": 3}
        train_net.main(tiny_args(config, small=True, **changes))
        weights.append(torch.load(output / "model_final.pth", weights_only=False)["model"])
    # Two RetinaNets that are trained in one process can differ in rounding.
    bound = 0.0 if config == "fsn_R50.yaml" else 1e-7
    first, second = weights
    assert all(torch.allclose(first[k], second[k], rtol=0, atol=bound) for k in first)


class Covering(nn.Module):
    """Finds one object in the left half, in the pixels that the sample asks for."""

    def forward(self, batch: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        _, height, width = batch[0]["image"].shape
        size = batch[0].get("height", height), batch[0].get("width", width)
        found = Instances(size, scores=torch.ones(1), pred_classes=torch.zeros(1, dtype=int))
        found.pred_boxes = Boxes(torch.tensor([[0.0, 0.0, size[1] / 2, size[0]]]))
        found.pred_masks = torch.zeros(1, *size, dtype=torch.bool)
        found.pred_masks[..., : size[1] // 2] = True
        return [{"instances": found}]


def test_masks_are_drawn_on_the_image_that_the_model_saw() -> None:
    sample = {"image": torch.full((3, 60, 80), 90), "height": 120, "width": 160}
    images: dict[str, Any] = {}
    hook = SampleImages(1, lambda: [[sample]], 1, Metadata(thing_classes=["a"]), "BGR")
    storage = SimpleNamespace(put_image=images.__setitem__)
    hook.trainer = SimpleNamespace(  # type: ignore[assignment]
        iter=0, max_iter=10, storage=storage, model=Covering()
    )
    hook.after_step()
    drawn = images["detections/0"]
    assert drawn.shape == (3, 60, 80)
    coloured = np.abs(drawn.astype(int) - 90).sum(0) > 10
    assert coloured[20:, :38].mean() > 0.9 and coloured[:, 44:].mean() < 0.1


@pytest.mark.parametrize(
    ("image_format", "shown"), [("BGR", (60, 30, 200)), ("RGB", (200, 30, 60))]
)
def test_so_many_samples_are_drawn_in_the_colours_of_their_format(
    image_format: str, shown: tuple[int, int, int]
) -> None:
    pixels = torch.tensor([200, 30, 60])[:, None, None].expand(3, 60, 80)
    images: dict[str, Any] = {}
    batches = [[{"image": pixels}] * 2, [{"image": pixels}] * 3]
    hook = SampleImages(1, lambda: batches, 3, Metadata(thing_classes=["a"]), image_format)
    storage = SimpleNamespace(put_image=images.__setitem__)
    hook.trainer = SimpleNamespace(  # type: ignore[assignment]
        iter=0, max_iter=10, storage=storage, model=Covering()
    )
    hook.after_step()
    assert list(images) == [f"detections/{number}" for number in range(3)]
    for drawn in images.values():  # the object is in the left half
        assert tuple(drawn[:, 30, 70].tolist()) == shown


def test_the_loss_is_of_so_many_images_at_test_size(tiny_args: Args) -> None:
    cfg = setup(
        tiny_args("fsn_R50.yaml", small=True, WATCH__LOSS_IMAGES=2, INPUT__MIN_SIZE_TEST=48)
    )
    records = DatasetCatalog.get(cfg.DATASETS.TEST[0])
    assert len(records) == 3
    samples = [sample for (sample,) in _with_ground_truth(cfg)]
    assert [sample["file_name"] for sample in samples] == [r["file_name"] for r in records[:2]]
    assert [tuple(sample["image"].shape) for sample in samples] == [(3, 48, 60)] * 2
    assert all(len(sample["instances"]) for sample in samples)


def test_a_training_on_precomputed_proposals_can_be_watched(
    tiny_args: Args, tmp_path: Path
) -> None:
    content = {
        "ids": [1, 2, 3],
        "boxes": [np.array([[0, 0, 40, 40], [5, 5, 60, 50]], "f4")] * 3,
        "objectness_logits": [np.array([2.0, 1.0], "f4")] * 3,
        "bbox_mode": int(BoxMode.XYXY_ABS),
    }
    (tmp_path / "proposals.pkl").write_bytes(pickle.dumps(content))
    changes = {
        **WATCHED,
        "MODEL__LOAD_PROPOSALS": True,
        "MODEL__PROPOSAL_GENERATOR__NAME": "PrecomputedProposals",
        "DATASETS__PROPOSAL_FILES_TRAIN": (str(tmp_path / "proposals.pkl"),),
        "DATASETS__PROPOSAL_FILES_TEST": (str(tmp_path / "proposals.pkl"),),
    }
    train_net.main(tiny_args("fsn_R50.yaml", small=True, **changes))
    lines = lines_of(tmp_path / "output")
    assert any("validation_loss" in line for line in lines)


def test_a_training_of_proposals_alone_can_be_watched(tiny_args: Args, tmp_path: Path) -> None:
    changes = {
        **WATCHED,
        "MODEL__META_ARCHITECTURE": "ProposalNetwork",
        "WATCH__METRIC": "box_proposals/AR@100",
    }
    train_net.main(tiny_args("fsn_R50.yaml", small=True, **changes))
    assert (tmp_path / "output" / "model_best.pth").is_file()


# ---------------------------------------------------------------------------- the best model


def test_the_best_model_is_kept_and_is_no_checkpoint_to_resume_from(
    tiny_args: Args, tmp_path: Path, evaluations
) -> None:
    evaluations([30.0, 20.0, 10.0])
    changes = {**WATCHED, "SOLVER__MAX_ITER": 6, "SOLVER__CHECKPOINT_PERIOD": 100}
    train_net.main(tiny_args("fsn_R50.yaml", small=True, **changes))
    output = tmp_path / "output"
    best = torch.load(output / "model_best.pth", weights_only=False)
    assert best["iteration"] == 1  # the second
    assert (output / "last_checkpoint").read_text() == "model_final.pth"


def test_the_best_score_survives_a_resume(tiny_args: Args, tmp_path: Path, evaluations) -> None:
    evaluations([30.0, 5.0])
    changes = {**WATCHED, "SOLVER__CHECKPOINT_PERIOD": 2}
    args = tiny_args("fsn_R50.yaml", small=True, **changes)
    train_net.main(args)
    evaluations([20.0, 15.0, 15.0])
    longer = {**changes, "SOLVER__MAX_ITER": 8}
    train_net.main(tiny_args("fsn_R50.yaml", "--resume", small=True, **longer))
    best = torch.load(tmp_path / "output" / "model_best.pth", weights_only=False)
    assert best["iteration"] == 1


def test_the_score_of_the_last_evaluation_survives_too(
    tiny_args: Args, tmp_path: Path, evaluations
) -> None:
    evaluations([50.0, 55.0])
    train_net.main(tiny_args("fsn_R50.yaml", small=True, **WATCHED))
    final = torch.load(tmp_path / "output" / "model_final.pth", weights_only=False)
    assert final["iteration"] == 3
    evaluations([52.0, 51.0])
    longer = {**WATCHED, "SOLVER__MAX_ITER": 8}
    train_net.main(tiny_args("fsn_R50.yaml", "--resume", small=True, **longer))
    best = torch.load(tmp_path / "output" / "model_best.pth", weights_only=False)
    assert best["iteration"] == 4  # as Detectron2 counts the one after the last step


def said_by(monkeypatch: pytest.MonkeyPatch, *results: dict[str, Any]) -> None:
    """Lets Trainer.test say these results one after the other."""
    left = iter(results)
    monkeypatch.setattr(Trainer, "test", classmethod(lambda cls, cfg, model: next(left)))


@pytest.fixture
def two_sets(coco_spec: Callable[..., str]) -> tuple[str, str]:
    """Their names, which are paths."""
    return coco_spec(3, name="a"), coco_spec(3, name="b")


@pytest.mark.parametrize(("metric", "best"), [("bbox/AP", 1), ("{second}/bbox/AP", 3), (None, 1)])
def test_of_several_sets_the_first_is_watched_or_the_one_that_is_named(
    metric: str | None,
    best: int,
    two_sets: tuple[str, str],
    tiny_args: Args,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def results(*values: float) -> dict[str, Any]:
        found = ({"bbox": {"AP50": 99.0, "AP": value}} for value in values)
        return dict(zip(two_sets, found, strict=True))

    said_by(monkeypatch, results(20.0, 10.0), results(10.0, 20.0), results(5.0, 5.0))
    watched = {} if metric is None else {"WATCH__METRIC": metric.format(second=two_sets[1])}
    changes = {**WATCHED, **watched, "SOLVER__MAX_ITER": 100, "WATCH__PATIENCE": 1}
    train_net.main(tiny_args("fsn_R50.yaml", small=True, DATASETS__TEST=two_sets, **changes))
    output = tmp_path / "output"
    assert torch.load(output / "model_best.pth", weights_only=False)["iteration"] == best
    assert torch.load(output / "model_final.pth", weights_only=False)["iteration"] == best + 2


def test_a_metric_that_is_not_there_ends_the_training_at_the_first_evaluation(
    tiny_args: Args, monkeypatch: pytest.MonkeyPatch
) -> None:
    said_by(monkeypatch, {"bbox": {"AP": 3.0, "AP50": 4.0}})
    args = tiny_args("fsn_R50.yaml", small=True, **WATCHED, WATCH__METRIC="bbox/ap")
    with pytest.raises(ValueError, match=r"WATCH\.METRIC: .*bbox/AP, bbox/AP50, got 'bbox/ap'"):
        train_net.main(args)


NO_DETECTION = {"bbox": {"AP": math.nan, "AP50": math.nan}}


def test_a_metric_that_the_first_set_has_only_later_is_not_the_second_sets(
    two_sets: tuple[str, str],
    tiny_args: Args,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Masks have no metrics in a set without a detection."""

    def results(*values: float | None) -> dict[str, Any]:
        found = (
            NO_DETECTION if value is None else {"bbox": {"AP": 1.0}, "segm": {"AP": value}}
            for value in values
        )
        return dict(zip(two_sets, found, strict=True))

    said_by(monkeypatch, results(None, 50.0), results(10.0, 40.0), results(20.0, 30.0), {})
    changes = {**WATCHED, "SOLVER__MAX_ITER": 8, "WATCH__METRIC": "segm/AP"}
    train_net.main(tiny_args("fsn_R50.yaml", small=True, DATASETS__TEST=two_sets, **changes))
    best = torch.load(tmp_path / "output" / "model_best.pth", weights_only=False)
    assert best["iteration"] == 5


@pytest.mark.parametrize("results", [({}, {"a": {}, "b": {}}), (NO_DETECTION, NO_DETECTION)])
def test_evaluations_without_results_end_no_training(
    results: tuple[dict[str, Any], ...],
    tiny_args: Args,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As of a set without annotations, of all processes but the main one, and before there is any
    detection, when masks have no metrics yet.
    """
    said_by(monkeypatch, *results)
    watch = {"WATCH__METRIC": "segm/AP", "WATCH__PATIENCE": 1}
    train_net.main(tiny_args("fsn_R50.yaml", small=True, **WATCHED, **watch))
    assert (tmp_path / "output" / "model_final.pth").is_file()
    assert not (tmp_path / "output" / "model_best.pth").exists()


# ---------------------------------------------------------------------------- ending early


def test_training_ends_when_it_no_longer_gets_better(
    tiny_args: Args, tmp_path: Path, evaluations
) -> None:
    evaluations([10.0, 20.0, 20.0, 19.0, 99.0])
    changes = {**WATCHED, "SOLVER__MAX_ITER": 100, "WATCH__PATIENCE": 2}
    results = train_net.main(tiny_args("fsn_R50.yaml", small=True, **changes))
    assert results["bbox"]["AP"] == 19.0
    output = tmp_path / "output"
    assert torch.load(output / "model_final.pth", weights_only=False)["iteration"] == 7
    assert torch.load(output / "model_best.pth", weights_only=False)["iteration"] == 3
    assert (output / "curves.png").is_file()


def test_detectron2s_way_to_train_ends_early_too(
    tiny_args: Args, tmp_path: Path, evaluations
) -> None:
    evaluations([10.0, 9.0])
    changes = {**WATCHED, "SOLVER__MAX_ITER": 100, "WATCH__PATIENCE": 1}
    trainer = build_trainer(setup(tiny_args("fsn_R50.yaml", small=True, **changes)))
    trainer.train()
    final = torch.load(tmp_path / "output" / "model_final.pth", weights_only=False)
    assert final["iteration"] == 3 and trainer.last_results["bbox"]["AP"] == 9.0


def early_stopping(patience: int) -> tuple[EarlyStopping, Callable[[float], None]]:
    """The hook, and a function that lets it see an evaluation."""
    hook = EarlyStopping(1, Metric("bbox/AP", "a"), patience)
    latest: dict[str, tuple[float, int]] = {}
    hook.trainer = SimpleNamespace(  # type: ignore[assignment]
        iter=0, max_iter=100, storage=SimpleNamespace(latest=lambda: latest)
    )

    def see(value: float) -> None:
        latest["bbox/AP"] = (value, 0)
        hook.after_step()

    return hook, see


def test_not_a_number_is_no_improvement() -> None:
    hook, see = early_stopping(2)
    for value in (math.nan, math.nan):
        hook.before_step()
        see(value)
    with pytest.raises(EarlyStop, match="bbox/AP was not above -inf in 2 evaluations"):
        hook.before_step()


def test_waiting_goes_on_after_a_resume() -> None:
    hook, see = early_stopping(2)
    see(5.0)
    see(4.0)
    other, see_more = early_stopping(2)
    other.load_state_dict(hook.state_dict())
    other.before_step()
    see_more(4.5)
    with pytest.raises(EarlyStop):
        other.before_step()
    third, _ = early_stopping(2)
    third.load_state_dict(other.state_dict())
    with pytest.raises(EarlyStop, match=r"not above 5\.00 in 2 evaluations"):
        third.before_step()


def test_more_patience_goes_on_and_less_may_end_at_once() -> None:
    hook, see = early_stopping(2)
    for value in (5.0, 4.0, 4.0):
        see(value)
    patient, see_more = early_stopping(3)
    patient.load_state_dict(hook.state_dict())
    patient.before_step()
    see_more(3.0)
    with pytest.raises(EarlyStop, match="in 3 evaluations"):
        patient.before_step()
    hasty, _ = early_stopping(1)
    hasty.load_state_dict(hook.state_dict())
    with pytest.raises(EarlyStop):
        hasty.before_step()


def test_every_process_waits_as_the_main_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others do not know the metric; what they resumed from is the main process's state."""
    main, see = early_stopping(2)
    for value in (5.0, 4.0, 6.0):  # better again
        see(value)
    states = [main.state_dict()]
    monkeypatch.setattr(
        "fsn_d2.engine.watching.comm.all_gather",
        lambda own: [(states[0]["best"], states[0]["waited"]), own],
    )
    other = EarlyStopping(1, Metric("bbox/AP", "a"), 1)
    other.load_state_dict({"best": 5.0, "waited": 1})
    other.trainer = SimpleNamespace(  # type: ignore[assignment]
        iter=0, max_iter=100, storage=SimpleNamespace(latest=dict)
    )
    other.after_step()
    other.before_step()
    assert other.state_dict() == {"best": 6.0, "waited": 0}


# ---------------------------------------------------------------------------- validation loss


def test_a_test_set_without_annotations_has_no_validation_loss(
    tiny_args: Args, coco_spec: Callable[..., str], tmp_path: Path
) -> None:
    spec = coco_spec(3, name="with")
    boxes, _, images = spec.removeprefix("coco://").rpartition(":")
    content = json.loads(Path(boxes).read_text())
    del content["annotations"]
    (tmp_path / "without.json").write_text(json.dumps(content))
    sets = {
        "DATASETS__TRAIN": (spec,),
        "DATASETS__TEST": (f"coco://{tmp_path}/without.json:{images}",),
    }
    train_net.main(tiny_args("fsn_R50.yaml", small=True, **WATCHED, **sets))
    lines = lines_of(tmp_path / "output")
    assert lines and not any("validation_loss" in line for line in lines)


class Counting(nn.Module):
    """Its loss is the sample; its batch statistics would move in training."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(1)

    def forward(self, batch: list[float]) -> dict[str, torch.Tensor]:
        assert self.training and not torch.is_grad_enabled()
        self.norm(torch.rand(4, 1))
        return {"a": torch.tensor(batch[0]), "b": torch.tensor(1.0)}


class Drawing(Counting):
    """Draws in the iterations that Detectron2's models draw in."""

    drawn = 0

    def forward(self, batch: list[float]) -> dict[str, torch.Tensor]:
        self.drawn += get_event_storage().iter % 100 == 0
        return super().forward(batch)


def test_the_validation_loss_draws_no_pictures() -> None:
    model = Drawing()
    hook = ValidationLoss(1, lambda: [[1.0]] * 3)
    with EventStorage(99) as storage:
        hook.trainer = SimpleNamespace(  # type: ignore[assignment]
            iter=99, max_iter=1000, storage=storage, model=model
        )
        hook.after_step()
    assert "validation_loss" in storage.latest() and model.drawn == 0


def test_the_validation_loss_is_the_mean_and_leaves_no_trace() -> None:
    model = Counting()
    model.norm.eval()
    hook = ValidationLoss(2, lambda: [[1.0], [3.0], [8.0]])
    with EventStorage() as storage:
        hook.trainer = SimpleNamespace(  # type: ignore[assignment]
            iter=1, max_iter=10, storage=storage, model=model
        )
        before = torch.get_rng_state(), model.norm.running_mean.clone()
        hook.after_step()
        assert storage.latest()["validation_loss"][0] == pytest.approx(4 + 1)
        hook.trainer.iter = 2
        storage.put_scalar("validation_loss", 0.0, smoothing_hint=False)
        hook.after_step()  # not a time to evaluate
        assert storage.latest()["validation_loss"][0] == 0
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.equal(model.norm.running_mean, before[1])
    assert model.training and not model.norm.training


# ---------------------------------------------------------------------------- curves


def test_curves_are_read_over_resumes_and_cut_lines(tmp_path: Path) -> None:
    lines = [
        {"iteration": 19, "total_loss": 2.0, "lr": 0.1, "note": "text"},
        {"iteration": 39, "total_loss": 1.0},
        {"iteration": 19, "total_loss": 1.5},  # after a resume
        {"iteration": 39, "bbox/AP": 12.0, "bbox/APs": 3.0},
    ]
    path = tmp_path / "metrics.json"
    path.write_text("\n".join(map(json.dumps, lines)) + '\n{"iteration": 59, "tot')
    series = read_series(path)
    assert series["total_loss"] == ([19, 39], [1.5, 1.0])
    assert series["bbox/AP"] == ([39], [12.0]) and "note" not in series
    save_curves(path, tmp_path / "curves.png")
    assert cv2.imread(str(tmp_path / "curves.png")).shape[1] > 1500  # three panels
