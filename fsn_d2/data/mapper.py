"""A dataset mapper that gets over images which cannot be decoded.

A file may be cut off behind an intact header, which shows only when it is decoded. Training goes on
without such an image; inference stops, because a result must not leave an image out silently.
"""

from __future__ import annotations

import copy
import logging
import random
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper, MapDataset
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.utils.file_io import PathManager
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import TiffImageFile

from .image_header import MAX_PIXELS, check_header

__all__ = ["TolerantMapper", "read_image"]

logger = logging.getLogger(__name__)


def read_image(file_name: str, image_format: str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Reads an image as Detectron2's `read_image` does, except for 16-bit gray and turned TIFFs.

    Palette, RGBA (alpha dropped), gray, bilevel, CMYK and 16-bit colour files come out right
    there. Gray values of 16 bits are cut off at 255 by Pillow, so that the image turns white;
    here they are scaled to 8 bits by dividing by 257, the same for every image. Values of floating
    point files are taken as 0 to 255, as there. A TIFF is turned once: Pillow follows its
    orientation while it decodes, and Detectron2 does so again.

    Args:
        file_name: path of the file.
        image_format: ``INPUT.FORMAT``, for instance ``"BGR"``.
        max_pixels: ``INPUT.MAX_PIXELS``, compared with the header's size before anything is
            decoded.

    Returns:
        Array [H, W, channels] of the format, turned as its EXIF orientation says.

    Raises:
        PIL.Image.DecompressionBombError, ValueError: as `check_header`.
        Exception: of nearly any type, where the file is broken.
    """
    with PathManager.open(file_name, "rb") as file, Image.open(file) as image:
        check_header(image, max_pixels)
        is_deep = image.mode.startswith("I")  # I;16, I;16B, I: 16 bits or more
        is_tiff = isinstance(image, TiffImageFile)
        if not is_deep and not is_tiff:
            return utils.read_image(file_name, format=image_format)
        upright = image.copy() if is_tiff else ImageOps.exif_transpose(image)
    if is_deep:
        values = np.asarray(upright, dtype=np.float32)
        upright = Image.fromarray((values / 257).round().clip(0, 255).astype(np.uint8))
    return utils.convert_PIL_to_numpy(upright, image_format)


class TolerantMapper(DatasetMapper):
    """Detectron2's `DatasetMapper`, for data as it comes.

    In training an image that cannot be decoded, or that `check_header` refuses, gives None, for
    which Detectron2's `MapDataset` takes another image at random. The first one is warned of; the
    count of failed reads (of this process; an image counts each time it is met) is logged at
    powers of two. In inference it raises OSError naming the file.

    Args:
        args, kwargs: as for `DatasetMapper`; or a config, from which all is taken.
        max_pixels: ``INPUT.MAX_PIXELS``, width times height; a larger image is refused.
    """

    _failures = 0

    @configurable
    def __init__(self, *args: Any, max_pixels: int = MAX_PIXELS, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.max_pixels = max_pixels
        _repair_map_dataset()

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        max_pixels = cfg.INPUT.get("MAX_PIXELS", MAX_PIXELS)
        if not is_train and cfg.MODEL.KEYPOINT_ON:
            # Detectron2 would ask the training set, which may be absent, how to mirror keypoints.
            cfg = cfg.clone()
            cfg.defrost()
            cfg.MODEL.KEYPOINT_ON = False
        return {**super().from_config(cfg, is_train), "max_pixels": max_pixels}

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any] | None:
        """Maps one record of Detectron2's standard form to a model input, or to None."""
        image = self._read(dataset_dict["file_name"])
        if image is None:
            return None
        sample = copy.deepcopy(dataset_dict)
        utils.check_image_size(sample, image)
        aug_input = T.AugInput(image, sem_seg=_read_sem_seg(sample, self.max_pixels))
        transforms = self.augmentations(aug_input)
        image_shape = aug_input.image.shape[:2]
        sample["image"] = torch.as_tensor(np.ascontiguousarray(aug_input.image.transpose(2, 0, 1)))
        if aug_input.sem_seg is not None:
            sample["sem_seg"] = torch.as_tensor(aug_input.sem_seg.astype("long"))
        if self.proposal_topk is not None:
            utils.transform_proposals(
                sample, image_shape, transforms, proposal_topk=self.proposal_topk
            )
        if not self.is_train:
            sample.pop("annotations", None)
        elif "annotations" in sample:
            self._transform_annotations(sample, transforms, image_shape)
        return sample

    def _read(self, file_name: str) -> np.ndarray | None:
        try:
            return read_image(file_name, self.image_format, self.max_pixels)
        except Exception as error:  # Pillow's decoders raise nearly any type on a broken file
            if not self.is_train:
                raise OSError(
                    f"Image {file_name} cannot be read ({error}). Repair it or take it out of the "
                    "data set; a test set is not shortened silently."
                ) from error
            self._count_failure(file_name, error)
            return None

    def _count_failure(self, file_name: str, error: Exception) -> None:
        self._failures += 1
        if self._failures == 1:
            logger.warning(
                "Image %s cannot be read (%s); another one is taken. Further ones are counted.",
                file_name,
                error,
            )
        elif self._failures & (self._failures - 1) == 0:
            logger.info("%d reads of images failed so far, last %s.", self._failures, file_name)


def _read_sem_seg(sample: dict[str, Any], max_pixels: int) -> np.ndarray | None:
    file_name = sample.pop("sem_seg_file_name", None)
    if file_name is None:
        return None
    with PathManager.open(file_name, "rb") as file, Image.open(file) as image:
        check_header(image, max_pixels)
    return utils.read_image(file_name, "L").squeeze(2)


class _SetSampler(random.Random):
    """`random.Random` whose `sample` takes a set, as it did before Python 3.11."""

    def sample(self, population: Any, k: int, **kwargs: Any) -> list[Any]:
        return super().sample(sorted(population), k, **kwargs)


def _repair_map_dataset() -> None:
    """Lets `MapDataset` of Detectron2 v0.6 replace a None on Python 3.11 and later.

    There it draws from a set, which `random.sample` no longer takes, so that the first broken image
    would end the training with a TypeError. Later Detectron2 versions are left alone.
    """
    if _replaces_none():
        return
    original = MapDataset.__init__

    def init(self: MapDataset, dataset: Any, map_func: Any) -> None:
        original(self, dataset, map_func)
        self._rng = _SetSampler(42)

    MapDataset.__init__ = init


def _replaces_none() -> bool:
    try:
        return MapDataset([0, 1], lambda item: item or None)[0] == 1
    except TypeError:
        return False
