"""A model exported to ONNX gives under onnxruntime what the eager one gives."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from fsn_d2.export import ExportDifference, compare_export, export_onnx, weights_sha256

from .samples import OTHERS, TRACED, check_equal, image_of

onnx = pytest.importorskip("onnx", reason="the extra `export` is not installed")
pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")

DEPTH_50 = {"MODEL__RESNETS__DEPTH": 50, "MODEL__RESNETS__WIDTH_PER_GROUP": 16}
SLOW = pytest.mark.slow
FSN = [
    pytest.param({"SUB_REGION": "image", "MERGE": "multiply"}, marks=SLOW),
    pytest.param({"BANK_KERNEL": 3}, marks=SLOW),
    pytest.param({"BANK_INPUT": "feature"}, marks=SLOW),
    pytest.param({"BANK_INPUT": "feature", "SUB_REGION": "image"}, marks=SLOW),
    pytest.param({"POOLING": "composed"}, marks=SLOW),
]
OTHER_HEADS = [
    ("rfcn_R50_FPN.yaml", {"MODEL__RFCN__POOLING": "avg"}),
    ("fsaf_R50.yaml", {"MODEL__FSAF__MODE": "joint"}),
    *[
        pytest.param(config, changes, marks=SLOW)
        for config, changes in [
            ("rfcn_R50_FPN.yaml", {"MODEL__RFCN__POOLING": "max"}),
            ("rfcn_R50_FPN.yaml", {"MODEL__RFCN__POOLING": "align"}),
            ("lighthead_R50.yaml", DEPTH_50),
            ("faster_rcnn_R50.yaml", {}),
            ("faster_rcnn_R50_roipool.yaml", {}),
            ("faster_rcnn_R50_fast_roipool.yaml", {}),
            ("fsn_R50_C4.yaml", {"MODEL__ROI_HEADS__NMS_THRESH_TEST": 0.9}),
            ("fsn_mask_R50.yaml", {}),
            ("fsaf_R50.yaml", {"MODEL__FSAF__MODE": "anchor_free"}),
            ("fsaf_R50.yaml", {"MODEL__FSAF__MODE": "anchors"}),
        ]
    ],
]


def test_fsn_equals_the_eager_model_and_needs_standard_operators_alone(
    small_detector: Callable, tmp_path: Path
) -> None:
    check_equal(export_onnx, *small_detector("fsn_R50.yaml"), tmp_path / "model.onnx")
    proto = onnx.load(tmp_path / "model.onnx")
    assert [(opset.domain, opset.version) for opset in proto.opset_import] == [("", 16)]
    assert {node.domain for node in proto.graph.node} == {""}
    pooling = [node.op_type for node in proto.graph.node if "Roi" in node.op_type]
    # The RoI feature, the one that looks into the sub-regions, and the coverage, P2 to P5.
    assert pooling == ["RoiAlign"] * 3 * 4
    outputs = [value.name for value in proto.graph.output]
    assert outputs == ["boxes", "classes", "scores", "image_size"]


@pytest.mark.parametrize("changes", FSN)
def test_fsn_variants_equal_the_eager_model(
    changes: dict, small_detector: Callable, tmp_path: Path
) -> None:
    changes = {f"MODEL__FSN__{key}": value for key, value in changes.items()}
    check_equal(export_onnx, *small_detector("fsn_R50.yaml", **changes), tmp_path / "model.onnx")


@pytest.mark.parametrize(("config", "changes"), OTHER_HEADS)
def test_other_systems_equal_the_eager_model(
    config: str, changes: dict, small_detector: Callable, tmp_path: Path
) -> None:
    check_equal(export_onnx, *small_detector(config, **changes), tmp_path / "model.onnx")


@SLOW
def test_a_cascade_can_be_exported_where_detectron2s_own_can(
    small_detector: Callable, tmp_path: Path
) -> None:
    try:
        check_equal(
            export_onnx, *small_detector("cascade_rcnn_R50.yaml"), tmp_path / "original.onnx"
        )
    except (RuntimeError, ValueError) as error:
        assert "_ScaleGradient" in str(error)
        pytest.skip("this Detectron2 scales the cascade's gradient in inference too")
    check_equal(export_onnx, *small_detector("fsn_cascade_R50.yaml"), tmp_path / "model.onnx")


def check_nothing_found(
    cfg: CfgNode, model: nn.Module, path: Path, images: list[tuple[int, int]]
) -> None:
    exported = export_onnx(cfg, model, image_of(*TRACED), path)
    for size in images:
        boxes, classes, scores, image_size = exported(image_of(*size))
        assert boxes.shape == (0, 4)
        assert classes.shape == scores.shape == (0,)
        assert tuple(image_size.tolist()) == size
    assert compare_export(model, exported, [image_of(*OTHERS[2])]) == ExportDifference(images=1)


@pytest.mark.parametrize(
    "config",
    [
        "fsn_R50.yaml",
        *(pytest.param(f"{x}.yaml", marks=SLOW) for x in ("rfcn_R50_FPN", "fsaf_R50")),
    ],
)
def test_an_image_without_detections(config: str, small_detector: Callable, tmp_path: Path) -> None:
    check_nothing_found(*small_detector(config, score=1.0), tmp_path / "model.onnx", OTHERS[:3])


@pytest.mark.parametrize("config", ["fsn_R50.yaml", pytest.param("rfcn_R50_FPN.yaml", marks=SLOW)])
def test_without_proposals_there_are_no_rois_to_pool(
    config: str, small_detector: Callable, tmp_path: Path
) -> None:
    cfg, model = small_detector(config)
    model.proposal_generator.min_box_size = 100  # pixels, more than there are
    check_nothing_found(cfg, model, tmp_path / "model.onnx", [TRACED, (80, 64)])
    model.proposal_generator.min_box_size = 0
    with torch.no_grad():
        found = model.inference([{"image": image_of(*TRACED)}], do_postprocess=False)[0]
    assert len(found) > 0, "it is the proposals that were missing"


# ---------------------------------------------------------------------------- a model of one number


class Toy(nn.Module):
    """A detector of one object, whose score `function` computes from a pixel and a weight."""

    def __init__(self, function: Callable[[Tensor], Tensor] = torch.sigmoid) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.01))
        self.function = function

    def inference(self, inputs: list[dict[str, Any]], do_postprocess: bool) -> list[Instances]:
        image = inputs[0]["image"]
        scores = self.function(image.flatten()[:1] * self.weight)
        boxes = Boxes(torch.stack([scores, scores, scores + 1, scores + 2], dim=1))
        size = ImageList.from_tensors([image]).image_sizes[0]  # which keeps it while tracing
        found = Instances(size, pred_boxes=boxes, scores=scores)
        found.pred_classes = torch.zeros_like(scores, dtype=torch.int64)
        return [found]


def test_the_file_says_what_it_is(small_cfg: Callable, tmp_path: Path) -> None:
    cfg = small_cfg(DATASETS__TRAIN=(), DATASETS__TEST=(), DATASETS__CLASSES=["a", "b", "c"])
    toy = Toy()
    exported = export_onnx(cfg, toy, image_of(*TRACED), tmp_path / "model.onnx")
    carried = exported.metadata
    assert json.loads(carried["classes.json"]) == ["a", "b", "c"]
    assert json.loads(carried["versions.json"])["torch"] == torch.__version__
    assert CfgNode.load_cfg(carried["config.yaml"]).MODEL.FSN == cfg.MODEL.FSN
    assert carried["weights.sha256"] == weights_sha256(toy)
    stored = {prop.key: prop.value for prop in onnx.load(tmp_path / "model.onnx").metadata_props}
    assert stored == carried
    assert compare_export(toy, exported, [image_of(*OTHERS[1])]).within()


def test_an_operator_that_onnx_lacks_is_named(
    small_cfg: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toy, path = Toy(torch.special.bessel_j0), tmp_path / "model.onnx"
    with pytest.raises(ValueError, match="special_bessel_j0"):
        export_onnx(small_cfg(), toy, image_of(*TRACED), path)
    assert not path.exists()
    assert capsys.readouterr().out == ""


def test_keypoints_are_refused_in_a_line(small_detector: Callable, tmp_path: Path) -> None:
    keypoints = small_detector("fsn_R50.yaml", MODEL__KEYPOINT_ON=True)
    with pytest.raises(ValueError, match=r"lacks .*; export it to TorchScript") as caught:
        export_onnx(*keypoints, image_of(*TRACED), tmp_path / "m.onnx")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_retinanet_is_told_its_other_name(small_detector: Callable, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"MODEL\.FSAF\.MODE to anchors"):
        export_onnx(*small_detector("retinanet_R50.yaml"), image_of(*TRACED), tmp_path / "m.onnx")


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_is_named(
    package: str, small_cfg: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"needs {package},.*pip install onnx onnxruntime"):
        export_onnx(small_cfg(), Toy(), image_of(*TRACED), tmp_path / "model.onnx")


# ---------------------------------------------------------------------------- photographs


@SLOW
@pytest.mark.timeout(3600)
def test_on_photographs_it_detects_what_the_eager_model_does(
    bccd_detector: Any, tmp_path: Path
) -> None:
    cfg, model, images = bccd_detector
    assert len(images) == 72
    exported = export_onnx(cfg, model, images[0], tmp_path / "model.onnx")
    difference = compare_export(model, exported, images)
    print(difference)
    assert difference.detections > 72
    assert difference.within(boxes=0.01, scores=1e-4), difference
