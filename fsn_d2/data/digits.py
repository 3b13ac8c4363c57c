"""A small real detection data set for the quick start: handwritten digits on photographs.

scikit-learn ships 1797 scans of handwritten digits (8 x 8, from the UCI optical recognition set)
and two photographs inside its wheel, so the data set needs no download. Each image is a crop of a
photograph with 3 to 8 digits written on it, stretched between 1:3 and 3:1, some of them
overlapping. Train and test share neither a scan nor a part of a photograph. To choose settings
without looking at test there are fit and val, which divide the scans of train between them and lie
on its parts of the photographs. On disk each is an ordinary COCO data set.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.coco import load_coco_json
from iopath.common.file_io import file_lock
from numpy.random import Generator

CLASSES = [str(digit) for digit in range(10)]
SPLITS = ("train", "test")
TUNING_SPLITS = ("fit", "val")
IMAGE_WIDTH, IMAGE_HEIGHT = 320, 240  # pixels

# Scans [0, 1400) train, of which [0, 1120) fit and the rest val; the others test. Every photograph
# is cut at 60 % of its width.
FIRST_VAL_SCAN, FIRST_TEST_SCAN = 1120, 1400
TRAIN_FRACTION_OF_PHOTO = 0.6

DIGITS_PER_IMAGE = (3, 8)  # both included
CROP_WIDTH = (160, 256)  # pixels of the photograph that become IMAGE_WIDTH
INK_SIZE = (24.0, 80.0)  # square root of the box area, pixels
ASPECT_RATIO = (1 / 3, 3.0)  # box height / width
MAX_ANGLE = 12.0  # degrees, either way
MAX_OVERLAP = 0.35  # intersection / smaller box; keeps the IoU of any two boxes below 0.22
STRENGTH = (0.65, 1.0)  # opacity of the ink
DARK_INK, LIGHT_INK = (0.0, 60.0), (195.0, 255.0)  # gray levels
MIN_CONTRAST = 60.0  # gray levels that the ink must add to the spread of what lies under it
VISIBLE = 0.25  # coverage from which a pixel counts as ink

_RECIPE = 1  # raise when the same parameters give other images than before
_MANIFEST = "digits.json"
_UPSCALED = 256  # side of the enlarged scan, pixels
_TRIES_PER_IMAGE = 400


@dataclass(frozen=True)
class Sources:
    """What one split draws from.

    Attributes:
        scans: float32 [S, 8, 8], coverage by ink in 0..1.
        labels: integer [S], the digit each scan shows.
        first_scan: index of ``scans[0]`` in scikit-learn's array.
        photos: file name -> uint8 BGR [H, W, 3], this split's part of the photograph.
        first_columns: file name -> column of the whole photograph at which that part begins.
    """

    scans: np.ndarray
    labels: np.ndarray
    first_scan: int
    photos: dict[str, np.ndarray]
    first_columns: dict[str, int]


@dataclass(frozen=True)
class Digit:
    """A digit placed on an image: ``coverage`` [h, w] in 0..1 with its top left pixel at (x, y)."""

    scan: int
    label: int
    x: int
    y: int
    coverage: np.ndarray

    @property
    def box(self) -> tuple[int, int, int, int]:
        """XYWH in pixels, tight around the visible ink, whether or not other ink covers it."""
        x, y, width, height = tight_box(self.coverage)
        return self.x + x, self.y + y, width, height

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the image that ``coverage`` spans."""
        height, width = self.coverage.shape
        return slice(self.y, self.y + height), slice(self.x, self.x + width)


def build_digits(
    root: Path,
    *,
    num_train: int = 800,
    num_test: int = 200,
    seed: int = 0,
    splits: tuple[str, str] = SPLITS,
) -> dict[str, tuple[Path, Path]]:
    """Write the digits data set below ``root`` unless it is there already.

    The same arguments give the same files, byte for byte, under the same versions of OpenCV and
    scikit-learn. An image depends on ``seed``, its split and its number only, so a larger set
    begins with the smaller one. A set with other arguments found in ``root`` is replaced; files
    that are not this module's are left alone. A build that was interrupted is done again.

    Args:
        root: folder to write to; created when missing.
        num_train: number of training images, at least 1.
        num_test: number of test images, at least 1.
        seed: 0 or more.
        splits: what to train on and what to test on: SPLITS or TUNING_SPLITS.

    Returns:
        For each of the two splits, the path of the COCO json and of the image folder.

    Raises:
        ImportError: the set has to be written and scikit-learn is not installed.
        ValueError: a number is out of range.
        OSError: an image cannot be written.
    """
    _check_at_least("num_train", num_train, 1)
    _check_at_least("num_test", num_test, 1)
    _check_at_least("seed", seed, 0)
    root = Path(root).expanduser()
    counts = dict(zip(splits, (num_train, num_test), strict=True))
    manifest = {"recipe": _RECIPE, "seed": seed, **counts}
    if not _is_complete(root, splits, manifest):
        root.mkdir(parents=True, exist_ok=True)
        with file_lock(str(root / _MANIFEST)):  # several processes may ask at once
            if not _is_complete(root, splits, manifest):
                _build(root, counts, manifest)
    return _paths(root, splits)


