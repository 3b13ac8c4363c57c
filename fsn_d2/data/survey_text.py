"""A survey as text to read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from .cleaning import describe
from .survey import SetSurvey, Survey
from .wording import shorten

__all__ = ["survey_text"]

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
NAMES = 20  # images that are named per finding


def survey_text(survey: Survey, min_size: int, max_size: int) -> str:
    """Describes all sets, then what concerns them together.

    Args:
        survey: what to describe.
        min_size: of the network's input: the shorter side is scaled to it, ...
        max_size: ... unless the longer one would exceed this.
    """
    lines: list[str] = []
    for role, sets in (("Training set", survey.train), ("Test set", survey.test)):
        for each in sets:
            lines += _describe_set(f"{role} {each.name}", each, survey.classes, min_size, max_size)
    if survey.shared:
        pairs = [f"{a} = {b}" if a != b else a for a, b in survey.shared]
        what = "images that are in a training and a test set, byte for byte"
        lines.append(f"Suspicious: {what}: {len(pairs)} ({shorten(pairs, NAMES)})")
    for group in survey.alike:
        lines.append(f"Suspicious: class names that are nearly the same: {shorten(group)}")
    return "\n".join(lines)


def _describe_set(
    title: str, survey: SetSurvey, classes: Sequence[str], min_size: int, max_size: int
) -> Iterable[str]:
    yield title
    yield (f"  {len(survey.image_sizes)} images, {len(survey.boxes)} boxes, {len(classes)} classes")
    if len(survey.image_sizes):
        yield from _class_table(survey, classes)
        yield f"  {'quantiles, sizes in pixels':34}" + "".join(f"{q:8.0%}" for q in QUANTILES)
        rows = _measures(survey, min_size, max_size)
        yield from (f"  {name:34}{_quantiles(values)}" for name, values in rows)
    yield from (f"  Suspicious: {text}" for text in describe(survey.findings, NAMES))
    if not survey.findings:
        yield "  Nothing suspicious."
    yield ""


def _measures(survey: SetSurvey, min_size: int, max_size: int) -> Iterable[tuple[str, np.ndarray]]:
    (widths, heights), scales = survey.image_sizes.T, survey.scales(min_size, max_size)
    yield "image width", widths
    yield "image height", heights
    yield "  as the network sees it, width", widths * scales
    yield "  as the network sees it, height", heights * scales
    yield "boxes per image", np.bincount(survey.box_images, minlength=len(scales))
    if len(survey.boxes):
        yield "box side, sqrt(width x height)", np.sqrt(survey.boxes.prod(1))
        yield "  as the network sees it", survey.box_sides(min_size, max_size)
        yield "box height / width", survey.ratios


def _class_table(survey: SetSurvey, classes: Sequence[str]) -> Iterable[str]:
    width = max([5, *map(len, classes)])
    images = len(survey.image_sizes)
    yield f"  {'class':{width}}{'boxes':>9}{'on images':>12}{'not on':>9}"
    for label, name in enumerate(classes):
        number, shown = int((survey.box_classes == label).sum()), survey.images_with(label)
        yield f"  {shorten([name]):{width}}{number:9}{shown:12}{images - shown:9}"


def _quantiles(values: np.ndarray) -> str:
    return "".join(f"{value:8.3g}" for value in np.quantile(values, QUANTILES))
