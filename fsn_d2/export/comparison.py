"""Whether an exported model detects what the eager one does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .tracing import detect, output_names

_ANOTHER_CLASS = 1e6  # as far, in pixels, as a detection of another class counts


@dataclass
class ExportDifference:
    """How far an exported model is from the eager one, at worst over some images.

    Attributes:
        images: compared.
        detections: of the eager model, in all.
        counts_differ: images on which the numbers of detections differ.
        boxes: largest difference of a coordinate, in pixels; as for scores and masks, inf where a
            number stands against none (NaN).
        scores: largest difference of a score.
        classes: detections whose class differs.
        masks: largest difference of a mask's probability.
        keypoints: largest difference of a keypoint's place, in pixels, or of its score.
        sizes_differ: images of which the models give another `image_size`.
    """

    images: int = 0
    detections: int = 0
    counts_differ: int = 0
    boxes: float = 0.0
    scores: float = 0.0
    classes: int = 0
    masks: float = 0.0
    keypoints: float = 0.0
    sizes_differ: int = 0

    def within(self, boxes: float = 0.01, scores: float = 1e-4) -> bool:
        """Whether the models agree: same detections and sizes, boxes and scores in these bounds.

        Masks are held to 10 times the bound of the scores, keypoints to that of the boxes.
        """
        same = self.counts_differ == 0 and self.classes == 0 and self.sizes_differ == 0
        near = max(self.boxes, self.keypoints) <= boxes and self.scores <= scores
        return same and near and self.masks <= 10 * scores

    def add(self, eager: dict[str, Tensor], exported: dict[str, Tensor]) -> None:
        """Takes in one image's detections, by output name."""
        count = len(eager["scores"])
        self.images += 1
        self.detections += count
        self.sizes_differ += int(eager["image_size"].tolist() != exported["image_size"].tolist())
        if count != len(exported["scores"]):
            self.counts_differ += 1
        elif count:
            partner = _partners(eager, exported)
            self.classes += int((eager["classes"] != exported["classes"][partner]).sum())
            for name in ("boxes", "scores", "masks", "keypoints"):
                if name in eager:
                    apart = _apart(eager[name], exported[name][partner])
                    setattr(self, name, max(getattr(self, name), apart))


def _apart(eager: Tensor, exported: Tensor) -> float:
    """Largest difference; NaN is equal to NaN, and infinitely far from a number."""
    alike = (eager == exported) | (eager.isnan() & exported.isnan())
    apart = (eager - exported).abs().nan_to_num(nan=torch.inf, posinf=torch.inf)
    return float(apart.masked_fill(alike, 0).max())


def _partners(eager: dict[str, Tensor], exported: dict[str, Tensor]) -> Tensor:
    """For each detection of one model that of the other which it is, int64 Tensor[D].

    They come by falling score, in which two that are equal up to rounding can change places.
    """
    apart = (eager["boxes"][:, None] - exported["boxes"]).abs().amax(dim=2)
    apart += (eager["scores"][:, None] - exported["scores"]).abs()
    apart += _ANOTHER_CLASS * (eager["classes"][:, None] != exported["classes"])
    nearest = apart.nan_to_num(nan=torch.inf, posinf=torch.inf).argmin(dim=1)
    in_order = torch.arange(len(nearest))
    return nearest if nearest.sort().values.equal(in_order) else in_order


@torch.no_grad()
def compare_export(
    model: nn.Module, exported: Callable[[Tensor], Sequence[Tensor]], images: Iterable[Tensor]
) -> ExportDifference:
    """Runs both models on each image and measures the difference.

    Args:
        model: the eager one; is put in evaluation mode.
        exported: gives for an image what docs/export.md lists, on any device.
        images: float32 Tensor[3, H, W] each, 0..255, in the channel order of INPUT.FORMAT.
    """
    model.eval()
    worst = ExportDifference()
    for image in images:
        found = detect(model, [{"image": image}])[0]["instances"].to("cpu")
        fields = {name.removeprefix("pred_"): value for name, value in found.get_fields().items()}
        fields["boxes"] = fields["boxes"].tensor
        fields["image_size"] = torch.tensor(found.image_size)
        answer = (value.cpu() for value in exported(image))
        worst.add(fields, dict(zip(output_names(found), answer, strict=True)))
    return worst
