"""The digits data set: its splits share nothing, its boxes are tight, its builds repeat."""

from __future__ import annotations

import builtins
import hashlib
import json
import math
from itertools import combinations
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from fsn_d2.data import digits
from fsn_d2.data.digits import build_digits, register_digits

pytest.importorskip("sklearn", reason="the digits data set needs the demo extra")

NUM_TRAIN, NUM_TEST = 24, 12


def read(json_file: Path) -> dict[str, Any]:
    return json.loads(json_file.read_text())


def fingerprint(root: Path) -> dict[str, str]:
    """Hash of every file below ``root`` that is part of the data set."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.suffix != ".lock"
    }


def photograph(name: str) -> np.ndarray:
    from sklearn.datasets import load_sample_image

    return load_sample_image(name)[:, :, ::-1]


def gray_sources(level: int = 128) -> dict[str, digits.Sources]:
    """The real scans over one flat gray photograph."""
    from sklearn.datasets import load_digits

    found = load_digits()
    flat = np.full((427, 640, 3), level, np.uint8)
    return digits.split_sources(
        (found.images / 16).astype(np.float32), found.target, {"flat.jpg": flat}
    )


def overlap(a: list[float], b: list[float]) -> tuple[float, float]:
    """IoU and intersection over the smaller box, by counting pixels."""
    canvas = np.zeros((2, 240, 320), bool)
    for layer, (x, y, w, h) in zip(canvas, (a, b), strict=True):
        layer[int(y) : int(y + h), int(x) : int(x + w)] = True
    both = (canvas[0] & canvas[1]).sum()
    return both / (canvas[0] | canvas[1]).sum(), both / canvas.sum(axis=(1, 2)).min()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("digits")
    build_digits(root, num_train=NUM_TRAIN, num_test=NUM_TEST)
    return root


@pytest.fixture(scope="module")
def built(root: Path) -> dict[str, tuple[Path, Path]]:
    return build_digits(root, num_train=NUM_TRAIN, num_test=NUM_TEST)


@pytest.fixture(scope="module")
def contents(built: dict[str, tuple[Path, Path]]) -> dict[str, dict[str, Any]]:
    return {split: read(json_file) for split, (json_file, _) in built.items()}


@pytest.fixture(scope="module")
def many_digits() -> list[list[digits.Digit]]:
    """The digits of 150 training images over flat gray, without writing them."""
    train = gray_sources()["train"]
    return [digits.draw_image(np.random.default_rng(i), train)[1] for i in range(150)]


@pytest.fixture
def clean_catalogs():
    yield
    for split in (*digits.SPLITS, *digits.TUNING_SPLITS):
        name = f"digits_{split}"
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def test_counts_and_sizes(built, contents):
    for split, count in (("train", NUM_TRAIN), ("test", NUM_TEST)):
        content, image_dir = contents[split], built[split][1]
        names = [image["file_name"] for image in content["images"]]
        assert len(names) == count
        assert sorted(names) == sorted(path.name for path in image_dir.iterdir())
        assert all(cv2.imread(str(image_dir / name)).shape == (240, 320, 3) for name in names)
        for image in content["images"]:
            own = [a for a in content["annotations"] if a["image_id"] == image["id"]]
            assert 3 <= len(own) <= 8
            assert (image["width"], image["height"]) == (320, 240)


def test_every_number_of_digits_from_3_to_8_occurs(many_digits):
    assert {len(placed) for placed in many_digits} == set(range(3, 9))


def test_annotations_are_valid_coco(contents):
    for content in contents.values():
        assert [(c["id"], c["name"]) for c in content["categories"]] == [
            (i + 1, str(i)) for i in range(10)
        ]
        ids = [a["id"] for a in content["annotations"]]
        assert len(set(ids)) == len(ids)
        for annotation in content["annotations"]:
            x, y, w, h = annotation["bbox"]
            assert all(isinstance(side, float) for side in annotation["bbox"])
            assert x >= 0 and y >= 0 and x + w <= 320 and y + h <= 240
            assert annotation["area"] == w * h
            assert annotation["iscrowd"] == 0


def test_pycocotools_loads_it(built, contents):
    from pycocotools.coco import COCO

    for split, (json_file, _) in built.items():
        coco = COCO(str(json_file))
        assert len(coco.getImgIds()) == len(contents[split]["images"])
        assert coco.getCatIds() == list(range(1, 11))
        assert len(coco.getAnnIds()) == len(contents[split]["annotations"])


def test_recorded_scans_are_disjoint_and_carry_their_label(contents):
    from sklearn.datasets import load_digits

    target = load_digits().target
    used = {
        split: {a["scan"] for a in content["annotations"]} for split, content in contents.items()
    }
    assert not used["train"] & used["test"]
    assert max(used["train"]) < 1400 <= min(used["test"])
    for content in contents.values():
        for annotation in content["annotations"]:
            assert target[annotation["scan"]] == annotation["category_id"] - 1


def test_fit_and_val_divide_the_scans_and_photographs_of_train(tmp_path):
    built = build_digits(tmp_path, num_train=30, num_test=10, splits=digits.TUNING_SPLITS)
    assert list(built) == ["fit", "val"]
    contents = [read(json_file) for json_file, _ in built.values()]
    fit, val = ({a["scan"] for a in content["annotations"]} for content in contents)
    assert max(fit) < 1120 <= min(val) and max(val) < 1400
    for content in contents:
        for image in content["images"]:
            x, _, width, _ = image["background"]["bbox"]
            assert x + width <= int(640 * 0.6)


def test_the_scans_of_the_two_splits_differ_in_pixels():
    sources = digits.load_sources()
    train, test = ({scan.tobytes() for scan in sources[s].scans} for s in ("train", "test"))
    assert len(train) == 1400 and len(test) == 397
    assert not train & test


def test_recorded_backgrounds_are_disjoint(contents):
    border = int(640 * 0.6)
    for split, content in contents.items():
        for image in content["images"]:
            x, y, w, h = image["background"]["bbox"]
            assert y >= 0 and y + h <= 427
            assert (x >= 0 and x + w <= border) if split == "train" else border <= x <= 640 - w


def test_recorded_backgrounds_are_what_the_images_show(built, contents):
    for split, content in contents.items():
        for image in content["images"]:
            x, y, w, h = image["background"]["bbox"]
            crop = photograph(image["background"]["photo"])[y : y + h, x : x + w]
            expected = cv2.resize(np.ascontiguousarray(crop), (320, 240))
            if image["background"]["flipped"]:
                expected = expected[:, ::-1]
            shown = cv2.imread(str(built[split][1] / image["file_name"])).astype(int)
            bare = np.ones((240, 320), bool)
            for a in content["annotations"]:
                if a["image_id"] == image["id"]:
                    left, top, width, height = map(int, a["bbox"])
                    bare[
                        max(top - 8, 0) : top + height + 8, max(left - 8, 0) : left + width + 8
                    ] = 0
            assert bare.sum() > 1000
            assert np.abs(shown - expected)[bare].mean() < 4


def test_no_pixel_of_a_photo_crosses_the_border():
    painted = np.zeros((427, 640, 3), np.uint8)
    painted[:, :384, 0] = 255  # blue on the left of the border, red on the right
    painted[:, 384:, 2] = 255
    scans = np.zeros((1797, 8, 8), np.float32)
    scans[:, 2:6, 2:6] = 1
    sources = digits.split_sources(scans, np.zeros(1797, int), {"painted.jpg": painted})
    for split, own, foreign in (("train", 0, 2), ("test", 2, 0)):
        for i in range(10):
            image, _, _ = digits.draw_image(np.random.default_rng(i), sources[split])
            # Gray ink is the only thing that may add the foreign colour, and adds green with it.
            assert (image[:, :, foreign] == image[:, :, 1]).all()
            assert (image[:, :, own] > 0).any()


def test_boxes_are_tight_around_what_differs_from_the_background():
    checked = 0
    for i in range(40):
        rng = np.random.default_rng(i)
        image, placed, _ = digits.draw_image(rng, gray_sources()["test"])
        change = np.abs(image[:, :, 0].astype(int) - 128)
        for digit in placed:
            others = [o for o in placed if o is not digit]
            if any(overlap(list(digit.box), list(o.box))[0] > 0 for o in others):
                continue
            x, y, w, h = digit.box
            around = np.zeros_like(change)
            around[max(y - 1, 0) : y + h + 1, max(x - 1, 0) : x + w + 1] = 1
            for other in others:  # a neighbour one pixel away must not count
                ox, oy, ow, oh = other.box
                around[max(oy - 1, 0) : oy + oh + 1, max(ox - 1, 0) : ox + ow + 1] = 0
            if around[y : y + h, x : x + w].min() == 0:
                continue
            own = change * around
            rows, columns = np.nonzero(own > 0.25 * own.max())
            found = (
                columns.min(),
                rows.min(),
                columns.max() - columns.min() + 1,
                rows.max() - rows.min() + 1,
            )
            # Rounding to whole gray levels may move a side by one pixel.
            assert np.abs(np.subtract(found, digit.box)).max() <= 1, (i, found, digit.box)
            checked += 1
    assert checked > 60


def test_the_box_of_a_worked_example():
    coverage = np.zeros((5, 7), np.float32)
    coverage[1, 2] = 0.25
    coverage[3, 4] = 1.0
    coverage[4, 6] = 0.24  # too faint to count
    assert digits.tight_box(coverage) == (2, 1, 3, 3)
    assert digits.Digit(0, 0, 10, 20, coverage).box == (12, 21, 3, 3)


def test_a_digit_looks_like_its_scan():
    # The oracle enlarges by another library's splines and cuts at half coverage.
    from scipy.ndimage import zoom
    from sklearn.datasets import load_digits

    for scan in load_digits().images[::50] / 16:
        ink = zoom(np.pad(scan, 2), 20, order=3, mode="nearest", grid_mode=True) > 0.5
        rows, columns = np.nonzero(ink)
        ink = ink[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        height, width = ink.shape
        drawn = digits.draw_coverage(scan.astype(np.float32), 0.0, width, height) > 0.5
        assert (drawn & ink).sum() / (drawn | ink).sum() > 0.75


def test_turning_is_counter_clockwise():
    bar = np.zeros((8, 8), np.float32)
    bar[:, 3:5] = 1
    upright = digits.draw_coverage(bar, 0.0, 40, 80)
    turned = digits.draw_coverage(bar, 12.0, 40, 80)
    top, bottom = turned[:10], turned[-10:]
    columns = np.arange(40)
    assert (top.sum(0) @ columns) / top.sum() < (bottom.sum(0) @ columns) / bottom.sum() - 5
    assert upright[:10].mean() == pytest.approx(upright[-10:].mean(), abs=0.02)


def test_aspect_ratios_are_in_range_and_spread_evenly_on_a_log_scale(many_digits):
    boxes = np.array([digit.box for placed in many_digits for digit in placed])
    position = np.log(boxes[:, 3] / boxes[:, 2]) / math.log(3)
    assert np.abs(position).max() <= 1 + 1e-6
    shares = np.histogram(position, 5, (-1, 1))[0] / len(position)
    assert shares.min() > 0.13 and shares.max() < 0.27  # 0.2 each, if uniform


def test_ink_sizes_are_in_range_and_spread(many_digits):
    boxes = np.array([digit.box for placed in many_digits for digit in placed])
    sizes = np.sqrt(boxes[:, 2] * boxes[:, 3])
    assert sizes.min() >= 24 and sizes.max() <= 80
    assert (sizes < 35).mean() > 0.1 and (sizes > 65).mean() > 0.1


def test_some_digits_overlap_and_none_hides_another(contents):
    values = []
    for content in contents.values():
        for image in content["images"]:
            boxes = [a["bbox"] for a in content["annotations"] if a["image_id"] == image["id"]]
            values += [overlap(a, b) for a, b in combinations(boxes, 2)]
    ious, shares = np.array(values).T
    assert ious.max() <= 0.3
    assert shares.max() <= 0.35 + 1e-9
    assert (ious > 0.02).sum() >= 5


def test_ink_is_dark_and_light_and_stands_out():
    # On flat gray the strongest change inside a box that nothing overlaps is the ink's.
    changes = []
    for i in range(25):
        image, placed, _ = digits.draw_image(np.random.default_rng(i), gray_sources()["train"])
        for digit in placed:
            if all(o is digit or overlap(list(digit.box), list(o.box))[0] == 0 for o in placed):
                signed = image[digit.window][:, :, 0].astype(int) - 128
                changes.append(signed.flat[np.abs(signed).argmax()])
    strength = np.abs(changes)
    assert strength.min() >= 55
    assert np.std(strength) > 8
    assert min(np.greater(changes, 0).mean(), np.less(changes, 0).mean()) > 0.2


def test_the_same_seed_gives_the_same_bytes(root, tmp_path):
    build_digits(tmp_path, num_train=NUM_TRAIN, num_test=NUM_TEST)
    assert fingerprint(tmp_path) == fingerprint(root)


def test_another_seed_gives_other_images(root, tmp_path):
    build_digits(tmp_path, num_train=NUM_TRAIN, num_test=NUM_TEST, seed=1)
    ours, theirs = fingerprint(tmp_path), fingerprint(root)
    assert ours.keys() == theirs.keys()
    assert not set(ours.values()) & set(theirs.values())


def test_a_larger_set_begins_with_the_smaller_one(root, tmp_path):
    build_digits(tmp_path, num_train=2, num_test=1)
    small, large = fingerprint(tmp_path), fingerprint(root)
    images = [name for name in small if name.endswith(".jpg")]
    assert len(images) == 3
    assert all(small[name] == large[name] for name in images)


def test_a_complete_set_is_not_built_again(tmp_path, monkeypatch):
    first = build_digits(tmp_path, num_train=2, num_test=1)
    monkeypatch.setattr(digits, "load_sources", lambda: pytest.fail("built again"))
    assert build_digits(tmp_path, num_train=2, num_test=1) == first


@pytest.mark.parametrize("change", [{"num_train": 3}, {"num_test": 2}, {"seed": 5}])
def test_other_parameters_replace_the_set_and_spare_foreign_files(tmp_path, change):
    build_digits(tmp_path / "a", num_train=2, num_test=1)
    (tmp_path / "a" / "mine.txt").write_text("keep")
    wanted = {"num_train": 2, "num_test": 1, **change}
    build_digits(tmp_path / "a", **wanted)
    build_digits(tmp_path / "b", **wanted)
    assert (tmp_path / "a" / "mine.txt").read_text() == "keep"
    (tmp_path / "a" / "mine.txt").unlink()
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b")


@pytest.mark.parametrize("function", ["_write_image", "_move"])
def test_an_interrupted_build_recovers(tmp_path, monkeypatch, function):
    original, calls = getattr(digits, function), []

    def fail_late(*args):
        calls.append(args)
        if function == "_move" or len(calls) == 3:
            raise KeyboardInterrupt
        return original(*args)

    build_digits(tmp_path / "whole", num_train=3, num_test=2)
    with monkeypatch.context() as patch:
        patch.setattr(digits, function, fail_late)
        with pytest.raises(KeyboardInterrupt):
            build_digits(tmp_path / "cut", num_train=3, num_test=2)
    assert not (tmp_path / "cut" / "digits.json").exists()
    build_digits(tmp_path / "cut", num_train=3, num_test=2)
    assert fingerprint(tmp_path / "cut") == fingerprint(tmp_path / "whole")


@pytest.mark.parametrize(
    "damage",
    [
        lambda root: (root / "digits.json").unlink(),
        lambda root: (root / "digits.json").write_text("{"),
        lambda root: (root / "digits_test.json").unlink(),
        lambda root: (root / "digits_train" / "000002.jpg").unlink(),
    ],
    ids=["no manifest", "half a manifest", "no json", "no image"],
)
def test_a_damaged_set_is_built_again(tmp_path, damage):
    build_digits(tmp_path, num_train=2, num_test=1)
    before = fingerprint(tmp_path)
    damage(tmp_path)
    build_digits(tmp_path, num_train=2, num_test=1)
    assert fingerprint(tmp_path) == before


def test_an_interrupted_move_recovers(tmp_path, monkeypatch):
    build_digits(tmp_path, num_train=2, num_test=1)
    before = fingerprint(tmp_path)
    original, renamed = Path.rename, []

    def second_rename_fails(self, target):
        renamed.append(target)
        if len(renamed) == 2:
            raise OSError("stopped")
        return original(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", second_rename_fails)
        with pytest.raises(OSError, match="stopped"):
            build_digits(tmp_path, num_train=2, num_test=1, seed=1)
    build_digits(tmp_path, num_train=2, num_test=1)
    assert fingerprint(tmp_path) == before


def test_a_missing_scikit_learn_names_the_extra(tmp_path, monkeypatch):
    original = builtins.__import__

    def without_sklearn(name, *args, **kwargs):
        if name.split(".")[0] == "sklearn":
            raise ImportError("No module named 'sklearn'")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_sklearn)
    with pytest.raises(ImportError, match=r"pip install 'fsn_d2\[demo\]'"):
        build_digits(tmp_path, num_train=1, num_test=1)


@pytest.mark.parametrize("wrong", [{"num_train": 0}, {"num_test": -1}, {"seed": -1}])
def test_numbers_out_of_range_are_named(tmp_path, wrong):
    (name, value), *_ = wrong.items()
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        build_digits(tmp_path, **wrong)


def test_an_image_that_cannot_be_written_raises(tmp_path):
    with pytest.raises(OSError, match=r"missing.000001\.jpg"):
        digits._write_image(tmp_path / "missing" / "000001.jpg", np.zeros((2, 2, 3), np.uint8))


def small_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registered data sets of a few images instead of the default number."""
    monkeypatch.setattr(
        digits,
        "build_digits",
        lambda root, splits: build_digits(root, num_train=3, num_test=2, splits=splits),
    )