def register_digits(root: Path | None = None) -> None:
    """Register "digits_train", "_test", "_fit" and "_val" with Detectron2; nothing is written yet.

    The two that go together are built, with the default arguments of ``build_digits``, when one of
    them is first loaded; fit and val in the folder "tuning" below ``root``. Build them by hand
    before making a ``COCOEvaluator`` ahead of the data loader. Registering again is harmless;
    another ``root`` moves the registration there.

    Args:
        root: folder of the data set; default ``$DETECTRON2_DATASETS/digits``, or
            ``datasets/digits`` where that variable is not set at the time of the call.
    """
    if root is None:
        root = Path(os.getenv("DETECTRON2_DATASETS", "datasets")) / "digits"
    root = Path(root).expanduser()
    for folder, splits in ((root, SPLITS), (root / "tuning", TUNING_SPLITS)):
        for split in splits:
            _register(split, folder, splits)


def _register(split: str, root: Path, splits: tuple[str, str]) -> None:
    name = f"digits_{split}"
    json_file, image_root = _paths(root, splits)[split]
    if name in DatasetCatalog.list():
        if MetadataCatalog.get(name).get("json_file") == str(json_file):
            return
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)

    def load() -> list[dict[str, Any]]:
        build_digits(root, splits=splits)
        return load_coco_json(str(json_file), str(image_root), name)

    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(
        thing_classes=list(CLASSES),
        thing_dataset_id_to_contiguous_id={digit + 1: digit for digit in range(10)},
        evaluator_type="coco",
        json_file=str(json_file),
        image_root=str(image_root),
    )


