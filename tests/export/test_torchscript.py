"""An exported model gives what the eager one gives, here and in a process without this project."""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

from fsn_d2.export import (
    ExportDifference,
    compare_export,
    export_torchscript,
    weights_sha256,
)
from fsn_d2.layers import op_library_path

from .samples import OTHERS, TRACED, check_equal, image_of

SCORES = "MODEL__ROI_HEADS__SCORE_THRESH_TEST"


VARIANTS = [
    ("fsn_R50.yaml", {}),
    ("fsn_R50.yaml", {"MODEL__FSN__SUB_REGION": "image"}),
    ("fsn_R50.yaml", {"MODEL__FSN__MERGE": "multiply"}),
    ("fsn_R50.yaml", {"MODEL__FSN__MERGE": "multiply", "MODEL__FSN__SUB_REGION": "image"}),
    ("fsn_R50.yaml", {"MODEL__FSN__BANK_KERNEL": 3}),
    ("fsn_R50.yaml", {"MODEL__FSN__BANK_INPUT": "feature"}),
    ("fsn_R50.yaml", {"MODEL__FSN__BANK_INPUT": "feature", "MODEL__FSN__SUB_REGION": "image"}),
    ("fsn_R50.yaml", {"MODEL__ROI_BOX_HEAD__POOLER_TYPE": "ROIPool"}),
    ("fsn_R50.yaml", {"MODEL__KEYPOINT_ON": True}),
    ("fsn_R50_C4.yaml", {}),
    ("fsn_R50_C4.yaml", {"MODEL__FSN__SUB_REGION": "image"}),
]


@pytest.mark.parametrize(("config", "changes"), VARIANTS)
def test_equals_the_eager_model_for_images_of_other_sizes(
    config: str, changes: dict, small_cfg: Callable, detector: Callable, tmp_path: Path
) -> None:
    cfg = small_cfg(config, **{SCORES: 0.0}, **changes)
    check_equal(export_torchscript, cfg, detector(cfg), tmp_path / "model.ts")


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (
            "fsn_R50.yaml",
            {"MODEL__PROPOSAL_GENERATOR__NAME": "PrecomputedProposals"},
            "PROPOSAL_GENERATOR.NAME is PrecomputedProposals",
        ),
        (
            "mask_rcnn_R50.yaml",
            {"MODEL__META_ARCHITECTURE": "PanopticFPN"},
            "META_ARCHITECTURE PanopticFPN cannot be exported",
        ),
    ],
)
def test_a_model_of_another_kind_is_refused(
    config: str, changes: dict, message: str, small_cfg: Callable, tmp_path: Path
) -> None:
    cfg = small_cfg(config, **changes)
    with pytest.raises(ValueError, match=message):
        export_torchscript(cfg, build_model(cfg), image_of(*TRACED), tmp_path / "model.ts")


def test_a_cascade_can_be_exported_where_detectron2s_own_can(
    small_cfg: Callable, detector: Callable, tmp_path: Path
) -> None:
    original = small_cfg("cascade_rcnn_R50.yaml", **{SCORES: 0.0})
    try:
        check_equal(export_torchscript, original, detector(original), tmp_path / "original.ts")
    except RuntimeError as error:
        assert "_ScaleGradient" in str(error)
        pytest.skip("this Detectron2 scales the cascade's gradient in inference too")
    cfg = small_cfg("fsn_cascade_R50.yaml", **{SCORES: 0.0})
    check_equal(export_torchscript, cfg, detector(cfg), tmp_path / "model.ts")


@pytest.mark.parametrize("reading", ["roi", "image"])
@pytest.mark.parametrize("config", ["fsn_R50.yaml", "fsn_R50_C4.yaml"])
def test_an_image_without_detections(
    config: str, reading: str, small_cfg: Callable, detector: Callable, tmp_path: Path
) -> None:
    cfg = small_cfg(config, **{SCORES: 1.0, "MODEL__FSN__SUB_REGION": reading})
    model = detector(cfg)
    exported = export_torchscript(cfg, model, image_of(*TRACED), tmp_path / "model.ts")
    for size in OTHERS[:3]:
        boxes, classes, scores, image_size = exported(image_of(*size))
        assert boxes.shape == (0, 4)
        assert len(classes) == len(scores) == 0
        assert tuple(int(side) for side in image_size) == size
    assert compare_export(model, exported, [image_of(*OTHERS[2])]) == ExportDifference(images=1)


