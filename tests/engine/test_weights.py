"""Loading weights, and what is said when they are not there."""

from __future__ import annotations

import re
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathManager
from torch import nn

from fsn_d2.checkpoint import Checkpointer
from fsn_d2.engine import load_weights
from fsn_d2.engine.weights import resume_or_load

R50 = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, *args: object, **kwargs: object) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr(PathManager, "get_local_path", refuse)


def filled(value: float) -> nn.Module:
    model = nn.Linear(2, 1)
    nn.init.constant_(model.weight, value)
    return model


def saved(folder: Path, value: float) -> str:
    DetectionCheckpointer(filled(value), str(folder)).save("weights")
    return str(folder / "weights.pth")


def test_weights_are_loaded(tmp_path: Path) -> None:
    model = filled(0.0)
    load_weights(model, saved(tmp_path, 3.0))
    assert model.weight.tolist() == [[3.0, 3.0]]


def test_no_weights_leave_the_model_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    model = filled(5.0)
    load_weights(model, "")
    assert model.weight.tolist() == [[5.0, 5.0]]
    assert "MODEL.WEIGHTS is empty" in caplog.text


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(2, 5), r"2 of its 2 tensors.*weight has \(1, 2\), expected \(5, 2\)"),
        (nn.Sequential(nn.Linear(2, 1)), r"2 of its 2 .*0\.weight is absent, expected \(1, 2\)"),
    ],
)
def test_weights_of_another_model_are_refused_where_it_is_used(
    model: nn.Module, message: str, tmp_path: Path
) -> None:
    path = saved(tmp_path, 3.0)
    with pytest.raises(ValueError, match=f"{re.escape(path)} does not fit the model: {message}"):
        load_weights(model, path)
    with pytest.raises(ValueError, match="does not fit the model"):
        resume_or_load(Checkpointer(model, str(tmp_path)), "", resume=True)
    resume_or_load(Checkpointer(model), path, resume=False)  # a training starts from what fits


def test_a_model_may_leave_weights_and_counters_out(tmp_path: Path) -> None:
    whole = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    nn.init.constant_(whole[0].weight, 3.0)
    state = {k: v for k, v in whole.state_dict().items() if not k.endswith("batches_tracked")}
    torch.save({"model": {**state, "another.weight": torch.zeros(1)}}, tmp_path / "w.pth")
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    load_weights(model, str(tmp_path / "w.pth"))
    assert model[0].weight.unique().tolist() == [3.0]


def test_a_missing_file_is_named_with_its_full_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"MODEL\.WEIGHTS") as caught:
        load_weights(filled(0.0), "models/absent.pth")
    assert str(tmp_path / "models" / "absent.pth") in str(caught.value)


@pytest.mark.usefixtures("offline")
def test_what_cannot_be_downloaded_is_named_with_the_reason_and_the_address() -> None:
    with pytest.raises(FileNotFoundError, match=r"MODEL\.WEIGHTS") as caught:
        load_weights(filled(0.0), R50)
    message = str(caught.value)
    assert R50 in message
    assert "no route to host" in message
    address = "https://dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/MSRA/R-50.pkl"
    assert address in message


@pytest.mark.usefixtures("offline")
def test_other_addresses_that_cannot_be_downloaded_are_named_too() -> None:
    with pytest.raises(FileNotFoundError, match=re.escape("https://example.org/w.pth")):
        load_weights(filled(0.0), "https://example.org/w.pth")


def test_detectron2_finds_a_file_at_the_place_the_message_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    weights = "detectron2://folder/of_this_test.pth"
    with monkeypatch.context() as patch:
        patch.setattr(PathManager, "get_local_path", lambda *a, **k: 1 / 0)
        with pytest.raises(FileNotFoundError) as caught:
            load_weights(filled(0.0), weights)
    place = Path(re.search(rf"{re.escape(str(tmp_path))}\S*\.pth", str(caught.value)).group())
    place.parent.mkdir(parents=True)
    torch.save({"model": filled(7.0).state_dict()}, place)
    model = filled(0.0)
    load_weights(model, weights)
    assert model.weight.tolist() == [[7.0, 7.0]]


def test_resuming_prefers_the_last_checkpoint_and_ignores_the_weights(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    saved(run, 4.0)
    model = filled(0.0)
    checkpointer = DetectionCheckpointer(model, str(run))
    resume_or_load(checkpointer, str(tmp_path / "absent.pth"), resume=True)
    assert model.weight.tolist() == [[4.0, 4.0]]
    with pytest.raises(FileNotFoundError, match=r"absent\.pth"):
        resume_or_load(checkpointer, str(tmp_path / "absent.pth"), resume=False)


def test_a_last_checkpoint_that_was_removed_is_named_with_what_to_do(tmp_path: Path) -> None:
    checkpointer = Checkpointer(nn.Linear(2, 2), str(tmp_path))
    checkpointer.save("model_0000009")
    (tmp_path / "model_0000009.pth").unlink()
    with pytest.raises(FileNotFoundError, match=r"--resume: .*model_0000009\.pth does not exist"):
        resume_or_load(checkpointer, "", resume=True)


def test_processes_that_see_different_checkpoints_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on several machines without a folder in common, where only one has written any."""
    saved(tmp_path, 4.0)
    checkpointer = Checkpointer(filled(0.0), str(tmp_path))
    seen = ["model.pth", ""]
    monkeypatch.setattr("fsn_d2.engine.weights.comm.all_gather", lambda own: [own, seen[1]])
    with pytest.raises(ValueError, match=r"different last checkpoints .*: .*\.pth, none\. Give a"):
        resume_or_load(checkpointer, "", resume=True)
    resume_or_load(checkpointer, "", resume=False)  # a new training needs no folder in common
    seen[1] = Path(checkpointer.get_checkpoint_file()).name
    resume_or_load(checkpointer, "", resume=True)


def test_the_query_of_detectron2s_main_matches_names_by_their_ends(tmp_path: Path) -> None:
    path = tmp_path / "of_other_code.pth"
    torch.save({"model": filled(3.0).state_dict()}, path)
    model = nn.Sequential(OrderedDict(inside=filled(0.0)))
    with pytest.raises(ValueError, match=r"inside\.weight is absent"):  # the file has "weight"
        load_weights(model, str(path))
    load_weights(model, f"{path}?matching_heuristics=True")
    assert model.inside.weight.tolist() == [[3.0, 3.0]]
    with pytest.raises(FileNotFoundError, match=r"absent\.pth does not exist"):
        load_weights(model, f"{tmp_path}/absent.pth?matching_heuristics=True")


def test_resuming_without_a_checkpoint_loads_the_weights(tmp_path: Path) -> None:
    model = filled(0.0)
    checkpointer = DetectionCheckpointer(model, str(tmp_path / "empty"))
    resume_or_load(checkpointer, saved(tmp_path, 6.0), resume=True)
    assert model.weight.tolist() == [[6.0, 6.0]]