def test_registering_writes_nothing_and_loading_builds(tmp_path, monkeypatch, clean_catalogs):
    small_build(monkeypatch)
    register_digits(tmp_path / "set")
    assert not (tmp_path / "set").exists()
    for name, count in (
        ("digits_train", 3),
        ("digits_test", 2),
        ("digits_fit", 3),
        ("digits_val", 2),
    ):
        records = DatasetCatalog.get(name)
        metadata = MetadataCatalog.get(name)
        assert len(records) == count
        assert metadata.thing_classes == [str(i) for i in range(10)]
        assert metadata.evaluator_type == "coco"
        content = read(Path(metadata.json_file))
        for record in records:
            own = [a for a in content["annotations"] if a["image_id"] == record["image_id"]]
            assert Path(record["file_name"]).is_file()
            assert Path(record["file_name"]).parent == Path(metadata.image_root)
            assert [a["category_id"] for a in record["annotations"]] == [
                a["category_id"] - 1 for a in own
            ]
            assert [a["bbox"] for a in record["annotations"]] == [a["bbox"] for a in own]


def test_registering_twice_is_harmless_and_another_root_moves_it(tmp_path, clean_catalogs):
    register_digits(tmp_path / "a")
    MetadataCatalog.get("digits_train").thing_colors = [(0, 0, 0)] * 10
    register_digits(tmp_path / "a")
    assert len(MetadataCatalog.get("digits_train").thing_colors) == 10
    register_digits(tmp_path / "b")
    assert Path(MetadataCatalog.get("digits_test").image_root).parent == tmp_path / "b"