def test_traced_where_nothing_was_found_it_still_finds(
    small_cfg: Callable, detector: Callable, tmp_path: Path
) -> None:
    model = detector(small_cfg(**{SCORES: 0.0}))
    images = [image_of(*TRACED, seed=i) for i in range(8)]
    with torch.no_grad():
        best = [model.inference([{"image": i}])[0]["instances"].scores.max() for i in images]
    order = torch.stack(best).argsort()
    least, most = images[order[0]], images[order[-1]]
    threshold = float(best[order[0]] + best[order[-1]]) / 2
    cfg = small_cfg(**{SCORES: threshold})
    model = detector(cfg)
    exported = export_torchscript(cfg, model, least, tmp_path / "model.ts")
    difference = compare_export(model, exported, [least, most])
    assert difference.detections > 0
    assert difference.within(), difference
    assert len(exported(least)[2]) == 0


WITHOUT_THIS_PROJECT = """
import sys, torch
torchvision_library, op_library, model, images, answers = sys.argv[1:]
torch.ops.load_library(torchvision_library)
torch.ops.load_library(op_library)
model = torch.jit.load(model)
torch.save([model(image) for image in torch.load(images)], answers)
assert not {"fsn_d2", "detectron2", "torchvision"} & set(sys.modules), "imported after all"
"""


@pytest.mark.skipif(op_library_path() is None, reason="the extension is not built")
@pytest.mark.parametrize(
    ("config", "merge"), [("fsn_R50.yaml", "sum"), ("fsn_R50_C4.yaml", "concat")]
)
def test_a_process_with_torch_and_two_op_libraries_alone_runs_it(
    config: str, merge: str, small_cfg: Callable, detector: Callable, tmp_path: Path
) -> None:
    changes = {"MODEL__FSN__SUB_REGION": "image", "MODEL__FSN__MERGE": merge}
    cfg = small_cfg(config, **{SCORES: 0.0}, **changes)
    images = [image_of(*size, seed=i) for i, size in enumerate(OTHERS[1:4])]
    exported = export_torchscript(cfg, detector(cfg), image_of(*TRACED), tmp_path / "model.ts")
    torch.save(images, tmp_path / "images.pt")
    libraries = [Path(torchvision.__file__).with_name("_C.so"), op_library_path()]
    files = [tmp_path / name for name in ("model.ts", "images.pt", "answers.pt")]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run(
        [sys.executable, "-c", WITHOUT_THIS_PROJECT, *map(str, [*libraries, *files])],
        cwd=tmp_path,
        env=environment,
        check=True,
    )
    for image, answer in zip(images, torch.load(files[2]), strict=True):
        expected = exported(image)
        assert len(expected[2]) > 10
        torch.testing.assert_close(tuple(answer), tuple(expected))


def test_the_file_says_what_it_is(
    small_cfg: Callable[..., CfgNode], detector: Callable, tmp_path: Path
) -> None:
    cfg = small_cfg(DATASETS__TRAIN=(), DATASETS__TEST=(), DATASETS__CLASSES=["a", "b", "c"])
    model = detector(cfg)
    export_torchscript(cfg, model, image_of(*TRACED), tmp_path / "model.ts")
    extra = {"config.yaml": "", "classes.json": "", "versions.json": "", "weights.sha256": ""}
    torch.jit.load(str(tmp_path / "model.ts"), _extra_files=extra)
    assert json.loads(extra["classes.json"]) == ["a", "b", "c"]
    assert CfgNode.load_cfg(extra["config.yaml"].decode()).MODEL.FSN == cfg.MODEL.FSN
    assert json.loads(extra["versions.json"])["torchvision"] == torchvision.__version__
    assert extra["weights.sha256"].decode() == weights_sha256(model)


# ---------------------------------------------------------------------------- the comparison


class Fixed(torch.nn.Module):
    """A detector that always finds the same."""

    def inference(self, inputs: list[dict], do_postprocess: bool) -> list[Instances]:
        boxes = Boxes(torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]]))
        scores, classes = torch.tensor([0.9, 0.5]), torch.tensor([0, 1])
        return [Instances((9, 9), pred_boxes=boxes, scores=scores, pred_classes=classes)]


def compare_fixed_with(
    boxes: list, classes: list, scores: list, *, size: tuple[int, int] = (9, 9)
) -> ExportDifference:
    parts = (torch.tensor(boxes), torch.tensor(classes), torch.tensor(scores))
    answer = (*parts, torch.tensor(size))
    return compare_export(Fixed(), lambda image: answer, [torch.zeros(3, 9, 9)])


