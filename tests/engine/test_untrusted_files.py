"""Files from elsewhere, given to whatever this project runs: none of them runs code."""

from __future__ import annotations

import contextlib
import pickle
import runpy
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from fsn_d2.engine import Predictor, build_trained_model, build_trainer, load_config, setup
from fsn_d2.visualization import save_detection_sheet

from ..checkpoint.pickles import payload, python2_pickle

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "fsn_R50.yaml"
Args = Callable[..., Namespace]
Command = Callable[[str, Path, Sequence[str]], str]

IMAGE, OUTPUT = "image.png", "written"
# Every command that takes a config, and what it needs beside that.
COMMANDS = {
    "train": ["train_net.py"],
    "evaluate": ["train_net.py", "--eval-only"],
    "demo": ["tools/demo.py", "--input", IMAGE, "--output", OUTPUT],
    "explain": ["tools/explain.py", "--output", f"{OUTPUT}.png", "--image", IMAGE],
    "export": ["tools/export_model.py", "--output", f"{OUTPUT}.ts", "--images", "1"],
    "quick start": ["tools/demo_quickstart.py"],
}
WITHOUT_WEIGHTS = {
    "report": ["tools/report.py", "--output", f"{OUTPUT}.html"],
    "levels": ["tools/show_levels.py", "--output", f"{OUTPUT}.png"],
}
# Their config is code by nature; their weights are not.
LAZY = {
    "lazy train": ["tools/lazyconfig_train_net.py"],
    "lazy evaluate": ["tools/lazyconfig_train_net.py", "--eval-only"],
}


def evil_weights(path: Path, mark: Path) -> Path:
    content = {"model": {"weight": payload(mark)}, "__author__": "someone"}
    if path.suffix == ".pth":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    return path


def evil_config(path: Path, mark: Path) -> Path:
    path.write_text(f'_BASE_: {CONFIG}\nSEED: !!python/object/apply:os.mkdir ["{mark}"]\n')
    return path


def evil_base(path: Path, mark: Path) -> Path:
    evil_config(path.with_name("evil_base.yaml"), mark)
    path.write_text("_BASE_: evil_base.yaml\n")
    return path


