"""The backbone both extractors share: four maps, res2 to res5, of strides 4, 8, 16 and 32."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor, nn

STRIDES: dict[str, int] = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}
PROBE_SIZE = (64, 96)  # height, width: the smallest unequal multiples of 32 with room for a window

_logger = logging.getLogger(__name__)


def maps_read(cfg: CfgNode) -> Sequence[str]:
    """Names of the maps that Detectron2's or this package's detector reads, without a pyramid.

    Of a detector that neither knows these are all maps.
    """
    model = cfg.MODEL
    known = {
        "GeneralizedRCNN": [*model.RPN.IN_FEATURES, *model.ROI_HEADS.IN_FEATURES],
        "ProposalNetwork": model.RPN.IN_FEATURES,
        "RetinaNet": model.RETINANET.IN_FEATURES,
        "FSAF": model.RETINANET.IN_FEATURES,
    }
    return known.get(model.META_ARCHITECTURE, list(STRIDES))


class StridedBackbone(Backbone):
    """A Detectron2 backbone with the four feature maps that an FPN reads.

    Subclasses fill ``extractor`` and implement ``forward``.

    Args:
        extractor: the network that computes the maps.
        channels: number of channels of each map, under the keys of ``STRIDES``.
    """

    def __init__(self, extractor: nn.Module, channels: Mapping[str, int]) -> None:
        super().__init__()
        self.extractor = extractor
        self._channels = dict(channels)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Compute the feature maps.

        Args:
            image: Tensor[N, 3, H, W], normalised; H and W are multiples of 32.

        Returns:
            res2, res3, res4, res5: Tensor[N, C, H / stride, W / stride] with strides 4, 8, 16, 32.
        """
        raise NotImplementedError

    def _hold_unread(self, read: Iterable[str]) -> None:
        """Holds the parameters fixed that none of the maps ``read`` depends on.

        They would get no gradient, which distributed training refuses. They are not taken out: not
        every extractor can be cut, and names and random numbers stay the same.
        """
        known = set(STRIDES) & set(read)
        if not known or "res5" in known:  # every stage leads to res5
            return
        learnt = [parameter for parameter in self.parameters() if parameter.requires_grad]
        with torch.enable_grad():
            maps = self.eval()(torch.zeros(1, 3, *PROBE_SIZE))
            total = torch.stack([maps[name].sum() for name in known]).sum()
        self.train()
        found: Sequence[Tensor | None] = [None] * len(learnt)
        if total.requires_grad:
            found = torch.autograd.grad(total, learnt, allow_unused=True)
        unread = [p for p, gradient in zip(learnt, found, strict=True) if gradient is None]
        for parameter in unread:
            parameter.requires_grad = False
        _logger.info("%d tensors behind %s are held fixed: unread", len(unread), max(known))

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Return channels and stride of every map."""
        return {
            name: ShapeSpec(channels=self._channels[name], stride=stride)
            for name, stride in STRIDES.items()
        }

    @property
    def size_divisibility(self) -> int:
        """The largest stride: a padded image has whole cells on every map."""
        return max(STRIDES.values())

    @property
    def padding_constraints(self) -> dict[str, int]:
        """The same for Detectron2's newer interface, which v0.6 does not know."""
        return {"size_divisibility": self.size_divisibility}
