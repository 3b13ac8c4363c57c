"""The folder in which the documentation's commands run: what a reader has after `make demo`.

That is a copy of the checkout, the model of the quick start, and what the pages take to be the
reader's own: COCO where Detectron2 looks for it, a set in COCO and in VOC layout, pictures, a film,
weights from elsewhere. Everything is tiny.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from PIL import Image

from ..data.small_sets import write_voc
from .markdown import ROOT

WIDTH, HEIGHT = 64, 48  # pixels
IMAGES = 4  # of each set
OWN_CLASSES = ("ball", "cup", "rock")
NOT_COPIED = shutil.ignore_patterns(
    ".*", "__pycache__", "*.egg-info", "build", "dist", "output", "datasets"
)


def make_workspace(folder: Path, quick_start_options: list[str]) -> Path:
    """Makes a new folder whose command lines find this Python and the copied package."""
    shutil.copytree(ROOT, folder, ignore=NOT_COPIED)
    if (ROOT.parent / "shared").is_dir():
        (folder.parent / "shared").symlink_to(ROOT.parent / "shared")
    _write_coco(folder / "datasets" / "coco")
    _write_own_sets(folder / "data")
    torch.save({"model": {"weight": torch.ones(2, 3)}}, folder / "theirs.pth")
    quick_start = [sys.executable, "tools/demo_quickstart.py", *quick_start_options]
    check(subprocess.run(quick_start, **in_workspace(folder)))
    _write_pictures(folder)
    return folder


def in_workspace(folder: Path) -> dict:
    """Arguments of subprocess.run."""
    environment = {key: value for key, value in os.environ.items() if "DATASETS" not in key}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    environment |= {"PYTHONPATH": str(folder), "CUDA_VISIBLE_DEVICES": ""}
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return {"cwd": folder, "env": environment, **output}


def check(result: subprocess.CompletedProcess[str]) -> None:
    assert result.returncode == 0, f"{result.args}\nended with {result.returncode}:\n" + "\n".join(
        result.stdout.splitlines()[-40:]
    )


def _write_coco(folder: Path) -> None:
    things = {each["id"]: each["name"] for each in COCO_CATEGORIES if each["isthing"]}
    for number, part in enumerate(("train2017", "val2017")):
        annotations = folder / "annotations" / f"instances_{part}.json"
        _write_coco_set(annotations, folder / part, things, seed=number)


def _write_own_sets(folder: Path) -> None:
    names = dict(enumerate(OWN_CLASSES, start=1))
    for number, part in enumerate(("train", "val")):
        _write_coco_set(folder / f"{part}.json", folder / "images", names, seed=number)
    for part in ("trainval", "test"):
        boxes = [(name, (2, 2, 20, 24)) for name in OWN_CLASSES]
        write_voc(folder / "cells", part, {f"{part}{i}": boxes for i in range(IMAGES)})


def _write_coco_set(path: Path, images: Path, names: dict[int, str], seed: int) -> None:
    """Noise with a box of every class in every image."""
    rng = np.random.default_rng(seed)
    size = {"width": WIDTH, "height": HEIGHT}
    entries = [{"id": i, "file_name": f"{path.stem}{i}.png", **size} for i in range(IMAGES)]
    images.mkdir(parents=True, exist_ok=True)
    for entry in entries:
        pixels = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / entry["file_name"])
    box = {"bbox": [8, 8, 30, 20], "area": 600, "iscrowd": 0}
    pairs = [(entry["id"], category) for entry in entries for category in names]
    annotations = [
        {"id": number, "image_id": image, "category_id": category, **box}
        for number, (image, category) in enumerate(pairs, start=1)
    ]
    categories = [{"id": number, "name": name} for number, name in names.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"images": entries, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content))


def _write_pictures(folder: Path) -> None:
    """Photographs and a film, of the digits that the quick start made."""
    pictures = sorted((folder / "datasets" / "digits" / "digits_test").iterdir())[:IMAGES]
    (folder / "photos").mkdir()
    for picture in pictures:
        shutil.copy(picture, folder / "photos")
    shutil.copy(pictures[0], folder / "photo.jpg")
    frames = [cv2.imread(str(picture)) for picture in pictures]
    code, size = cv2.VideoWriter.fourcc(*"mp4v"), frames[0].shape[1::-1]
    film = cv2.VideoWriter(str(folder / "film.mp4"), code, 5.0, size)
    for frame in frames:
        film.write(frame)
    film.release()
