"""The command for new data, from a set on disk to a training."""

from __future__ import annotations

import json
import runpy
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import reduce
from operator import getitem
from pathlib import Path

import pytest
import torch
from detectron2.engine import default_argument_parser
from PIL import Image

import train_net
from fsn_d2.engine import load_config

TOOL = Path(__file__).parents[2] / "tools" / "new_data.py"


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def new_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Runs the tool; returns what it printed."""

    def run(*arguments: str, opts: Sequence[str] = ()) -> str:
        output = ["--output", str(tmp_path / "my.yaml")]
        given = [*output, *arguments] if "--" in opts else [*arguments, *output]
        monkeypatch.setattr(sys, "argv", ["new_data.py", *given, *opts])
        runpy.run_path(str(TOOL), run_name="__main__")
        return capsys.readouterr().out

    return run


def last_line(new_data: Callable[..., str], *arguments: str, opts: Sequence[str] = ()) -> str:
    """The error's line."""
    with pytest.raises(SystemExit) as raised:
        new_data(*arguments, opts=opts)
    return str(raised.value)


def test_from_a_set_to_a_training(
    new_data: Callable[..., str],
    coco_spec: Callable[..., str],
    tiny_opts: Callable[..., list[str]],
    tmp_path: Path,
) -> None:
    sets = coco_spec(3, name="train"), coco_spec(3, name="test")
    sheet = tmp_path / "samples.png"
    text = new_data("--train", sets[0], "--test", sets[1], "--sheet", str(sheet))
    assert f"Training set {sets[0]}\n  3 images, 6 boxes, 3 classes" in text
    assert "in a training and a test set, byte for byte: 3" in text  # the sets are alike
    config = tmp_path / "my.yaml"
    assert text.splitlines()[-1] == f"Next: python train_net.py --config-file {config}"
    assert Image.open(sheet).width > 1000
    changed = load_config(str(config))
    assert tuple(changed.DATASETS.TRAIN) == sets[:1]
    shrink = tiny_opts(OUTPUT_DIR=tmp_path / "out", DATASETS__CLASSES=changed.DATASETS.CLASSES)
    args: Namespace = default_argument_parser().parse_args(["--config-file", str(config), *shrink])
    assert "bbox" in train_net.main(args)


def test_a_part_can_be_split_off(
    new_data: Callable[..., str], coco_spec: Callable[..., str], tmp_path: Path
) -> None:
    spec = coco_spec(2, images=5)
    text = new_data("--train", spec, "--test-fraction", "0.4")
    assert "Split: 3 images to train on" in text and "Split: 2 images to test on" in text
    cfg = load_config(str(tmp_path / "my.yaml"))
    (train_set,), (test_set,) = cfg.DATASETS.TRAIN, cfg.DATASETS.TEST
    folder = spec.rpartition(":")[2]
    assert train_set == f"coco://{tmp_path}/my_train.json:{folder}"
    assert test_set == f"coco://{tmp_path}/my_test.json:{folder}"
    assert len(json.loads((tmp_path / "my_test.json").read_text())["images"]) == 2


def test_without_a_test_set_it_says_how_to_get_one(
    new_data: Callable[..., str], coco_spec: Callable[..., str], tmp_path: Path
) -> None:
    assert "--test-fraction 0.2 splits off" in new_data("--train", coco_spec(2))
    cfg = load_config(str(tmp_path / "my.yaml"))
    assert not cfg.DATASETS.TEST and cfg.TEST.EVAL_PERIOD == 0


def test_the_order_of_the_classes_can_be_given(
    new_data: Callable[..., str], coco_spec: Callable[..., str], tmp_path: Path
) -> None:
    names = ["class01", "class00", "class02"]
    new_data("--train", coco_spec(3), "--classes", *names)
    assert names == load_config(str(tmp_path / "my.yaml")).DATASETS.CLASSES


@pytest.fixture
def linked(coco_spec: Callable[..., str], tmp_path: Path) -> str:
    """A set whose images are links to files elsewhere."""
    path, _, images = coco_spec(2, images=5).removeprefix("coco://").rpartition(":")
    (tmp_path / "links").mkdir()
    for image in Path(images).glob("*.png"):
        (tmp_path / "links" / image.name).symlink_to(image)
    return f"coco://{path}:{tmp_path / 'links'}"


def test_keys_are_read_by_and_written(
    new_data: Callable[..., str], linked: str, tmp_path: Path
) -> None:
    assert "DATASETS.ALLOW_OUTSIDE True takes them" in last_line(new_data, "--train", linked)
    keys = {
        "DATASETS.ALLOW_OUTSIDE": True,
        "SOLVER.MAX_ITER": 7,  # suggested too
        "MODEL.ANCHOR_GENERATOR.ANGLES": [[-90, 0]],
        "INPUT.CROP.TYPE": "absolute",
        "SOLVER.STEPS": (3, 5),
    }
    opts = [str(item) for pair in keys.items() for item in pair]
    text = new_data("--train", linked, "--test-fraction", "0.4", opts=opts)
    assert "Split: 3 images to train on" in text
    cfg = load_config(str(tmp_path / "my.yaml"))
    for key, value in keys.items():
        assert reduce(getitem, key.split("."), cfg) == value, key
    assert cfg.SOLVER.CHECKPOINT_PERIOD > 7  # the other suggestions do not follow
    new_data("--test-fraction", "0.4", "--overwrite", "--train", linked, opts=["--", *opts])


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["DATASETS.TEST", "()"], "DATASETS.TEST is given by --test, not as a key"),
        (["DATASETS.ALLOW_OUTSIED", "True"], "Non-existent key: DATASETS.ALLOW_OUTSIED"),
        (["DATASETS.ALLOW_OUTSIDE"], "Override list has odd length"),
    ],
)
def test_keys_that_cannot_be_set(
    new_data: Callable[..., str], linked: str, tmp_path: Path, opts: list[str], message: str
) -> None:
    text = last_line(new_data, "--train", linked, opts=opts)
    assert text.startswith("error: ") and message in text and len(text.splitlines()) == 1
    assert not (tmp_path / "my.yaml").exists()


