"""The backbone both extractors share: four maps, res2 to res5, of strides 4, 8, 16 and 32."""

from __future__ import annotations

from collections.abc import Mapping

from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor, nn

STRIDES: dict[str, int] = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}


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
