"""Small data sets on disk in both layouts, and what was registered of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image

WIDTH, HEIGHT = 40, 30  # pixels
WARNINGS = "fsn_d2.data.datasets"  # the logger of what cleaning found

VocBoxes = list[tuple[str, tuple[Any, Any, Any, Any]]]  # class name; xmin, ymin, xmax, ymax


def write_image(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT), **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)


def write_xml(root: Path, image_id: str, boxes: VocBoxes, **fields: Any) -> Path:
    size = fields.get("size", (WIDTH, HEIGHT))
    objects = "".join(
        f"<object><name>{name}</name><difficult>{fields.get('difficult', 0)}</difficult><bndbox>"
        f"<xmin>{b[0]}</xmin><ymin>{b[1]}</ymin><xmax>{b[2]}</xmax><ymax>{b[3]}</ymax>"
        "</bndbox></object>"
        for name, b in boxes
    )
    path = root / "Annotations" / f"{image_id}.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"<annotation><filename>{fields.get('filename', image_id + '.jpg')}</filename>"
        f"<size><width>{size[0]}</width><height>{size[1]}</height></size>{objects}</annotation>"
    )
    return path


def write_split(root: Path, split: str, ids: list[str]) -> None:
    folder = root / "ImageSets" / "Main"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{split}.txt").write_text("".join(f"{i}\n" for i in ids))


def write_voc(root: Path, split: str, images: dict[str, VocBoxes]) -> str:
    for image_id, boxes in images.items():
        write_image(root / "JPEGImages" / f"{image_id}.jpg")
        write_xml(root, image_id, boxes)
    write_split(root, split, list(images))
    return f"voc://{root}:{split}"


def coco_dict() -> dict[str, Any]:
    """Two images, ids with gaps, categories not in the order of their ids."""
    return {
        "images": [
            {"id": 7, "file_name": "one.jpg", "width": WIDTH, "height": HEIGHT},
            {"id": 9, "file_name": "two.jpg", "width": WIDTH, "height": HEIGHT},
        ],
        "categories": [{"id": 5, "name": "dog"}, {"id": 2, "name": "cat"}],
        "annotations": [
            {
                "id": 11,
                "image_id": 7,
                "category_id": 5,
                "bbox": [2.5, 3.0, 10.0, 8.0],
                "area": 70.0,
                "iscrowd": 0,
                "segmentation": [[2.5, 3.0, 12.5, 3.0, 12.5, 11.0]],
                "keypoints": [3, 4, 2],
                "num_keypoints": 1,
            },
            {
                "id": 12,
                "image_id": 9,
                "category_id": 2,
                "bbox": [0, 0, 20, 15],
                "area": 300,
                "iscrowd": 0,
            },
        ],
    }


def write_coco(folder: Path, data: Any, name: str = "boxes.json") -> str:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    for image in ("one.jpg", "two.jpg"):
        if not (folder / "images" / image).exists():
            write_image(folder / "images" / image)
    return f"coco://{path}:{folder / 'images'}"


def boxes_of(name: str) -> list[tuple[str, str, list[float]]]:
    """(image, class, xyxy box) of every registered annotation."""
    names = MetadataCatalog.get(name).thing_classes
    return [
        (
            Path(record["file_name"]).name,
            names[a["category_id"]],
            BoxMode.convert(list(map(float, a["bbox"])), a["bbox_mode"], BoxMode.XYXY_ABS),
        )
        for record in DatasetCatalog.get(name)
        for a in record["annotations"]
    ]


def perfect_ap(name: str) -> dict[str, float]:
    """COCO results of predictions that are the registered annotations themselves."""
    evaluator = COCOEvaluator(name, tasks=("bbox",), distributed=False, use_fast_impl=False)
    evaluator.reset()
    for record in DatasetCatalog.get(name):
        instances = Instances((record["height"], record["width"]))
        annotations = record["annotations"]
        instances.pred_boxes = Boxes(
            torch.tensor(
                [
                    BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS)
                    for a in annotations
                ],
                dtype=torch.float32,
            ).reshape(-1, 4)
        )
        instances.scores = torch.ones(len(annotations))
        instances.pred_classes = torch.tensor([a["category_id"] for a in annotations])
        evaluator.process([record], [{"instances": instances}])
    return evaluator.evaluate()["bbox"]