def load_sources() -> dict[str, Sources]:
    """The scans and photographs of each split.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits, load_sample_images
    except ImportError as error:
        raise ImportError(
            "The digits data set is made from scikit-learn's scans and photographs, and "
            "scikit-learn is not installed. Run: pip install 'fsn_d2[demo]'"
        ) from error
    digits, samples = load_digits(), load_sample_images()
    photos = {
        Path(name).name: cv2.cvtColor(photo, cv2.COLOR_RGB2BGR)
        for name, photo in zip(samples.filenames, samples.images, strict=True)
    }
    scans = (digits.images / 16).astype(np.float32)
    return split_sources(scans, digits.target, photos)


def split_sources(
    scans: np.ndarray, labels: np.ndarray, photos: dict[str, np.ndarray]
) -> dict[str, Sources]:
    """Cut scans by index and photographs at a vertical line, so that the splits share nothing.

    Args:
        scans: float32 [S, 8, 8], 0..1.
        labels: integer [S].
        photos: file name -> uint8 BGR [H, W, 3].
    """
    cuts = {name: int(p.shape[1] * TRAIN_FRACTION_OF_PHOTO) for name, p in photos.items()}
    left = {name: photo[:, : cuts[name]] for name, photo in photos.items()}
    right = {name: photo[:, cuts[name] :] for name, photo in photos.items()}

    def part(first: int, end: int | None, photos: dict[str, np.ndarray], columns: dict) -> Sources:
        return Sources(scans[first:end], labels[first:end], first, photos, columns)

    at_left = dict.fromkeys(photos, 0)
    return {
        "train": part(0, FIRST_TEST_SCAN, left, at_left),
        "test": part(FIRST_TEST_SCAN, None, right, cuts),
        "fit": part(0, FIRST_VAL_SCAN, left, at_left),
        "val": part(FIRST_VAL_SCAN, FIRST_TEST_SCAN, left, at_left),
    }


def draw_image(rng: Generator, sources: Sources) -> tuple[np.ndarray, list[Digit], dict[str, Any]]:
    """One image: uint8 BGR [240, 320, 3], its digits, and where its background comes from."""
    while True:
        image, background = _draw_background(rng, sources)
        count = int(rng.integers(DIGITS_PER_IMAGE[0], DIGITS_PER_IMAGE[1] + 1))
        digits: list[Digit] = []
        for _ in range(_TRIES_PER_IMAGE):
            if len(digits) == count:
                return np.rint(image).astype(np.uint8), digits, background
            digit = _propose_digit(rng, sources)
            if _fits(digit, digits) and _write_ink(rng, image, digit):
                digits.append(digit)


def draw_coverage(scan: np.ndarray, angle: float, width: int, height: int) -> np.ndarray:
    """A scan turned, then stretched so that its ink fills a box.

    Turning comes first: the box of the result keeps its aspect ratio.

    Args:
        scan: float32 [8, 8], 0..1.
        angle: degrees, counter-clockwise.
        width: of the box, pixels.
        height: of the box, pixels.

    Returns:
        float32 [height, width], the share of each pixel that ink covers, 0..1.
    """
    padded = np.pad(scan, 2)  # room for turning
    large = cv2.resize(padded, (_UPSCALED, _UPSCALED), interpolation=cv2.INTER_CUBIC)
    centre = ((_UPSCALED - 1) / 2, (_UPSCALED - 1) / 2)
    turned = cv2.warpAffine(
        large, cv2.getRotationMatrix2D(centre, angle, 1.0), (_UPSCALED, _UPSCALED)
    )
    # A steep ramp about half coverage turns the blurred enlargement into pen strokes; lower, the
    # loops of 6, 8 and 9 fill up, higher, thin strokes break.
    strokes = np.clip((turned - 0.35) / 0.3, 0.0, 1.0)
    x, y, w, h = tight_box(strokes)
    return cv2.resize(strokes[y : y + h, x : x + w], (width, height), interpolation=cv2.INTER_AREA)


def tight_box(coverage: np.ndarray) -> tuple[int, int, int, int]:
    """XYWH of the pixels of ``coverage`` [H, W] that are at least ``VISIBLE``."""
    return cv2.boundingRect((coverage >= VISIBLE).astype(np.uint8))  # type: ignore[return-value]


def _draw_background(rng: Generator, sources: Sources) -> tuple[np.ndarray, dict[str, Any]]:
    name = sorted(sources.photos)[rng.integers(len(sources.photos))]
    photo = sources.photos[name]
    width = int(rng.integers(CROP_WIDTH[0], CROP_WIDTH[1] + 1))
    height = width * IMAGE_HEIGHT // IMAGE_WIDTH
    x = int(rng.integers(photo.shape[1] - width + 1))
    y = int(rng.integers(photo.shape[0] - height + 1))
    flipped = bool(rng.integers(2))
    crop = photo[y : y + height, x : x + width]
    image = cv2.resize(crop, (IMAGE_WIDTH, IMAGE_HEIGHT), interpolation=cv2.INTER_LINEAR)
    if flipped:
        image = image[:, ::-1]
    bbox = [x + sources.first_columns[name], y, width, height]
    return image.astype(np.float32), {"photo": name, "bbox": bbox, "flipped": flipped}


def _propose_digit(rng: Generator, sources: Sources) -> Digit:
    scan = int(rng.integers(len(sources.scans)))
    size = rng.uniform(*INK_SIZE)
    ratio = float(np.exp(rng.uniform(*np.log(ASPECT_RATIO))))
    width, height = round(size / ratio**0.5), round(size * ratio**0.5)
    coverage = draw_coverage(sources.scans[scan], rng.uniform(-MAX_ANGLE, MAX_ANGLE), width, height)
    x = int(rng.integers(IMAGE_WIDTH - width + 1))
    y = int(rng.integers(IMAGE_HEIGHT - height + 1))
    return Digit(scan + sources.first_scan, int(sources.labels[scan]), x, y, coverage)


def _fits(digit: Digit, others: list[Digit]) -> bool:
    """Whether size and ratio survived rounding and no other digit is hidden."""
    _, _, width, height = digit.box
    return (
        ASPECT_RATIO[0] <= height / width <= ASPECT_RATIO[1]
        and INK_SIZE[0] <= (width * height) ** 0.5 <= INK_SIZE[1]
        and all(_overlap(digit.box, other.box) <= MAX_OVERLAP for other in others)
    )


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    """Intersection over the smaller of two XYWH boxes."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0) / min(a[2] * a[3], b[2] * b[3])