def test_broken_data_gets_a_report_and_no_config(
    new_data: Callable[..., str], coco_spec: Callable[..., str], tmp_path: Path
) -> None:
    spec = coco_spec(2)
    path = Path(spec.removeprefix("coco://").rpartition(":")[0])
    data = json.loads(path.read_text())
    for annotation in data["annotations"]:
        annotation["bbox"] = None
    path.write_text(json.dumps(data))
    text = last_line(new_data, "--train", spec)
    assert text.startswith("error: The data has 6 problems")
    assert not (tmp_path / "my.yaml").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--train", "coco_2017_train"], "'coco_2017_train' is no data set of your own; use 'coco"),
        (["--train", "coco://a.json"], "lacks a part"),
        (["--train", "voc://nowhere:x"], "nowhere does not exist"),
        (["--train", "voc://a:b", "--sheet", "x.pdf"], r"--sheet x.pdf: give a name"),
        (["--train", "voc://a:b", "--test", "voc://a:b", "--test-fraction", "0.1"], "needs no --t"),
        (["--train", "SET", "--test-fraction", "2"], "--test-fraction is 2.0, expected more than"),
        (["--train", "SET", "--classes", "class00"], "unknown class 'class01'"),
    ],
)
def test_errors_are_one_line(
    new_data: Callable[..., str], coco_spec: Callable[..., str], arguments: list[str], message: str
) -> None:
    spec = coco_spec(2)
    text = last_line(new_data, *(spec if a == "SET" else a for a in arguments))
    assert text.startswith("error: ") and message in text
    assert len(text.splitlines()) == 1 or "problems" in text


def test_a_config_is_not_overwritten_unasked(
    new_data: Callable[..., str], coco_spec: Callable[..., str], tmp_path: Path
) -> None:
    spec = coco_spec(2)
    (tmp_path / "my.yaml").write_text("mine")
    assert "exists: name another --output, or add --overwrite" in last_line(
        new_data, "--train", spec
    )
    assert (tmp_path / "my.yaml").read_text() == "mine"
    new_data("--train", spec, "--overwrite")
    assert (tmp_path / "my.yaml").read_text() != "mine"


def test_a_picture_is_not_overwritten_unasked(
    new_data: Callable[..., str], coco_spec: Callable[..., str], tmp_path: Path
) -> None:
    sheet = tmp_path / "photograph.png"
    sheet.write_text("mine")
    arguments = ["--train", coco_spec(2), "--sheet", str(sheet)]
    assert f"{sheet} exists: name another --sheet, or add --overwrite" in last_line(
        new_data, *arguments
    )
    assert sheet.read_text() == "mine"


def test_a_split_without_a_box_to_train_on_is_said(
    new_data: Callable[..., str], coco_spec: Callable[..., str], tmp_path: Path
) -> None:
    spec = coco_spec(1, images=2)
    path = Path(spec.removeprefix("coco://").rpartition(":")[0])
    content, said = json.loads(path.read_text()), []
    for boxed in (1, 2):  # one of them comes into the test set
        annotations = [a for a in content["annotations"] if a["image_id"] == boxed]
        path.write_text(json.dumps({**content, "annotations": annotations}))
        try:
            said.append(new_data("--train", spec, "--test-fraction", "0.5", "--overwrite"))
        except SystemExit as error:
            said.append(str(error))
    assert sum("has a box to train on" in text for text in said) == 1


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_part_does_not_overwrite_a_file_unasked(
    new_data: Callable[..., str], coco_spec: Callable[..., str], tmp_path: Path, part: str
) -> None:
    split = ["--train", coco_spec(2, images=5), "--test-fraction", "0.4"]
    path = tmp_path / f"my_{part}.json"
    path.write_text("mine")
    assert f"{path} exists: name another" in last_line(new_data, *split)
    assert path.read_text() == "mine"
    assert [each.name for each in tmp_path.glob("my*")] == [path.name]
    new_data(*split, "--overwrite")
    assert path.read_text() != "mine"


@pytest.mark.parametrize("linked", [False, True])
def test_a_set_is_not_replaced_by_its_part(
    new_data: Callable[..., str], coco_spec: Callable[..., str], tmp_path: Path, linked: bool
) -> None:
    path, _, images = coco_spec(2, images=5).removeprefix("coco://").rpartition(":")
    mine = tmp_path / "my_train.json"
    if linked:
        mine.symlink_to(path)
    else:
        mine.write_text(Path(path).read_text())
    before, name = mine.read_text(), path if linked else mine
    spec = f"coco://{name}:{images}"
    text = last_line(new_data, "--train", spec, "--test-fraction", "0.4", "--overwrite")
    assert f"{mine} would be replaced, and '{spec}' reads it: name another --output" in text
    assert mine.read_text() == before and len(json.loads(before)["images"]) == 5