def test_the_comparison_measures_each_kind_of_difference() -> None:
    boxes = [[1.0, 2, 3, 4], [5, 6, 7, 8]]
    equal = compare_fixed_with(boxes, [0, 1], [0.9, 0.5])
    assert equal == ExportDifference(images=1, detections=2)
    assert equal.within()
    moved = compare_fixed_with([[1.0, 2, 3, 4], [5, 6, 7, 8.5]], [0, 1], [0.9, 0.5])
    assert moved.boxes == 0.5
    rescored = compare_fixed_with(boxes, [0, 1], [0.9, 0.25])
    assert rescored.scores == 0.25
    renamed = compare_fixed_with(boxes, [0, 2], [0.9, 0.5])
    assert renamed.classes == 1
    fewer = compare_fixed_with(boxes[:1], [0], [0.9])
    assert fewer.counts_differ == 1
    resized = compare_fixed_with(boxes, [0, 1], [0.9, 0.5], size=(9, 8))
    assert resized == ExportDifference(images=1, detections=2, sizes_differ=1)
    assert not any(d.within() for d in (moved, rescored, renamed, fewer, resized))


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_what_is_no_number_is_infinitely_far_from_one(number: float) -> None:
    boxes = [[1.0, 2, 3, 4], [5, 6, 7, number]]
    in_boxes = compare_fixed_with(boxes, [0, 1], [0.9, 0.5])
    assert in_boxes.boxes == math.inf and in_boxes.scores == 0
    in_scores = compare_fixed_with([[1.0, 2, 3, 4], [5, 6, 7, 8]], [0, 1], [number, 0.5])
    assert in_scores.scores == math.inf
    assert not in_boxes.within() and not in_scores.within()


def test_models_that_both_find_no_number_agree() -> None:
    class Strange(Fixed):
        def inference(self, inputs: list[dict], do_postprocess: bool) -> list[Instances]:
            (found,) = super().inference(inputs, do_postprocess)
            found.pred_boxes.tensor[1, 3] = math.nan
            return [found]

    boxes = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, math.nan]])
    rest = (torch.tensor([0, 1]), torch.tensor([0.9, 0.5]), torch.tensor([9, 9]))
    equal = compare_export(Strange(), lambda image: (boxes, *rest), [torch.zeros(3, 9, 9)])
    assert equal == ExportDifference(images=1, detections=2)


def test_detections_of_one_score_may_come_in_either_order() -> None:
    swapped = compare_fixed_with([[5.0, 6, 7, 8], [1, 2, 3, 4]], [1, 0], [0.5, 0.9])
    assert swapped == ExportDifference(images=1, detections=2)


def test_a_detection_that_comes_twice_does_not_hide_that_another_is_missing() -> None:
    doubled = compare_fixed_with([[1.0, 2, 3, 4], [1, 2, 3, 4]], [0, 0], [0.9, 0.9])
    assert doubled.boxes == 4
    assert doubled.classes == 1


def test_masks_are_compared_too() -> None:
    class Masks(Fixed):
        def inference(self, inputs: list[dict], do_postprocess: bool) -> list[Instances]:
            (found,) = super().inference(inputs, do_postprocess)
            found.pred_masks = torch.full((2, 1, 28, 28), 0.5)
            return [found]

    boxes, classes = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]]), torch.tensor([0, 1])
    masks, scores = torch.full((2, 1, 28, 28), 0.5), torch.tensor([0.9, 0.5])
    masks[1, 0, 3, 4] = 0.25
    answer = (boxes, classes, masks, scores, torch.tensor([9, 9]))
    difference = compare_export(Masks(), lambda image: answer, [torch.zeros(3, 9, 9)])
    assert difference.masks == 0.25
    assert not difference.within()


def test_keypoints_are_compared_too() -> None:
    points = torch.rand(2, 17, 3)

    class Keypoints(Fixed):
        def inference(self, inputs: list[dict], do_postprocess: bool) -> list[Instances]:
            (found,) = super().inference(inputs, do_postprocess)
            found.pred_keypoints = points
            return [found]

    boxes, classes = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]]), torch.tensor([0, 1])
    moved, scores = points.clone(), torch.tensor([0.9, 0.5])
    moved[1, 3, 0] += 2
    answer = (boxes, classes, moved, scores, torch.tensor([9, 9]))
    difference = compare_export(Keypoints(), lambda image: answer, [torch.zeros(3, 9, 9)])
    assert difference.keypoints == pytest.approx(2)
    assert not difference.within()


# ---------------------------------------------------------------------------- the hash


def hash_of(**tensors: torch.Tensor) -> str:
    model = torch.nn.Module()
    for name, tensor in tensors.items():
        model.register_buffer(name, tensor)
    return weights_sha256(model)


def test_the_hash_is_that_of_names_shapes_and_values() -> None:
    text = b"a torch.float32 [1, 2]\n" + struct.pack("<2f", 1.0, 2.0)
    text += b"b torch.int64 []\n" + struct.pack("<q", 7)
    a, b = torch.tensor([[1.0, 2.0]]), torch.tensor(7)
    assert hash_of(b=b, a=a) == hashlib.sha256(text).hexdigest()
    others = [hash_of(a=a.T, b=b), hash_of(a=a + 1, b=b), hash_of(a=a.double(), b=b), hash_of(a=a)]
    assert len({hash_of(a=a, b=b), *others}) == 5
