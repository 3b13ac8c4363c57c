"""What an image's header says, looked at before anything is decoded."""

from __future__ import annotations

from PIL import Image

__all__ = ["MAX_PIXELS", "check_header"]

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
