"""The one form in which data is read, whatever it looks like on disk: COCO's, and its origin."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .problems import Problem
from .specs import DatasetSpec

__all__ = ["Coco", "Source"]

Coco = dict[str, Any]  # a COCO json, or one entry of its lists


@dataclass(frozen=True)
class Source:
    """What was read from disk for one spec, before any cleaning.

    Attributes:
        spec: the spec it was read for.
        coco: the set in COCO's json form; ids and boxes as they came. Entries with a problem are
            left out.
        image_root: the folder that image file names are relative to.
        used: for each class that has a box, a file that names it.
        repeated: image ids that the split file holds more than once (VOC).
        outside: image ids whose annotation lies outside the folder of annotations (VOC); not read.
        problems: what has to be corrected before the set can be used.
        classes_known: nothing that could name a further class was left out.
        verbatim: the file on disk holds `coco` in a way that pycocotools reads.
    """

    spec: DatasetSpec
    coco: Coco
    image_root: Path
    used: dict[str, Path]
    repeated: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    classes_known: bool = True
    verbatim: bool = True

    @property
    def listed(self) -> list[str]:
        """Class names in the order of their category ids, numbers before text."""
        categories = sorted(
            self.coco["categories"], key=lambda c: (isinstance(c["id"], str), c["id"])
        )
        return [str(c["name"]) for c in categories]