@pytest.fixture
def error_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs a command in an empty folder that has an image; what it says when it ends with code 1,
    which it has to.
    """
    Image.fromarray(np.full((48, 64, 3), 90, np.uint8)).save(tmp_path / IMAGE)
    monkeypatch.chdir(tmp_path)

    def run(name: str, config: Path | str, opts: Sequence[str]) -> str:
        script, *options = (COMMANDS | WITHOUT_WEIGHTS | LAZY)[name]
        words = [script, "--config-file", str(config), *options, *opts]
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        line = caught.value.code
        assert isinstance(line, str)  # which Python prints, and ends with code 1
        assert line.startswith("error: ") and "\n" not in line
        assert not list(tmp_path.glob(f"{OUTPUT}*"))
        return line

    return run


# ---------------------------------------------------------------------------- weights

WEIGHTS = pytest.mark.parametrize("kind", ["evil.pth", "evil.pkl"])


@WEIGHTS
@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_runs_what_weights_ask_for(
    name: str, kind: str, tiny_args: Args, error_of: Command, tmp_path: Path
) -> None:
    mark, path = tmp_path / "mark", tmp_path / kind
    evil_weights(path, mark)
    args = tiny_args("fsn_R50.yaml", small=True, MODEL__WEIGHTS=path)
    message = error_of(name, args.config_file, args.opts)
    assert kind in message and "posix.mkdir" in message
    assert not mark.exists()


@WEIGHTS
@pytest.mark.parametrize("name", LAZY)
def test_no_lazy_command_runs_what_weights_ask_for(
    name: str, kind: str, tiny_args: Args, error_of: Command, tmp_path: Path
) -> None:
    mark, path = tmp_path / "mark", tmp_path / kind
    evil_weights(path, mark)
    args = tiny_args("fsn_Lite0_digits.yaml")
    (tmp_path / "tiny.yaml").write_text(load_config(args.config_file, args.opts).dump())
    (tmp_path / "tiny.py").write_text(
        "from fsn_d2.lazy import lazy_config\n"
        f"parts = lazy_config({str(tmp_path / 'tiny.yaml')!r})\n"
        "model, dataloader, optimizer, lr_multiplier, train = parts\n"
    )
    message = error_of(name, tmp_path / "tiny.py", [f"train.init_checkpoint={path}"])
    assert kind in message and "posix.mkdir" in message
    assert not mark.exists()


@WEIGHTS
def test_no_picture_of_detections_runs_it_either(
    kind: str, tiny_args: Args, tmp_path: Path
) -> None:
    mark, path = tmp_path / "mark", tmp_path / kind
    evil_weights(path, mark)
    cfg = setup(tiny_args("fsn_R50.yaml", "--eval-only", small=True, MODEL__WEIGHTS=path))
    with pytest.raises(ValueError, match=r"posix\.mkdir"):
        save_detection_sheet(cfg, cfg.DATASETS.TEST[0], tmp_path / "detections.png")
    assert not mark.exists()


@WEIGHTS
def test_resuming_runs_nothing_either(
    kind: str, tiny_args: Args, error_of: Command, tmp_path: Path
) -> None:
    mark, output = tmp_path / "mark", tmp_path / "output"
    args = tiny_args("fsn_R50.yaml", small=True)
    output.mkdir()
    evil_weights(output / kind, mark)
    (output / "last_checkpoint").write_text(kind)
    assert "posix.mkdir" in error_of("train", args.config_file, ["--resume", *args.opts])
    assert not mark.exists()


@WEIGHTS
def test_start_weights_of_a_backbone_run_nothing_either(
    kind: str, tiny_args: Args, error_of: Command, tmp_path: Path
) -> None:
    mark, path = tmp_path / "mark", tmp_path / kind
    evil_weights(path, mark)
    args = tiny_args("fsn_Lite0_digits.yaml", MODEL__TIMM__PRETRAINED=path, DATASETS__CLASSES=[])
    message = error_of("train", args.config_file, args.opts)
    assert "MODEL.TIMM.PRETRAINED" in message and "posix.mkdir" in message
    assert not mark.exists()


# ---------------------------------------------------------------------------- configs, proposals


@pytest.mark.parametrize("kind", ["evil.yaml", "base.yaml"])
@pytest.mark.parametrize("name", COMMANDS | WITHOUT_WEIGHTS)
def test_no_command_runs_what_a_config_asks_for(
    name: str, kind: str, error_of: Command, tmp_path: Path
) -> None:
    mark, path = tmp_path / "mark", tmp_path / kind
    (evil_config if kind == "evil.yaml" else evil_base)(path, mark)
    message = error_of(name, path, ["OUTPUT_DIR", str(tmp_path / "output")])
    assert "python/object/apply:os.mkdir" in message
    assert ("evil_base.yaml" if kind == "base.yaml" else kind) in message
    assert not mark.exists()


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_proposals_run_nothing_either(
    name: str, tiny_args: Args, error_of: Command, tmp_path: Path
) -> None:
    mark, path = tmp_path / "mark", tmp_path / "evil.pkl"
    evil_weights(path, mark)
    proposals = {f"DATASETS__PROPOSAL_FILES_{split}": (str(path),) for split in ("TRAIN", "TEST")}
    args = tiny_args("fsn_R50.yaml", small=True, MODEL__LOAD_PROPOSALS=True, **proposals)
    message = error_of(name, args.config_file, args.opts)
    assert "evil.pkl was not loaded: it asks for posix.mkdir" in message
    assert not mark.exists()


# ---------------------------------------------------------------------------- what is not hostile


def test_a_zoo_pickle_of_python_2_loads(tiny_args: Args, tmp_path: Path) -> None:
    path = tmp_path / "zoo.pkl"
    args = tiny_args("fsn_R50.yaml", small=True)
    rng = np.random.default_rng(0)
    state = build_trained_model(setup(args)).state_dict()
    arrays = {name: rng.random(value.shape, "f4") for name, value in state.items()}
    assert len(arrays) > 100
    path.write_bytes(python2_pickle({"model": arrays, "__author__": "someone"}))
    with pytest.raises(UnicodeDecodeError):
        pickle.loads(path.read_bytes())  # latin1 is needed
    args.opts += ["MODEL.WEIGHTS", str(path)]
    cfg = setup(args)
    # As evaluation and export, training, and the demo load weights.
    for model in (build_trained_model(cfg), build_trainer(cfg).model, Predictor(cfg).model):
        loaded = model.state_dict()
        assert all(np.array_equal(loaded[name], array) for name, array in arrays.items())


@pytest.mark.parametrize("kind", ["evil.pth", "evil.pkl"])
def test_the_payloads_are_live(kind: str, tmp_path: Path) -> None:
    """So that the tests above can fail."""
    mark, path = tmp_path / "mark", tmp_path / kind
    evil_weights(path, mark)
    with contextlib.suppress(ValueError):
        torch.load(path, weights_only=False) if kind == "evil.pth" else pickle.loads(
            path.read_bytes()
        )
    assert mark.exists()


def test_the_config_is_live(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    yaml.unsafe_load(evil_config(tmp_path / "evil.yaml", mark).read_text())
    assert mark.exists()
