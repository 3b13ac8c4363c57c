"""R-FCN (Dai et al. 2016) as Detectron2 RoI heads: whatever is learnt is a convolution over the
whole image, and the RoIs only read and vote.
"""

from __future__ import annotations

import logging

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Instances
from torch import Tensor, nn

from fsn_d2.layers import start_convolution

from ..checks import require_positive
from ..hard_examples import hardest
from ..position_sensitive import VotingROIPooler
from .box_levels import box_levels
from .position_sensitive_heads import PositionSensitiveROIHeads, require_pooling

logger = logging.getLogger(__name__)


class PositionSensitiveMaps(nn.Module):
    """The score maps and, beside them, the box maps (section 2); channels bank-major."""

    def __init__(
        self,
        in_channels: int,
        *,
        bins: int,
        num_scores: int,
        num_deltas: int,
        reduction: int,
        norm: str,
    ) -> None:
        """
        Args:
            in_channels: channels of the backbone's feature.
            bins: k; every score and delta has k * k maps.
            num_scores: classes + 1, the background last.
            num_deltas: 4, or 4 per class.
            reduction: channels of the 1x1 convolution with ReLU in front of both; 0: none.
            norm: its normalisation, a name of Detectron2's `get_norm`; "": a bias instead.
        """
        super().__init__()
        self.reduce: nn.Module = nn.Identity()
        if reduction:
            self.reduce = _reduction(in_channels, reduction, norm)
        width = reduction or in_channels
        self.cls_score = nn.Conv2d(width, bins * bins * num_scores, 1)
        self.bbox_pred = nn.Conv2d(width, bins * bins * num_deltas, 1)
        # The mean of k * k maps varies k times less than one of them: voted scores and deltas start
        # as if from a single layer of deviation 0.01, and the features learn from the first step.
        for conv in (self.cls_score, self.bbox_pred):
            start_convolution(conv, std=0.01 * bins, bias=0.0)

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            feature: Tensor[N, in_channels, H, W].

        Returns:
            score maps Tensor[N, k * k * num_scores, H, W], box maps [N, k * k * num_deltas, H, W].
        """
        # A bin's channels then lie side by side in memory, which is how the op reads them.
        feature = feature.contiguous(memory_format=torch.channels_last)
        reduced = self.reduce(feature)
        return self.cls_score(reduced), self.bbox_pred(reduced)


def _reduction(in_channels: int, channels: int, norm: str) -> Conv2d:
    conv = Conv2d(
        in_channels,
        channels,
        1,
        bias=not norm,
        norm=get_norm(norm, channels),
        activation=nn.ReLU(),
    )
    start_convolution(conv, std=0.01, bias=0.0)
    return conv


class RFCNOutputLayers(FastRCNNOutputLayers):
    """Detectron2's losses and inference on what the bins voted; it has no layers of its own."""

    @configurable
    def __init__(self, *, ohem_rois: int, **kwargs) -> None:
        """
        Args:
            ohem_rois: RoIs of the highest loss to learn from, per image; 0: all that were sampled.
            kwargs: as for FastRCNNOutputLayers.

        Raises:
            ValueError: hard examples are asked for with a box loss that is not smooth L1, or a
                class loss that is not cross-entropy over all classes.
        """
        super().__init__(**kwargs)
        if ohem_rois and self.box_reg_loss_type != "smooth_l1":
            raise ValueError(
                "MODEL.RFCN.OHEM ranks RoIs by the smooth L1 loss, but "
                f"MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE is {self.box_reg_loss_type!r}: "
                "set it to 'smooth_l1', or OHEM to False"
            )
        if ohem_rois and getattr(self, "use_sigmoid_ce", False):  # in Detectron2 after v0.6
            raise ValueError(
                "MODEL.RFCN.OHEM ranks RoIs by the cross-entropy over all classes, but "
                "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE is True: set one of them to False"
            )
        del self.cls_score, self.bbox_pred
        self.ohem_rois = ohem_rois

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        rfcn = cfg.MODEL.RFCN
        if rfcn.OHEM:
            require_positive("MODEL.RFCN.OHEM_ROIS", rfcn.OHEM_ROIS)
            sampled = cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE
            if sampled <= rfcn.OHEM_ROIS:
                logger.warning(
                    "MODEL.RFCN.OHEM_ROIS %d keeps every RoI that "
                    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE %d samples, so OHEM chooses nothing: "
                    "sample more, as configs/Base-RFCN.yaml does.",
                    rfcn.OHEM_ROIS,
                    sampled,
                )
        return {
            **super().from_config(cfg, ShapeSpec(channels=1)),
            "ohem_rois": rfcn.OHEM_ROIS if rfcn.OHEM else 0,
        }

    def forward(self, x: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Scores Tensor[K, classes + 1] and deltas Tensor[K, 4 * classes], or [K, 4] where they are
        the same for all classes, handed on as they come.
        """
        return x

    def losses(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> dict[str, Tensor]:
        if self.ohem_rois and proposals:
            predictions, proposals = hardest(self, predictions, proposals, self.ohem_rois)
        return super().losses(predictions, proposals)


@ROI_HEADS_REGISTRY.register()
class RFCNROIHeads(PositionSensitiveROIHeads):
    """R-FCN's heads (Dai et al. 2016, section 2): maps, position-sensitive pooling, vote.

    Nothing is learnt behind the pooler.
    """

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        rfcn, box_head = cfg.MODEL.RFCN, cfg.MODEL.ROI_BOX_HEAD
        require_positive("MODEL.RFCN.K", rfcn.K)
        require_positive("MODEL.RFCN.REDUCTION", rfcn.REDUCTION, least=0)
        if rfcn.NORM and not rfcn.REDUCTION:
            raise ValueError(
                f"MODEL.RFCN.NORM {rfcn.NORM!r} normalises the reduction, and REDUCTION is 0: set "
                "NORM to ''"
            )
        require_pooling("MODEL.RFCN.POOLING", rfcn.POOLING)
        width, scales = box_levels(cfg, input_shape)
        num_classes = cfg.MODEL.ROI_HEADS.NUM_CLASSES
        return {
            "box_in_features": cfg.MODEL.ROI_HEADS.IN_FEATURES,
            "box_maps": PositionSensitiveMaps(
                width,
                bins=rfcn.K,
                num_scores=num_classes + 1,
                num_deltas=4 * (1 if box_head.CLS_AGNOSTIC_BBOX_REG else num_classes),
                reduction=rfcn.REDUCTION,
                norm=rfcn.NORM,
            ),
            "box_pooler": VotingROIPooler(
                bins=rfcn.K,
                scales=scales,
                sampling_ratio=box_head.POOLER_SAMPLING_RATIO,
                pooling=rfcn.POOLING,
            ),
            "box_head": nn.Identity(),
            "box_predictor": RFCNOutputLayers(cfg),
        }
