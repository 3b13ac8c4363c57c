"""VOC folders with every kind of annotation that real sets have, valid, repairable and broken."""

from __future__ import annotations

import codecs
import os
import random
from pathlib import Path
from xml.sax.saxutils import escape

from .fuzzed_pictures import Picture, write_picture

__all__ = ["write_fuzzed_voc"]

IDS = ("000001", "my image", "größe", "图", "it's", "a.b", "UPPER", "-5", "000001 1", "%20")
CLASSES = ("cat", "dog", "Katze", "猫", "big dog", "Cat", "0", "a&b", "<x>", "🐈")
SUFFIXES = (".jpg", ".JPG", ".png", ".jpeg", ".bmp", ".tif", ".webp")
SOFT_NUMBERS = ("nan", "inf", "-inf", "1e308", "-1", "0", "500", " 7 ", "12.5", "1e1", "-1e308")
HARD_NUMBERS = ("", "one", "1,5", "0x10", "None", "12px", "--3", "1 2")
SIZES = ("", "0", "-3", "40.0", "forty", "9" * 5000, "٤٠", "77")

BROKEN_FILES = (
    b"", b"\xef\xbb\xbf", b"<annotation><object>", b"not xml", b"\x00\x00", b"<a></b>", b"<a/><b/>",
    b'<?xml version="1.0" encoding="no-such"?><a/>', b'<?xml version="1.0" encoding="utf-7"?><a/>',
    b"<a>\xff\xfe</a>", b"<a>&undefined;</a>", b"<a b=1/>", b"{}", b"<a>\x01</a>",
    b"<!DOCTYPE a [<!ENTITY x 'xxxxxxxxxx'>"
    + b"".join(b"<!ENTITY x%d '%s'>" % (i, (b"&x%d;" % (i - 1) if i else b"&x;") * 10)
               for i in range(12))
    + b"]><a>&x11;</a>",
)  # fmt: skip


def _corners(rng: random.Random) -> list[str]:
    left, top = rng.randint(1, 30), rng.randint(1, 20)
    corners = [left, top, left + rng.randint(1, 25), top + rng.randint(1, 20)]
    kind = rng.random()
    if kind < 0.08:  # drawn from the right to the left, or without a move of the mouse
        corners = rng.choice(([9, 9, 3, 20], [9, 9, 20, 3], [9, 9, 9, 20], [9, 9, 9, 9]))
    texts = [str(c) if rng.random() < 0.8 else f"{c}.5" for c in corners]
    if kind > 0.9:
        texts[rng.randrange(4)] = rng.choice(SOFT_NUMBERS)
    return texts


def _object(rng: random.Random, name: str, broken: float) -> str:
    keys, corners = ["xmin", "ymin", "xmax", "ymax"], _corners(rng)
    given = dict(zip(keys, corners, strict=True))
    tag = f"<name>{escape(name)}</name>"
    if rng.random() < broken:
        fault = rng.randrange(5)
        if fault == 0:
            tag = rng.choice(("", "<name/>", "<name>  </name>"))
        elif fault == 1:
            del given[rng.choice(keys)]
        elif fault == 2:
            given = {}
        else:
            given[rng.choice(keys)] = rng.choice(HARD_NUMBERS)
    rng.shuffle(keys)
    box = "".join(f"<{k}>{given[k]}</{k}>" for k in keys if k in given)
    box = f"<bndbox>{box}</bndbox>" if given or rng.random() < 0.5 else ""
    extra = rng.choice(("", "<pose>Left</pose>", "<difficult>1</difficult>", "<truncated/>"))
    part = rng.choice(("", "<part><name>head</name><bndbox><xmin>x</xmin></bndbox></part>"))
    return f"<object>{tag}{extra}{box}{part}</object>"


def _xml(rng: random.Random, image_id: str, objects: str, picture: Picture) -> bytes:
    width, height = map(str, picture.size or (40, 30))
    if rng.random() < 0.2:
        width = rng.choice(SIZES)
    size = f"<size><width>{width}</width><height>{height}</height></size>"
    file_name = rng.choice((f"{image_id}.jpg", "stale.jpg", "", "/etc/passwd", "x" * 300))
    text = (
        f"<annotation><filename>{escape(file_name)}</filename>{rng.choice((size, size, ''))}"
        f"{objects}</annotation>"
    )
    return rng.choice(
        (
            text.encode(),
            codecs.BOM_UTF8 + text.encode(),
            f'<?xml version="1.0" encoding="UTF-8"?>\r\n{text}'.encode(),
            '<?xml version="1.0" encoding="UTF-16"?>'.encode("utf-16") + text.encode("utf-16-le"),
            text.encode("ascii", "xmlcharrefreplace"),
        )
    )


def _break_file(rng: random.Random, path: Path) -> None:
    kind = rng.random()
    if kind < 0.3:
        path.unlink()
    elif kind < 0.4:
        path.unlink()
        rng.choice((path.mkdir, lambda: os.mkfifo(path)))()
    else:
        path.write_bytes(rng.choice(BROKEN_FILES))


def _split(rng: random.Random, ids: list[str]) -> bytes:
    lines = list(ids)
    if rng.random() < 0.3:
        lines += [*rng.choices(ids, k=2), "", "   "]
        rng.shuffle(lines)
    end = rng.choice(("\n", "\r\n", " \n"))
    text = end.join(lines) + rng.choice(("", end))
    return rng.choice((b"", b"", codecs.BOM_UTF8)) + text.encode()


BROKEN_SPLITS = (
    b"", b"\n\n  \n", b"\xff\xfe1\x000\x00", b"a\x00b\n", b"\x80\x81\n", b"\xef\xbb\xbf",
)  # fmt: skip


def write_fuzzed_voc(folder: Path, rng: random.Random) -> tuple[str, dict[str, Picture]]:
    """Writes a VOC folder; as `write_fuzzed_coco`.

    Returns:
        The set's spec, and for the id of every image the truth about its file.
    """
    level = rng.choice((0, 1, 1, 2, 2))
    root = folder / rng.choice(("VOC", "vöc 1"))
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / name).mkdir(parents=True)
    broken = 0.25 if level and rng.random() < 0.7 else 0.0
    faulty = rng.choice((0.05, 0.2)) if level == 2 else 0.0
    ids = rng.sample(IDS, rng.randint(1, 5))
    classes = rng.sample(CLASSES, rng.randint(1, 4))
    pictures = {}
    for image_id in ids:
        image = root / "JPEGImages" / f"{image_id}{rng.choice(SUFFIXES)}"
        picture = pictures[image_id] = write_picture(image, rng, broken)
        names = rng.choices(classes, k=rng.randint(0, 4))
        objects = "".join(_object(rng, name, faulty) for name in names)
        path = root / "Annotations" / f"{image_id}.xml"
        path.write_bytes(_xml(rng, image_id, objects, picture))
        if rng.random() < faulty:
            _break_file(rng, path)
    lines = ids + (["../outside"] if level and rng.random() < 0.2 else [])
    if level == 2 and rng.random() < 0.1:
        lines.append("x" * 300)
    split = root / "ImageSets" / "Main" / "some.txt"
    split.write_bytes(_split(rng, lines))
    if level == 2 and rng.random() < 0.05:
        split.write_bytes(rng.choice(BROKEN_SPLITS))
    return f"voc://{root}:some", pictures
