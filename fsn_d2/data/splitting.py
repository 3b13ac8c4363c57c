"""Splitting one set into a part to train on and a part to test on."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from .source import Coco

__all__ = ["split_coco"]


def split_coco(
    coco: Coco, fraction: float, *, seed: int, together: Iterable[Sequence[str]] = ()
) -> tuple[Coco, Coco]:
    """Splits by images, at random.

    Args:
        coco: a cleaned set with annotations.
        fraction: of the images that go to the second part, more than 0 and less than 1; both parts
            get one at least.
        seed: the same seed and data give the same parts.
        together: groups of file names that must not be torn apart, such as copies of one image.

    Returns:
        Two sets in the COCO form with the same categories.

    Raises:
        ValueError: the fraction is out of range, or there are fewer than 2 groups of images.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"--test-fraction is {fraction}, expected more than 0 and less than 1.")
    groups = _groups([image["file_name"] for image in coco["images"]], together)
    if len(groups) < 2:
        raise ValueError(
            f"{len(coco['images'])} images cannot be split in two; give a test set by --test."
        )
    random.Random(seed).shuffle(groups)
    count = min(max(1, round(fraction * len(groups))), len(groups) - 1)
    second = {name for group in groups[:count] for name in group}
    return _part(coco, second, inside=False), _part(coco, second, inside=True)


def _groups(names: Sequence[str], together: Iterable[Sequence[str]]) -> list[list[str]]:
    first = {name: group[0] for group in together for name in group}
    groups: dict[str, list[str]] = {}
    for name in sorted(set(names)):
        groups.setdefault(first.get(name, name), []).append(name)
    return list(groups.values())


def _part(coco: Coco, names: set[str], *, inside: bool) -> Coco:
    images = [image for image in coco["images"] if (image["file_name"] in names) == inside]
    ids = {image["id"] for image in images}
    annotations = [a for a in coco["annotations"] if a["image_id"] in ids]
    return {**coco, "images": images, "annotations": annotations}
