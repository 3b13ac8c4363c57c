"""Any feature extractor of the timm library as a Detectron2 backbone.

timm builds the network, knows its strides and channels and offers its weights; this file gives it
Detectron2's interface: names of maps, freezing, start weights, padding.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone.fpn import FPN
from torch import Tensor, nn

from .embedded_lite0 import read_embedded_lite0, require_lite0
from .fpn import build_fpn
from .freezing import (
    NormConversions,
    convert_norm,
    freeze_modules,
    modules_before,
    modules_through,
    require_freeze_at,
)
from .strided import PROBE_SIZE, STRIDES, StridedBackbone, maps_read
from .timm_library import require_timm_model
from .weights import load_every_tensor, read_state_dict


class TimmBackbone(StridedBackbone):
    """A timm model without its head; its maps of strides 4, 8, 16, 32 are res2 to res5.

    ``freeze_at`` counts as in Detectron2: 1 holds the stem fixed, 2 the stem and res2, and so on.
    The stem is everything up to the last map of a stride below 4 that timm lists, or, where it
    lists none (ConvNeXt), everything registered before the module that gives res2. Stage res``k``
    ends with the module that gives the map res``k``. Modules count in the order in which they are
    registered, which in timm's extractors is the order of execution. For VGG-16, 1 thus freezes
    conv1 and conv2, for EfficientNet-Lite0 ``conv_stem``, ``bn1`` and ``blocks.0``.

    Args:
        name: a timm model, with or without a tag.
        pretrained: "" (random), "timm", "embedded", or the path of a weights file.
        norm: "FrozenBN", "BN" or "SyncBN". Freezing keeps the activation that timm builds into
            some of its normalisation layers.
        freeze_at: number of stages held fixed, 0 to 5.
        read: names of the maps that are read; what none of them depends on is held fixed too.

    Raises:
        ImportError: timm, or the package of the embedded weights, is missing.
        ValueError: unknown name, model without the four strides, unknown norm, weights that do
            not fit, ``freeze_at`` out of range or of no meaning for the model.
        FileNotFoundError: the weights are not at hand.
    """

    @configurable
    def __init__(
        self,
        *,
        name: str,
        pretrained: str = "",
        norm: str = "FrozenBN",
        freeze_at: int = 0,
        read: Iterable[str] = tuple(STRIDES),
    ) -> None:
        require_freeze_at(freeze_at)
        extractor = _create_extractor(name, pretrained)
        channels = _check_maps(name, extractor)
        super().__init__(extractor, channels)
        conversions = _norm_conversions()
        frozen = _stages_through(name, extractor, freeze_at)
        freeze_modules(_network(extractor), frozen, conversions)
        convert_norm(extractor, norm, conversions, "MODEL.TIMM.NORM")
        self._layout = _layout(extractor)
        extractor.to(memory_format=self._layout)  # type: ignore[call-overload]
        self._hold_unread(read)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec | None = None) -> dict[str, Any]:
        """Read ``MODEL.TIMM``; a checkpoint (``MODEL.WEIGHTS``) replaces start weights."""
        return {
            "name": cfg.MODEL.TIMM.NAME,
            "pretrained": "" if cfg.MODEL.WEIGHTS else cfg.MODEL.TIMM.PRETRAINED,
            "norm": cfg.MODEL.TIMM.NORM,
            "freeze_at": cfg.MODEL.BACKBONE.FREEZE_AT,
        }

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """From a normalised Tensor[N, 3, H, W] to the maps by name, as `StridedBackbone`."""
        return _maps(self.extractor, image.contiguous(memory_format=self._layout))


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """Build the timm model of ``MODEL.TIMM`` with the maps res2 to res5.

    Args:
        cfg: ``MODEL.TIMM``, ``MODEL.BACKBONE.FREEZE_AT`` and the detector's ``IN_FEATURES`` are
            read.
        input_shape: not read; the registry gives it.
    """
    return TimmBackbone(cfg, input_shape, read=maps_read(cfg))


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build the timm model of ``MODEL.TIMM`` under a pyramid p2 to p6.

    Args:
        cfg: what the two parts read, see `build_timm_backbone` and `build_fpn`.
        input_shape: not read; the registry gives it.
    """
    return build_fpn(cfg, TimmBackbone(cfg, input_shape))


