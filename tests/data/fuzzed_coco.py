"""COCO jsons with every kind of annotation that real sets have, valid, repairable and broken."""

from __future__ import annotations

import codecs
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .fuzzed_pictures import Picture, write_picture

__all__ = ["write_fuzzed_coco"]

Entry = dict[str, Any]
NAN, INF = float("nan"), float("inf")
DROP = object()  # in place of a value: take the key out

NAMES = (
    "a.jpg", "b.JPG", "c d.png", "größe.jpg", "图.png", "sub/e.jpg", "sub/../f.jpg", "it's.jpg",
    "%20.png", "g.tiff", "no_suffix", "..h.jpg",
)  # fmt: skip
CLASSES = ("cat", "dog", "Katze", "猫", "big dog", "Cat", "0", "null", "🐈")

# Values that are repaired, or make an annotation be skipped.
SOFT: dict[str, tuple[Any, ...]] = {
    "area": (DROP, None, "12", NAN, -5, 0, 1e12, [], True, 50),
    "iscrowd": (DROP, None, 0, False, 1, True, 1.0),
    "id": (DROP, 1, 0, -3, "x", None, 2**60, 1.5),
    "ignore": (0, False, None, "", []),
    "keypoints": ([1, 2, 2], [1, 2], "abc", [1, None, 2], None, 7, {}, []),
    "segmentation": (
        [[1, 1, 9, 1, 9, 9]], [[1, 1, 9, 1, 9]], [[1, 1]], [1, 1, 9, 1, 9, 9], "abc", [], None,
        [["1", "1", "9", "1", "9", "9"]], [[1, 1, 9, 1, 9, 9], [1]], [None], [[1, 1, 9, 1, 9, NAN]],
        {"size": [30, 40], "counts": [600, 600]}, {"size": [30, 40], "counts": [1, -1]},
        {"size": [30, 40]}, {"counts": [1]}, {"size": [30, 40], "counts": ""}, {"size": None},
        {"size": [30, 40], "counts": "zzzz"}, {"size": ["30", "40"], "counts": [[1]]}, 12, True,
    ),
    "attributes": ({"occluded": True}, None),
    "image_id": (987654, "nobody", -1),
}  # fmt: skip

# Values that no reader can make sense of: the set is refused.
HARD: dict[str, dict[str, tuple[Any, ...]]] = {
    "images": {
        "id": (DROP, None, [1], {}, 1.5, True, NAN),
        "file_name": (DROP, None, 5, ["a.jpg"], {}, False),
    },
    "categories": {
        "id": (DROP, None, [2], {}, 0.5, False),
        "name": (DROP, None, [], {}, 1.5, True, "", "  ", "\ud800"),
    },
    "annotations": {
        "image_id": (DROP, None, [7], {}, 7.0, True),
        "category_id": (DROP, None, 99, "99", [1], {}, 1.0, True),
        "bbox": (
            DROP, None, [], [1, 2, 3], [1, 2, 3, 4, 5], [1, 2, 3, "4"], [1, 2, 3, None], "1,2,3,4",
            {"x": 1}, [[1, 2, 3, 4]], [1, 2, 3, True], 7, list(range(1000)),
        ),
        "ignore": (1, True, "yes"),
        "iscrowd": (2, "0", -1, [1], NAN, "no"),
    },
}  # fmt: skip

EXTREME_BOXES = (
    [5, 5, 0, 10], [5, 5, 10, 0], [5, 5, -3, 10], [5, 5, 10, -1], [5, NAN, 10, 10],
    [INF, 5, 10, 10], [5, 5, INF, 10], [-INF, 5, 10, 10], [5, 5, 10**400, 3], [500, 5, 10, 10],
    [5, -20, 10, 10], [-20, 5, 10, 10], [5, 500, 10, 10], [1e308, 5, 1e308, 10], [0, 0, 0, 0],
)  # fmt: skip


def _box(rng: random.Random) -> list[float]:
    kind = rng.random()
    if kind < 0.15:
        return list(rng.choice(EXTREME_BOXES))
    if kind < 0.25:  # sticks out, by a rounding or by a lot
        return [rng.choice((-0.05, -10)), rng.choice((-0.05, -8)), rng.choice((20, 1e6)), 25]
    whole = rng.random() < 0.5
    values = [rng.uniform(0, 25), rng.uniform(0, 20), rng.uniform(0.1, 20), rng.uniform(0.1, 20)]
    return [float(round(v)) or 1 if whole else v for v in values]


def _ids(rng: random.Random, count: int) -> list[Any]:
    kind = rng.random()
    if kind < 0.7:
        return rng.sample(range(100), count)
    if kind < 0.8:
        return [f"n{i}" for i in rng.sample(range(100), count)]
    if kind < 0.9:
        return [i if rng.random() < 0.5 else f"{i}" for i in rng.sample(range(100), count)]
    return rng.sample([-5, 0, 2**40, 2**62, 2**70, 3, 9, 10**30, -(2**65), 12, 77, 5], count)


def _image(rng: random.Random, image_id: Any, name: str, picture: Picture) -> Entry:
    width, height = picture.size or (40, 30)
    image = {"id": image_id, "file_name": name, "width": width, "height": height}
    if rng.random() < 0.3:
        key = rng.choice(("width", "height"))
        image[key] = rng.choice((DROP, None, 77, "40", -1, 0, 40.0, [], NAN))
    return _without_dropped(image)


def _annotation(rng: random.Random, number: int, image_id: Any, category_id: Any) -> Entry:
    box = _box(rng)
    annotation = {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": box,
        "iscrowd": 0,
    }
    if rng.random() < 0.5:
        annotation["area"] = box[2] * box[3] if abs(box[2]) < 1e300 else 1.0
    return annotation


