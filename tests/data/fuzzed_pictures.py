"""Image files of every sort that data sets hold, good and broken, with the truth about each."""

from __future__ import annotations

import io
import os
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

__all__ = ["MAX_PIXELS", "MAX_SIDE", "Picture", "write_picture"]

MAX_PIXELS = 1_000_000  # INPUT.MAX_PIXELS of the sets
MAX_SIDE = 64  # INPUT.MAX_SIZE_TRAIN and _TEST


@dataclass(frozen=True)
class Picture:
    """What is true of a file.

    Attributes:
        size: width and height as it is seen, turned by its EXIF orientation; None: nobody knows.
        decodes: to the last pixel.
        state: why it cannot be used, if so: "unreadable", "too large", "too narrow", "outside".
    """

    size: tuple[int, int] | None
    decodes: bool = True
    state: str | None = None


UNREADABLE = Picture(None, False, "unreadable")
MODES = ("RGB", "L", "RGBA", "LA", "P", "1", "CMYK", "I;16")
SUFFIX_OF = {"JPEG": ".jpg", "PNG": ".png", "BMP": ".bmp", "TIFF": ".tif", "WEBP": ".webp"}


def _pixels(rng: random.Random, size: tuple[int, int], mode: str) -> Image.Image:
    noise = np.frombuffer(rng.randbytes(size[0] * size[1] * 3), np.uint8)
    image = Image.fromarray(noise.reshape(size[1], size[0], 3))
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    return image.convert(mode)


def _encode(rng: random.Random, size: tuple[int, int], **options: object) -> bytes:
    mode = rng.choice(MODES)
    kinds = {"CMYK": ("JPEG", "TIFF"), "RGB": tuple(SUFFIX_OF), "L": ("JPEG", "PNG", "BMP")}
    buffer = io.BytesIO()
    image = _pixels(rng, size, mode)
    image.save(buffer, rng.choice(kinds.get(mode, ("PNG",))), **options)
    return buffer.getvalue()


def _good(path: Path, rng: random.Random) -> Picture:
    size = rng.choice(((40, 30), (30, 40), (1, 1), (64, 3), (17, 90), (50, 50)))
    path.write_bytes(_encode(rng, size))  # the suffix may be another format's
    return Picture(size)


def _turned(path: Path, rng: random.Random) -> Picture:
    exif = Image.Exif()
    exif[0x0112] = orientation = rng.randint(1, 8)
    buffer = io.BytesIO()
    _pixels(rng, (40, 30), "RGB").save(buffer, rng.choice(("JPEG", "PNG", "TIFF")), exif=exif)
    path.write_bytes(buffer.getvalue())
    return Picture((30, 40) if orientation >= 5 else (40, 30))


def _turned_behind_the_pixels(path: Path, rng: random.Random) -> Picture:
    """A PNG whose EXIF follows the pixels, as the format allows."""
    buffer = io.BytesIO()
    _pixels(rng, (40, 30), "RGB").save(buffer, "PNG")
    exif = Image.Exif()
    exif[0x0112] = orientation = rng.randint(1, 8)
    chunk = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    data, end = buffer.getvalue()[:-12], buffer.getvalue()[-12:]
    late = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    path.write_bytes(data + late + end)
    return Picture((30, 40) if orientation >= 5 else (40, 30))


def _broken_exif(path: Path, rng: random.Random) -> Picture:
    buffer = io.BytesIO()
    exif = b"Exif\0\0" + rng.randbytes(30)
    _pixels(rng, (40, 30), "RGB").save(buffer, "JPEG", exif=exif)
    path.write_bytes(buffer.getvalue())
    return Picture((40, 30))


def _cut_off(path: Path, rng: random.Random) -> Picture:
    buffer = io.BytesIO()
    _pixels(rng, (40, 30), "RGB").save(buffer, rng.choice(("JPEG", "PNG", "BMP")))
    data = buffer.getvalue()
    path.write_bytes(data[: int(len(data) * rng.uniform(0.6, 0.9))])
    return Picture((40, 30), decodes=False)


def _bomb(path: Path, rng: random.Random) -> Picture:
    """A PNG of a few bytes whose header claims a million pixels a side."""
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", 10**6, 10**6, 8, 2, 0, 0, 0), b"IDAT" + b"x" * 9)
    parts = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return Picture((10**6, 10**6), False, "too large")


def _large(path: Path, rng: random.Random) -> Picture:
    Image.new("L", (1001, 1000)).save(path, "PNG")
    return Picture((1001, 1000), state="too large")


def _narrow(path: Path, rng: random.Random) -> Picture:
    sides = [1, 2 * MAX_SIDE + rng.choice((-1, 0, 5, 500))]
    rng.shuffle(sides)
    path.write_bytes(_encode(rng, (sides[0], sides[1])))
    return Picture((sides[0], sides[1]), state="too narrow" if max(sides) >= 2 * MAX_SIDE else None)


def _bytes(path: Path, rng: random.Random) -> Picture:
    path.write_bytes(
        rng.choice(
            (
                b"",
                rng.randbytes(200),
                b"<html><body>404 Not Found</body></html>",
                b"\xff\xd8\xff\xe0",
                b"\x89PNG\r\n\x1a\n",
                b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 30\n%%EndComments\n%%EOF\n",
            )
        )
    )
    return UNREADABLE


def _absent(path: Path, rng: random.Random) -> Picture:
    return UNREADABLE


def _folder(path: Path, rng: random.Random) -> Picture:
    path.mkdir()
    return UNREADABLE


def _pipe(path: Path, rng: random.Random) -> Picture:
    os.mkfifo(path)
    return UNREADABLE


def _dangling_link(path: Path, rng: random.Random) -> Picture:
    path.symlink_to("nowhere.jpg")
    return UNREADABLE


def _link_out(path: Path, rng: random.Random) -> Picture:
    outside = path.parents[2] / f"outside_{path.name}"  # above any subfolder of the images
    outside.write_bytes(_encode(rng, (40, 30)))
    path.symlink_to(outside)
    return Picture((40, 30), state="outside")


BROKEN: tuple[Callable[[Path, random.Random], Picture], ...] = (
    _cut_off,
    _cut_off,
    _bomb,
    _large,
    _narrow,
    _bytes,
    _bytes,
    _absent,
    _absent,
    _folder,
    _pipe,
    _dangling_link,
    _link_out,
)


def write_picture(path: Path, rng: random.Random, broken: float) -> Picture:
    """Writes one file.

    Args:
        path: of the file; its folder is made.
        rng: what everything follows from.
        broken: probability of one that is not a whole image.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if rng.random() < broken:
        return rng.choice(BROKEN)(path, rng)
    return rng.choice((_good, _good, _turned, _turned_behind_the_pixels, _broken_exif))(path, rng)