@BACKBONE_REGISTRY.register()
def build_timm_retinanet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build the timm model of ``MODEL.TIMM`` under RetinaNet's pyramid, which ends in p6 and p7.

    Args:
        cfg: what the two parts read, see `build_timm_backbone` and `build_fpn`.
        input_shape: not read; the registry gives it.
    """
    return build_fpn(cfg, TimmBackbone(cfg, input_shape), retinanet=True)


def _layout(extractor: nn.Module) -> torch.memory_format:
    """channels_last: on the CPU depthwise convolutions, their backward above all, run several times
    faster in it. Not where PyTorch 2.12 would write beyond its memory: in the backward of a 1x1
    convolution with a stride, of fewer than 8 channels.
    """
    overruns = any(
        m.kernel_size == (1, 1) and max(m.stride) > 1 and m.in_channels < 8
        for m in extractor.modules()
        if isinstance(m, nn.Conv2d)
    )
    return torch.contiguous_format if overruns else torch.channels_last


def _create_extractor(name: str, pretrained: str) -> nn.Module:
    timm = require_timm_model(name)
    if pretrained == "timm":
        return _create_with_timm_weights(name)
    if pretrained == "embedded":
        require_lite0(name)
    try:
        extractor = timm.create_model(name, features_only=True)
    except (AttributeError, AssertionError, RuntimeError, TypeError) as error:
        raise ValueError(f"MODEL.TIMM.NAME: {name!r} extracts no features ({error}).") from error
    if pretrained == "embedded":
        load_every_tensor(_network(extractor), read_embedded_lite0(), "The embedded weights")
    elif pretrained:
        state = read_state_dict(pretrained, "MODEL.TIMM.PRETRAINED")
        load_every_tensor(_network(extractor), state, f"MODEL.TIMM.PRETRAINED {pretrained!r}")
    return extractor


def _create_with_timm_weights(name: str) -> nn.Module:
    timm = require_timm_model(name)
    source = timm.get_pretrained_cfg(name)
    if source is None or not source.has_weights:
        raise ValueError(f"MODEL.TIMM.PRETRAINED: timm has no weights for {name!r}. Use ''.")
    try:
        return timm.create_model(name, features_only=True, pretrained=True)
    except OSError as error:
        place = f"model.safetensors of https://huggingface.co/{source.hf_hub_id}"
        raise FileNotFoundError(
            f"MODEL.TIMM.PRETRAINED: timm's weights of {name!r} could not be downloaded. Fetch "
            f"{place if source.hf_hub_id else source.url} elsewhere, put it on this machine and "
            "set MODEL.TIMM.PRETRAINED to its path."
        ) from error


def _network(extractor: nn.Module) -> nn.Module:
    """Return the module whose names are the model's own: some extractors wrap it as one child."""
    children = list(extractor.children())
    return children[0] if len(children) == 1 else extractor


def _feature_info(extractor: nn.Module) -> Any:
    """Return timm's description (strides, channels, module names) of the extractor's outputs."""
    return extractor.feature_info


def _index_of_strides(extractor: nn.Module) -> dict[int, int]:
    """Return stride -> index of the extractor's last output of that stride."""
    return {stride: i for i, stride in enumerate(_feature_info(extractor).reduction())}


def _maps(extractor: nn.Module, image: Tensor) -> dict[str, Tensor]:
    outputs = extractor(image)
    index = _index_of_strides(extractor)
    maps = {name: outputs[index[stride]] for name, stride in STRIDES.items()}
    if getattr(extractor, "output_fmt", "NCHW") == "NHWC":
        return {name: tensor.permute(0, 3, 1, 2) for name, tensor in maps.items()}
    return maps


def _check_maps(name: str, extractor: nn.Module) -> dict[str, int]:
    """Run a small image through the extractor; return the channels of the maps.

    What timm states is not enough: some models pad so that their maps have other sizes, others
    take images of one size only.
    """
    strides = _feature_info(extractor).reduction()
    if not set(STRIDES.values()) <= set(strides):
        raise ValueError(
            f"MODEL.TIMM.NAME: {name!r} has feature maps of strides {strides}; a backbone needs "
            f"{list(STRIDES.values())}. Choose a hierarchical model, for example a ResNet."
        )
    try:
        with torch.no_grad():
            maps = _maps(extractor.eval(), torch.zeros(1, 3, *PROBE_SIZE))
    except (AssertionError, RuntimeError) as error:
        raise ValueError(
            f"MODEL.TIMM.NAME: {name!r} does not take an image of {PROBE_SIZE} pixels ({error}). "
            "Choose a model that takes images of any size that is a multiple of 32."
        ) from error
    extractor.train()
    for key, stride in STRIDES.items():
        expected = tuple(side // stride for side in PROBE_SIZE)
        if tuple(maps[key].shape[-2:]) != expected:
            raise ValueError(
                f"MODEL.TIMM.NAME: {name!r} turns {PROBE_SIZE} pixels into "
                f"{tuple(maps[key].shape[-2:])} cells at stride {stride}; a pyramid needs "
                f"{expected}. Choose a model that pads its convolutions."
            )
    return {key: tensor.shape[1] for key, tensor in maps.items()}


def _stages_through(name: str, extractor: nn.Module, freeze_at: int) -> list[str]:
    """Return the names of the modules that ``freeze_at`` stages hold."""
    if freeze_at == 0:
        return []
    ends = _end_of_strides(name, extractor)
    network = _network(extractor)
    if freeze_at > 1:
        return modules_through(network, ends[2**freeze_at])
    stem = [end for stride, end in ends.items() if stride < 4]
    return modules_through(network, stem[-1]) if stem else modules_before(network, ends[4])


def _end_of_strides(name: str, extractor: nn.Module) -> dict[int, str]:
    """Return stride -> name of the module that gives the extractor's map of that stride."""
    info = _feature_info(extractor)
    known = {module for module, _ in _network(extractor).named_modules()}
    ends = {}
    for stride, end in zip(info.reduction(), info.module_name(), strict=True):
        # timm folds one level of Sequential into its extractors: features.3 becomes features_3.
        ends[stride] = end if end in known else end.replace(".", "_", 1)
    if not set(ends.values()) <= known:
        raise ValueError(
            f"MODEL.BACKBONE.FREEZE_AT: the stages of {name!r} cannot be told apart by its "
            "modules. Set it to 0."
        )
    return ends


def _norm_conversions() -> NormConversions:
    from timm.layers import convert_sync_batchnorm, freeze_batch_norm_2d

    return {
        "BN": lambda module: module,
        "SyncBN": convert_sync_batchnorm,
        "FrozenBN": freeze_batch_norm_2d,
    }
