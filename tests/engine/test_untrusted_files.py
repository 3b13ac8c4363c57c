"""Files from elsewhere, given to whatever this project runs: none of them runs code."""

from __future__ import annotations

import contextlib
import os
import pickle
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import train_net
from fsn_d2.engine import Predictor, load_config, setup
from fsn_d2.export import export_and_compare
from fsn_d2.visualization import save_detection_sheet

CONFIG = Path(__file__).parents[2] / "configs" / "fsn_R50.yaml"
Args = Callable[..., Namespace]


class Payload:
    """Unpickled, it makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (self.mark,)


def evil_weights(path: Path, mark: Path) -> Path:
    content = {"model": {"weight": Payload(mark)}, "__author__": "someone"}
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


def train(args: Namespace) -> None:
    train_net.main(args)


def evaluate(args: Namespace) -> None:
    args.eval_only = True
    train_net.main(args)


def export(args: Namespace) -> None:
    args.eval_only = True
    export_and_compare(setup(args), Path(args.output) / "model.ts", 1)


def demo(args: Namespace) -> None:
    Predictor(load_config(args.config_file, args.opts))


def show(args: Namespace) -> None:
    args.eval_only = True
    cfg = setup(args)
    save_detection_sheet(cfg, cfg.DATASETS.TEST[0], Path(args.output) / "detections.png")


@pytest.mark.parametrize("run", [train, evaluate, export, demo, show])
@pytest.mark.parametrize("kind", ["evil.pth", "evil.pkl", "evil.yaml", "base.yaml"])
def test_no_entry_point_runs_what_a_file_asks_for(
    kind: str, run: Callable[[Namespace], None], tiny_args: Args, tmp_path: Path
) -> None:
    mark, path = tmp_path / "mark", tmp_path / kind
    is_weights = kind in ("evil.pth", "evil.pkl")
    args = tiny_args("fsn_R50.yaml", small=True, **({"MODEL__WEIGHTS": path} if is_weights else {}))
    args.output = str(tmp_path)
    if is_weights:
        evil_weights(path, mark)
    else:
        args.config_file = str((evil_config if kind == "evil.yaml" else evil_base)(path, mark))
    with pytest.raises((ValueError, SystemExit)) as caught:
        run(args)
    message = str(caught.value)
    assert ("posix.mkdir" if is_weights else "python/object/apply:os.mkdir") in message
    assert ("evil_base.yaml" if kind == "base.yaml" else kind) in message
    assert not mark.exists()


@pytest.mark.parametrize("kind", ["evil.pth", "evil.pkl"])
def test_resuming_runs_nothing_either(kind: str, tiny_args: Args, tmp_path: Path) -> None:
    mark, output = tmp_path / "mark", tmp_path / "output"
    args = tiny_args("fsn_R50.yaml", "--resume", small=True)
    output.mkdir()
    evil_weights(output / kind, mark)
    (output / "last_checkpoint").write_text(kind)
    with pytest.raises(ValueError, match=r"posix\.mkdir"):
        train(args)
    assert not mark.exists()


def test_start_weights_of_a_backbone_run_nothing_either(tiny_args: Args, tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", tmp_path / "evil.pth"
    evil_weights(path, mark)
    args = tiny_args("fsn_Lite0_digits.yaml", MODEL__TIMM__PRETRAINED=path, DATASETS__CLASSES=[])
    with pytest.raises(ValueError, match=r"posix\.mkdir"):
        train(args)
    assert not mark.exists()


@pytest.mark.parametrize("flags", [(), ("--eval-only",)])
def test_proposals_run_nothing_either(flags: tuple, tiny_args: Args, tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", tmp_path / "evil.pkl"
    evil_weights(path, mark)
    proposals = {f"DATASETS__PROPOSAL_FILES_{split}": (str(path),) for split in ("TRAIN", "TEST")}
    args = tiny_args("fsn_R50.yaml", *flags, small=True, MODEL__LOAD_PROPOSALS=True, **proposals)
    with pytest.raises(SystemExit, match=r"evil\.pkl was not loaded: it asks for posix\.mkdir"):
        train(args)
    assert not mark.exists()


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
