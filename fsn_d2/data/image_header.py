"""What an image's header says, looked at before anything is decoded."""

from __future__ import annotations

import struct
from typing import IO

from PIL import ExifTags, Image
from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH, TiffImageFile

__all__ = ["MAX_PIXELS", "check_header", "orientation", "upright_size"]

# Where Pillow itself stops: twice the PIL.Image.MAX_IMAGE_PIXELS it comes with.
MAX_PIXELS = 178_956_970


def check_header(image: Image.Image, max_pixels: int) -> None:
    """Refuses an opened image that must not be decoded.

    Args:
        image: as `PIL.Image.open` gives it, which reads the header alone.
        max_pixels: ``INPUT.MAX_PIXELS``.

    Raises:
        PIL.Image.DecompressionBombError: width times height is larger than that.
        ValueError: the file is EPS, a PostScript program that Pillow has Ghostscript run,
            whatever the file's suffix.
    """
    width, height = image.size
    if width * height > max_pixels:
        raise Image.DecompressionBombError(
            f"{width} x {height} pixels are more than INPUT.MAX_PIXELS {max_pixels}; a small file "
            "can claim any size. Raise the key if the image is genuine"
        )
    if image.format == "EPS":
        raise ValueError("it is an EPS file, a program; convert it to PNG or JPEG")


def orientation(image: Image.Image) -> int:
    """The EXIF orientation that `read_image` will follow; 1 where there is none.

    Args:
        image: opened, not decoded yet: a TIFF then has none any more. A PNG that has EXIF behind
            its pixels is decoded, other images are not.

    Returns:
        1 to 8; 5 and above swap width and height.
    """
    try:
        file = getattr(image, "fp", None)  # an opened image has one
        if image.format == "PNG" and file is not None and _has_late_exif(file):
            image.load()
        # The base class's method: the one of PNG decodes the whole file first.
        return int(Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1))
    except Exception:  # a broken EXIF block is ignored, as in `read_image`
        return 1


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height in pixels as `read_image` gives the image, turned by its orientation.

    Args:
        image: as for `orientation`.
    """
    width, height = image.size
    if isinstance(image, TiffImageFile):  # its size is turned already by some Pillows, not by all
        width, height = image.tag_v2[IMAGEWIDTH], image.tag_v2[IMAGELENGTH]
    return (height, width) if orientation(image) >= 5 else (width, height)


def _has_late_exif(file: IO[bytes]) -> bool:
    """Whether a chunk that can hold EXIF comes behind the pixels of a PNG. Seeks back."""
    start = file.tell()
    pixels = False
    file.seek(8)
    try:
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            pixels |= kind == b"IDAT"
            if pixels and kind in (b"eXIf", b"iTXt"):
                return True
            file.seek(length + 4, 1)
        return False
    finally:
        file.seek(start)
