"""The page that goes with exported files: what they are, what goes in and out, and how good."""

from __future__ import annotations

import json
from pathlib import Path

from detectron2.config import CfgNode

from ..checkpoint.reading import read_weights
from ..visualization.curves import read_series
from .shipping import Shipment

_NEEDS = {
    "torchscript": "libtorch or Python's torch, with torchvision's NMS and `fsn_d2`'s op library",
    "onnx": "any runtime of ONNX opset 16, without custom operators",
}


def model_card(cfg: CfgNode, shipment: Shipment, name: str) -> str:
    """The card, in Markdown.

    Args:
        cfg: the config that was exported.
        shipment: from `export_files`.
        name: of the model, the title.
    """
    sections = [
        f"# {name}\n\n{_summary(cfg)}",
        f"## Files\n\n{_files(shipment)}",
        f"## Against the eager model\n\n{_comparison(cfg, shipment)}",
        f"## Input and output\n\n{_interface(cfg)}",
        f"## Metrics\n\n{_metrics(Path(cfg.MODEL.WEIGHTS or 'none'))}",
        f"## Origin\n\n{_origin(cfg, shipment)}",
        f"## Licence\n\n{_LICENCE}",
        f"## Config\n\n```yaml\n{shipment.metadata['config.yaml'].rstrip()}\n```",
    ]
    return "\n\n".join(sections) + "\n"


_LICENCE = (
    "The code that made this model is under Apache-2.0. The weights are under what the licences of "
    "the images and of the weights they started from allow: name them here before you publish."
)


def _summary(cfg: CfgNode) -> str:
    parts = [cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.BACKBONE.NAME]
    if cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN":
        parts.append(cfg.MODEL.ROI_HEADS.NAME)
    return f"An object detector of Detectron2 and fsn_d2: {', '.join(parts)}."


def _files(shipment: Shipment) -> str:
    lines = ["| file | runs in | SHA-256 |", "|---|---|---|"]
    lines += [f"| {f.path.name} | {_NEEDS[f.format]} | `{f.sha256}` |" for f in shipment.files]
    carried = ", ".join(f"`{key}`" for key in shipment.metadata)
    return "\n".join(lines) + f"\n\nEvery file carries {carried}."


def _comparison(cfg: CfgNode, shipment: Shipment) -> str:
    images = shipment.files[0].difference
    return (
        f"Largest differences over {images.images} images of {cfg.DATASETS.TEST[0]} with "
        f"{images.detections} detections; time is the median.\n\n{shipment.table()}"
    )


def _interface(cfg: CfgNode) -> str:
    least, most = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    more = ""
    if cfg.MODEL.KEYPOINT_ON:
        points = cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS
        more += f"`keypoint_heatmaps` float32 [D, {points}, S, S], logits within the box; "
        more += f"`keypoints` float32 [D, {points}, 3], x, y in the same pixels and a score; "
    if cfg.MODEL.MASK_ON:
        more += "`masks` float32 [D, 1, S, S], 0..1, within the box; "
    return (
        f"In: `image`, float32 [3, height, width], {cfg.INPUT.FORMAT}, values 0..255, any size. In "
        f"the test the shorter side was scaled to {least} pixels, the longer to at most {most}.\n\n"
        "Out, for D detections by falling score: `boxes` float32 [D, 4], x1, y1, x2, y2 in pixels "
        f"of the image that went in; `classes` int64 [D]; {more}`scores` float32 [D], 0..1; "
        "`image_size` int64 [2], height and width."
    )


def _metrics(weights: Path) -> str:
    """The evaluation of these weights, from what their training left beside them."""
    iteration, values = _evaluation(weights)
    if not values:
        return "None were found beside the weights."
    rows = [f"| {name} | {value:.1f} |" for name, value in values.items()]
    head = f"After iteration {iteration}, on the test set named below (AP in percent):"
    return "\n".join([head, "", "| | |", "|---|---|", *rows])


def _evaluation(weights: Path) -> tuple[int, dict[str, float]]:
    """The iteration of its line in metrics.json, and metrics by name; none if there is no such."""
    metrics = weights.with_name("metrics.json")
    if not (metrics.is_file() and weights.is_file()):
        return -1, {}
    series = read_series(metrics)
    iteration = read_weights(weights).get("iteration")
    if not isinstance(iteration, int):  # weights of another origin
        return -1, {}
    trained, _ = series.get("total_loss", ([], []))
    # What is evaluated after the last iteration goes by the number that the next would have.
    candidates = [iteration] if max(trained, default=0) > iteration else [iteration, iteration + 1]
    for candidate in candidates:
        evaluated = {
            name: values[steps.index(candidate)]
            for name, (steps, values) in series.items()
            if "/AP" in name and candidate in steps
        }
        if evaluated:
            return candidate, evaluated
    return -1, {}


def _origin(cfg: CfgNode, shipment: Shipment) -> str:
    classes = json.loads(shipment.metadata["classes.json"])
    versions = json.loads(shipment.metadata["versions.json"])
    rows = {
        "classes": ", ".join(f"{number} {name}" for number, name in enumerate(classes)),
        "trained on": ", ".join(cfg.DATASETS.TRAIN),
        "tested on": ", ".join(cfg.DATASETS.TEST),
        "weights": cfg.MODEL.WEIGHTS,
        "SHA-256 of the weights": f"`{shipment.metadata['weights.sha256']}`",
        "versions": ", ".join(f"{package} {number}" for package, number in versions.items()),
    }
    return "\n".join(
        ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())]
    )