def _without_dropped(entry: Entry) -> Entry:
    return {key: value for key, value in entry.items() if value is not DROP}


def _soften(rng: random.Random, coco: Entry) -> None:
    for annotation in coco["annotations"]:
        for key, values in SOFT.items():
            if rng.random() < (0.05 if key == "image_id" else 0.15):
                annotation[key] = rng.choice(values)
    coco["annotations"] = [_without_dropped(a) for a in coco["annotations"]]


def _break_value(rng: random.Random, coco: Entry) -> None:
    name = rng.choice(list(HARD))
    if coco.get(name) and isinstance(coco[name], list):
        index = rng.randrange(len(coco[name]))
        key, values = rng.choice(list(HARD[name].items()))
        if isinstance(coco[name][index], dict):
            coco[name][index] = _without_dropped({**coco[name][index], key: rng.choice(values)})


def _break_entry(rng: random.Random, coco: Entry) -> None:
    name = rng.choice(list(HARD))
    if coco.get(name) and isinstance(coco[name], list):
        coco[name][rng.randrange(len(coco[name]))] = rng.choice((None, 7, "entry", [], {}))


def _repeat_entry(rng: random.Random, coco: Entry) -> None:
    name = rng.choice(("images", "categories"))
    if coco.get(name) and isinstance(coco[name], list):
        coco[name].append(rng.choice(coco[name]))


def _break_list(rng: random.Random, coco: Entry) -> None:
    coco[rng.choice(list(HARD))] = rng.choice((None, {}, "list", 5))


def _empty_list(rng: random.Random, coco: Entry) -> None:
    coco[rng.choice(list(HARD))] = []


def _drop_list(rng: random.Random, coco: Entry) -> None:
    coco.pop(rng.choice(list(HARD)), None)


def _estrange_ids(rng: random.Random, coco: Entry) -> None:
    annotations = coco.get("annotations")
    for annotation in annotations if isinstance(annotations, list) else ():
        if isinstance(annotation, dict):
            annotation["image_id"] = f"image {annotation.get('image_id')}"


BREAK: tuple[Callable[[random.Random, Entry], None], ...] = (
    *(_break_value,) * 8,
    _break_entry,
    _repeat_entry,
    _break_list,
    _empty_list,
    _drop_list,
    _estrange_ids,
)

BROKEN_FILES = (
    b"", b"\xef\xbb\xbf", b"{", b"[]", b"null", b'"coco"', b"7", b"\x00\x01\x02", b"not json",
    b"[" * 100_000, b'{"images": [', b'{"a": 1}{"b": 2}', b"\xff\xfe{", b"{'images': []}",
    b'{"images": ' + b"9" * 5000 + b"}",
)  # fmt: skip


def _file_content(rng: random.Random, coco: Entry) -> bytes:
    text = json.dumps(coco, indent=rng.choice((None, 2)), ensure_ascii=rng.random() < 0.5)
    encoding = rng.choices(
        (("utf-8", b""), ("utf-8", codecs.BOM_UTF8), ("utf-16-le", codecs.BOM_UTF16_LE)), (8, 1, 1)
    )[0]
    return encoding[1] + text.encode(encoding[0], "surrogatepass")


def write_fuzzed_coco(folder: Path, rng: random.Random) -> tuple[str, dict[str, Picture]]:
    """Writes a json and its images below a folder.

    A fifth of the sets has nothing wrong by intention, two fifths have entries that are repaired or
    skipped, two fifths are broken in up to six places.

    Returns:
        The set's spec, and for every image name that leads somewhere the truth about its file.
    """
    level = rng.choice((0, 1, 1, 2, 2))
    root = folder / "images"
    root.mkdir(parents=True)
    (root / "sub").mkdir()
    broken = 0.25 if level and rng.random() < 0.7 else 0.0
    names = rng.sample(NAMES, rng.randint(1, 5))
    paths = {name: Path(os.path.normpath(root / name)) for name in names}
    pictures = {name: write_picture(path, rng, broken) for name, path in paths.items()}
    if level and rng.random() < 0.2:
        outside = write_picture(folder / "out.jpg", rng, 0)
        name = rng.choice(("../out.jpg", str(folder / "out.jpg"), "sub/../../out.jpg"))
        names.append(name)
        pictures[name] = Picture(outside.size, outside.decodes, "outside")
    image_ids = _ids(rng, len(names))
    category_ids = _ids(rng, rng.randint(1, 4))
    classes = rng.sample(CLASSES, len(category_ids))
    coco: Entry = {
        "info": {"year": 2024},
        "images": [_image(rng, i, n, pictures[n]) for i, n in zip(image_ids, names, strict=True)],
        "categories": [{"id": i, "name": c} for i, c in zip(category_ids, classes, strict=True)],
    }
    owners = [i for i in image_ids for _ in range(rng.randint(0, 5))]
    coco["annotations"] = [
        _annotation(rng, number, owner, rng.choice(category_ids))
        for number, owner in enumerate(owners, start=1)
    ]
    rng.shuffle(coco["annotations"])
    if level:
        _soften(rng, coco)
    if level == 2:
        for _ in range(rng.randint(1, 6)):
            rng.choice(BREAK)(rng, coco)
    path = folder / rng.choice(("boxes.json", "böxes 1.json"))
    whole = level < 2 or rng.random() < 0.9
    path.write_bytes(_file_content(rng, coco) if whole else rng.choice(BROKEN_FILES))
    return f"coco://{path}:{root}", pictures
