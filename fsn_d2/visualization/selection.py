"""A figure of what FSN did for one detection: which maps its bins read, and what that changed."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import detection_utils
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling import GeneralizedRCNN, build_model
from detectron2.structures import Boxes
from torch import Tensor

from ..data.mapper import read_image
from ..engine.weights import load_weights
from ..modeling.poolers import Reading, SelectiveROIPooler
from ..modeling.roi_heads.fsn_heads import FSNROIHeads

CONTEXT = 0.4  # of the box's longer side, shown around it


class Explanation(NamedTuple):
    """One detection and how its feature came to be.

    Attributes:
        image: RGB, uint8 [H, W, 3].
        box: (x1, y1, x2, y2), pixels of the image.
        label, score: what it was taken for.
        reading: of its box as the RoI, from `SelectiveROIPooler.read`; one RoI.
        pooler: that read it.
    """

    image: np.ndarray
    box: np.ndarray
    label: str
    score: float
    reading: Reading
    pooler: SelectiveROIPooler


@torch.no_grad()
def explain_detection(
    cfg: CfgNode, image_file: str | Path, number: int, classes: list[str]
) -> Explanation:
    """Detects on an image and reads again, with a detection's box as the RoI.

    Args:
        cfg: of a model with FSNROIHeads whose MODEL.WEIGHTS is trained.
        image_file: path.
        number: of the detection, from 0, the best first.
        classes: their names.

    Raises:
        FileNotFoundError: the weights or the image cannot be read.
        ValueError: the model has other heads, or fewer detections.
    """
    model = _build(cfg)
    heads = model.roi_heads
    try:
        image = read_image(str(image_file), cfg.INPUT.FORMAT, cfg.INPUT.MAX_PIXELS)
    except Exception as error:  # Pillow's decoders raise nearly any type on a broken file
        raise FileNotFoundError(f"{image_file} cannot be read ({error}).") from error
    resize = ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
    resized = resize.get_transform(image).apply_image(image)
    sample = {"image": torch.as_tensor(np.ascontiguousarray(resized.transpose(2, 0, 1)))}
    images = model.preprocess_image([sample])
    features = model.backbone(images.tensor)
    proposals, _ = model.proposal_generator(images, features)
    (found,), _ = heads(images, features, proposals)
    if not 0 <= number < len(found):
        raise ValueError(f"{image_file} has {len(found)} detections, there is no number {number}.")
    maps = heads.box_banks({k: features[k] for k in heads.box_in_features}, images.image_sizes)
    box = found.pred_boxes.tensor[number : number + 1]
    reading = heads.box_pooler.read([maps[k] for k in heads.box_in_features], [Boxes(box)])
    height, width = resized.shape[:2]
    scale = np.array([image.shape[1] / width, image.shape[0] / height] * 2)
    return Explanation(
        detection_utils.convert_image_to_rgb(image, cfg.INPUT.FORMAT),
        box[0].cpu().numpy() * scale,
        classes[int(found.pred_classes[number])],
        float(found.scores[number]),
        reading,
        heads.box_pooler,
    )


def _build(cfg: CfgNode) -> GeneralizedRCNN:
    model = build_model(cfg)
    if not isinstance(getattr(model, "roi_heads", None), FSNROIHeads):
        raise ValueError(
            f"MODEL.ROI_HEADS.NAME is {cfg.MODEL.ROI_HEADS.NAME!r}; only heads with FSN box "
            "features, as FSNROIHeads, read banks."
        )
    load_weights(model, cfg.MODEL.WEIGHTS)
    return model.eval()


def magnitude(feature: Tensor) -> np.ndarray:
    """Length of the channel vector of every bin: [1, C, PH, PW] to [PH, PW]."""
    return feature[0].norm(dim=0).cpu().numpy()


def change(reading: Reading) -> np.ndarray:
    """How much the banks changed every bin: |refined - plain| / |plain|, [PH, PW]."""
    plain = magnitude(reading.roi)
    return magnitude(reading.refined - reading.roi) / np.maximum(plain, 1e-6)


def save_explanation(explanation: Explanation, path: str | Path) -> None:
    """Saves the figure: the RoI with its bins' sub-region maps, the ratio map, and the features.

    Args:
        explanation: from `explain_detection`.
        path: PNG to write.
    """
    from matplotlib.figure import Figure

    reading, pooler = explanation.reading, explanation.pooler
    figure = Figure(figsize=(15, 7.5), layout="constrained")
    axes = figure.subplots(2, 3)
    title = f"{explanation.label}, score {explanation.score:.2f}"
    figure.suptitle(title, parse_math=False)  # a class may have a "$" in its name
    index = dict(zip(_banks(pooler), reading.bank_index, strict=True))
    _show_maps(axes[0, 0], explanation, index.get("sub_region"))
    _show_ratio(axes[0, 1], explanation, index.get("ratio"))
    attention = torch.stack([torch.zeros_like(reading.roi), *reading.attention]).sum(dim=0)
    plain, refined = magnitude(reading.roi), magnitude(reading.refined)
    most = max(plain.max(), refined.max())
    panels = [
        (axes[0, 2], magnitude(attention), None, "summed attention, length per bin"),
        (axes[1, 0], plain, most, "plain pooling, length per bin"),
        (axes[1, 1], refined, most, "refined feature, length per bin"),
        (axes[1, 2], change(reading), None, "change by the banks, relative"),
    ]
    for axis, values, end, title in panels:
        shown = axis.imshow(values, cmap="viridis", vmin=0, vmax=end)
        axis.set(title=title, xticks=[], yticks=[])
        figure.colorbar(shown, ax=axis, shrink=0.8)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def _banks(pooler: SelectiveROIPooler) -> list[str]:
    """In the order in which they are read."""
    names = ["sub_region"] if pooler.sub_region != "none" else []
    return [*names, "ratio"] if pooler.ratios else names


def _show_maps(axis, explanation: Explanation, index: Tensor | None) -> None:
    """The image around the box; every bin in the colour and with the number of its map."""
    from matplotlib import colormaps

    x1, y1, x2, y2 = explanation.box
    rows, columns = explanation.pooler.output_size
    axis.imshow(explanation.image)
    margin = CONTEXT * max(x2 - x1, y2 - y1)
    height, width = explanation.image.shape[:2]
    axis.set(
        xlim=(max(x1 - margin, 0), min(x2 + margin, width)),
        ylim=(min(y2 + margin, height), max(y1 - margin, 0)),
        xticks=[],
        yticks=[],
        title="no sub-region bank" if index is None else "sub-region map that each bin reads",
    )
    for row in range(rows):
        for column in range(columns):
            number = 0 if index is None else int(index[0, row, column])
            left = x1 + column * (x2 - x1) / columns
            top = y1 + row * (y2 - y1) / rows
            bin_width, bin_height = (x2 - x1) / columns, (y2 - y1) / rows
            color = colormaps["tab10"](number % 10)
            axis.add_patch(_rectangle(left, top, bin_width, bin_height, color))
            if index is not None:
                axis.text(
                    left + bin_width / 2,
                    top + bin_height / 2,
                    str(number),
                    ha="center",
                    va="center",
                    color="white",
                    fontsize=8,
                )


def _rectangle(left: float, top: float, width: float, height: float, color):
    from matplotlib.patches import Rectangle

    return Rectangle((left, top), width, height, facecolor=(*color[:3], 0.35), edgecolor=color)


def _show_ratio(axis, explanation: Explanation, index: Tensor | None) -> None:
    """The RoI's ratio among those of the maps, on the logarithmic scale that decides."""
    x1, y1, x2, y2 = explanation.box
    own = (y2 - y1) / max(x2 - x1, 1e-6)
    ratios = explanation.pooler.ratios
    axis.set_xscale("log", base=2)
    axis.set(yticks=[], xlabel="height / width")
    axis.axvline(own, color="black")
    axis.annotate(f"this RoI: {own:.2f}", (own, 0.85), xytext=(6, 0), textcoords="offset points")
    if index is None:
        axis.set_title("no aspect-ratio bank")
        return
    chosen = int(index[0, 0, 0])
    for number, ratio in enumerate(ratios):
        is_read = number == chosen
        axis.plot([ratio], [0.4], "o", markersize=16 if is_read else 9, color=f"C{number}")
        axis.annotate(f"{ratio:g}", (ratio, 0.25), ha="center")
    for low, high in itertools.pairwise(sorted(ratios)):
        axis.axvline((low * high) ** 0.5, color="gray", linestyle=":")
    axis.set(ylim=(0, 1), title=f"aspect-ratio map: {ratios[chosen]:g}")