def _write_ink(rng: Generator, image: np.ndarray, digit: Digit) -> bool:
    """Blend the digit into ``image`` in place; False, and no change, if it would be unreadable."""
    strength = rng.uniform(*STRENGTH)
    shade = rng.uniform(*(LIGHT_INK if rng.integers(2) else DARK_INK))
    under = image[digit.window]
    gray = under.mean(axis=2)
    if strength * abs(shade - gray.mean()) < MIN_CONTRAST + gray.std():
        return False
    alpha = strength * digit.coverage[:, :, None]
    image[digit.window] = (1 - alpha) * under + alpha * shade
    return True


def _build(root: Path, counts: dict[str, int], manifest: dict[str, int]) -> None:
    """Write everything to a folder inside ``root``, then move it in place, the manifest last."""
    sources = load_sources()
    building = root / ".digits_building"
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir()
    for split, paths in _paths(building, counts).items():
        number = (*SPLITS, *TUNING_SPLITS).index(split)
        seeds = [(manifest["seed"], number, index) for index in range(counts[split])]
        _write_split(*paths, sources[split], seeds)
    (building / _MANIFEST).write_text(json.dumps(manifest))
    _move(building, root, counts)


def _move(building: Path, root: Path, splits: Iterable[str]) -> None:
    (root / _MANIFEST).unlink(missing_ok=True)
    for json_file, image_dir in _paths(root, splits).values():
        shutil.rmtree(image_dir, ignore_errors=True)
        (building / image_dir.name).rename(image_dir)
        (building / json_file.name).replace(json_file)
    (building / _MANIFEST).replace(root / _MANIFEST)
    building.rmdir()


def _write_split(
    json_file: Path, image_dir: Path, sources: Sources, seeds: list[tuple[int, int, int]]
) -> None:
    image_dir.mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, seed in enumerate(seeds, start=1):
        pixels, digits, background = draw_image(np.random.default_rng(seed), sources)
        images.append(_image_record(image_id, background))
        _write_image(image_dir / images[-1]["file_name"], pixels)
        annotations.extend(_annotations(image_id, len(annotations) + 1, digits))
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES, start=1)]
    content = {
        "info": {
            "description": "Handwritten digits on photographs",
            "sources": "From scikit-learn: load_digits (UCI optical recognition of handwritten "
            "digits); china.jpg by danielbuechele and flower.jpg by vultilion (CC BY 2.0)",
        },
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }
    json_file.write_text(json.dumps(content))


def _image_record(image_id: int, background: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": image_id,
        "file_name": f"{image_id:06d}.jpg",
        "width": IMAGE_WIDTH,
        "height": IMAGE_HEIGHT,
        "background": background,
    }


def _annotations(image_id: int, first_id: int, digits: list[Digit]) -> Iterator[dict[str, Any]]:
    """COCO annotations; ``area`` is the box's, ``scan`` the index in scikit-learn's array."""
    for annotation_id, digit in enumerate(digits, start=first_id):
        bbox = [float(side) for side in digit.box]
        yield {
            "id": annotation_id,
            "image_id": image_id,
            "category_id": digit.label + 1,
            "bbox": bbox,
            "area": bbox[2] * bbox[3],
            "iscrowd": 0,
            "scan": digit.scan,
        }


def _write_image(path: Path, pixels: np.ndarray) -> None:
    if not cv2.imwrite(str(path), pixels, [cv2.IMWRITE_JPEG_QUALITY, 95]):
        raise OSError(f"Cannot write the image {path}: is the disk full or the folder read-only?")


def _paths(root: Path, splits: Iterable[str]) -> dict[str, tuple[Path, Path]]:
    return {split: (root / f"digits_{split}.json", root / f"digits_{split}") for split in splits}


def _is_complete(root: Path, splits: Iterable[str], manifest: dict[str, int]) -> bool:
    """Whether the manifest is the wanted one and nothing was removed since it was written."""
    try:
        found = json.loads((root / _MANIFEST).read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    return found == manifest and all(
        json_file.is_file() and len(list(image_dir.glob("*.jpg"))) == manifest[split]
        for split, (json_file, image_dir) in _paths(root, splits).items()
    )


def _check_at_least(name: str, value: int, minimum: int) -> None:
    if value < minimum:
        raise ValueError(f"{name} is {value}, expected an integer of at least {minimum}")