def test_the_default_root_follows_detectron2(tmp_path, monkeypatch, clean_catalogs):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    register_digits()
    assert Path(MetadataCatalog.get("digits_train").image_root).parent == tmp_path / "digits"
    monkeypatch.delenv("DETECTRON2_DATASETS")
    register_digits()
    assert Path(MetadataCatalog.get("digits_train").image_root).parent == Path("datasets/digits")


def test_a_perfect_detector_scores_100_with_coco_evaluator(tmp_path, monkeypatch, clean_catalogs):
    import torch
    from detectron2.evaluation import COCOEvaluator
    from detectron2.structures import Boxes, BoxMode, Instances

    small_build(monkeypatch)
    register_digits(tmp_path)
    records = DatasetCatalog.get("digits_test")
    evaluator = COCOEvaluator("digits_test", output_dir=str(tmp_path / "out"))
    evaluator.reset()
    for record in records:
        boxes = [
            BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS)
            for a in record["annotations"]
        ]
        perfect = Instances(
            (240, 320),
            pred_boxes=Boxes(torch.tensor(boxes)),
            scores=torch.ones(len(boxes)),
            pred_classes=torch.tensor([a["category_id"] for a in record["annotations"]]),
        )
        evaluator.process([record], [{"instances": perfect}])
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100)
