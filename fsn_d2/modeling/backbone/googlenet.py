"""GoogLeNet (Inception v1 with batch normalisation) as a Detectron2 backbone.

The network is torchvision's; this file cuts it into Detectron2's stages.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import torchvision
from detectron2.config import CfgNode, configurable
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone.fpn import FPN
from torch import Tensor, nn

from .fpn import build_fpn
from .freezing import (
    NormConversions,
    convert_norm,
    freeze_modules,
    modules_through,
    require_freeze_at,
)
from .strided import STRIDES, StridedBackbone, maps_read
from .weights import load_every_tensor, read_state_dict

# The last module of each stage, under torchvision's names. The stem comes first.
_STAGE_ENDS = {
    "stem": "conv1",
    "res2": "conv3",
    "res3": "inception3b",
    "res4": "inception4e",
    "res5": "inception5b",
}
_CHANNELS = {"res2": 192, "res3": 480, "res4": 832, "res5": 1024}
_NORM_CONVERSIONS: NormConversions = {
    "BN": lambda module: module,
    "SyncBN": nn.SyncBatchNorm.convert_sync_batchnorm,
    "FrozenBN": FrozenBatchNorm2d.convert_frozen_batchnorm,
}


class GoogLeNetBackbone(StridedBackbone):
    """torchvision's GoogLeNet without its classifiers.

    res2 is the output of conv3, res3, res4 and res5 are those of inception 3b, 4e and 5b. The
    pretrained weights expect RGB as (x - 127.5) / 127.5, see
    `adopt_input_statistics`.

    Args:
        pretrained: "" (random), "torchvision", or the path of torchvision's weights file.
        norm: "FrozenBN", "BN" or "SyncBN".
        freeze_at: number of stages held fixed, 0 to 5: 1 is conv1, 2 adds conv2 and conv3, ...
        read: names of the maps that are read; what none of them depends on is held fixed too.

    Raises:
        ValueError: unknown norm, weights that do not fit, ``freeze_at`` out of range.
        FileNotFoundError: the weights are not at hand.
    """

    @configurable
    def __init__(
        self,
        *,
        pretrained: str = "",
        norm: str = "FrozenBN",
        freeze_at: int = 0,
        read: Iterable[str] = tuple(STRIDES),
    ) -> None:
        require_freeze_at(freeze_at)
        extractor = _create_extractor()
        if pretrained:
            state, source = _read_weights(pretrained), f"MODEL.GOOGLENET.PRETRAINED {pretrained!r}"
            load_every_tensor(extractor, state, source)
        super().__init__(extractor, _CHANNELS)
        if freeze_at:
            frozen = modules_through(extractor, list(_STAGE_ENDS.values())[freeze_at - 1])
            freeze_modules(extractor, frozen, _NORM_CONVERSIONS)
        convert_norm(extractor, norm, _NORM_CONVERSIONS, "MODEL.GOOGLENET.NORM")
        self._hold_unread(read)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec | None = None) -> dict[str, Any]:
        """Read ``MODEL.GOOGLENET``; a checkpoint (``MODEL.WEIGHTS``) replaces start weights."""
        return {
            "pretrained": "" if cfg.MODEL.WEIGHTS else cfg.MODEL.GOOGLENET.PRETRAINED,
            "norm": cfg.MODEL.GOOGLENET.NORM,
            "freeze_at": cfg.MODEL.BACKBONE.FREEZE_AT,
        }

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """From a normalised Tensor[N, 3, H, W] to the maps by name, as `StridedBackbone`."""
        return self.extractor(image)


@BACKBONE_REGISTRY.register()
def build_googlenet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> GoogLeNetBackbone:
    """Build GoogLeNet with the maps res2 to res5.

    Args:
        cfg: ``MODEL.GOOGLENET``, ``MODEL.BACKBONE.FREEZE_AT`` and the detector's ``IN_FEATURES``
            are read.
        input_shape: not read; the registry gives it.
    """
    return GoogLeNetBackbone(cfg, input_shape, read=maps_read(cfg))


@BACKBONE_REGISTRY.register()
def build_googlenet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build GoogLeNet under a pyramid p2 to p6.

    Args:
        cfg: what the two parts read, see `build_googlenet_backbone` and `build_fpn`.
        input_shape: not read; the registry gives it.
    """
    return build_fpn(cfg, GoogLeNetBackbone(cfg, input_shape))


class _StagedSequential(nn.Sequential):
    """Modules run one after the other; the outputs of the named ones are returned."""

    def __init__(self, modules: OrderedDict[str, nn.Module], outputs: Mapping[str, str]) -> None:
        super().__init__(modules)
        self._outputs = {module: name for name, module in outputs.items()}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = {}
        for module_name, module in self.named_children():
            x = module(x)
            if module_name in self._outputs:
                maps[self._outputs[module_name]] = x
        return maps


def _create_extractor() -> nn.Module:
    network = torchvision.models.googlenet(weights=None, aux_logits=False, init_weights=True)
    # torchvision registers the modules in the order in which it runs them.
    modules = OrderedDict(network.named_children())
    for _ in range(len(modules) - list(modules).index(_STAGE_ENDS["res5"]) - 1):
        modules.popitem()
    return _StagedSequential(modules, {name: _STAGE_ENDS[name] for name in _CHANNELS})


def _read_weights(pretrained: str) -> Mapping[str, Tensor]:
    if pretrained != "torchvision":
        return read_state_dict(pretrained, "MODEL.GOOGLENET.PRETRAINED")
    weights = torchvision.models.GoogLeNet_Weights.IMAGENET1K_V1
    try:
        return weights.get_state_dict(progress=False, check_hash=True)
    except OSError as error:
        raise FileNotFoundError(
            "MODEL.GOOGLENET.PRETRAINED: torchvision's weights of GoogLeNet could not be "
            f"downloaded. Fetch {weights.url} elsewhere, put it on this machine and set "
            "MODEL.GOOGLENET.PRETRAINED to its path."
        ) from error
