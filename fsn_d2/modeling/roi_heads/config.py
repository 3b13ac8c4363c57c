"""Configuration keys of R-FCN and of Light-Head R-CNN."""

from __future__ import annotations

from detectron2.config import CfgNode


def add_rfcn_config(cfg: CfgNode) -> None:
    """Adds MODEL.RFCN, which the heads RFCNROIHeads read, to `cfg`, in place.

    They also read MODEL.ROI_BOX_HEAD's keys of box regression (CLS_AGNOSTIC_BBOX_REG True is the
    paper's) and, for "align", its POOLER_SAMPLING_RATIO. K stands in the place of its
    POOLER_RESOLUTION and POOLING of its POOLER_TYPE.
    """
    rfcn = cfg.MODEL.RFCN = CfgNode()
    # Bins along each side of an RoI, hence K * K maps per score and delta (the paper: 7; 3 in its
    # ablation; with 1 it does not converge).
    rfcn.K = 7
    # What a bin takes from its map: the "avg" over its cells (the paper's equation 1), their "max"
    # (the paper allows it), or "align", bilinear samples as in later works.
    rfcn.POOLING = "avg"
    # Channels of the 1x1 convolution with ReLU behind the backbone (the paper: 1024); 0: none.
    rfcn.REDUCTION = 1024
    # Its normalisation, "" or a name Detectron2 knows ("GN"). The paper: none.
    rfcn.NORM = ""
    # Online hard example mining: learn from the RoIs of the highest loss alone. Used for the
    # paper's best results; off here, as in Detectron2. All RoIs that ROI_HEADS samples are ranked:
    # raise ROI_HEADS.BATCH_SIZE_PER_IMAGE and POSITIVE_FRACTION to let it choose among all.
    rfcn.OHEM = False
    # How many RoIs per image it keeps (the paper: 128).
    rfcn.OHEM_ROIS = 128


def add_light_head_config(cfg: CfgNode) -> None:
    """Adds MODEL.LIGHT_HEAD, which the heads LightHeadROIHeads read, to `cfg`, in place.

    The bins are MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION (the paper: 7), the fully connected layer is
    its NUM_FC 1 and FC_DIM 2048, and for "align" its POOLER_SAMPLING_RATIO counts. POOLING stands
    in the place of its POOLER_TYPE.
    """
    light = cfg.MODEL.LIGHT_HEAD = CfgNode()
    # Channels of a bin's map (the paper: 10, so 10 * 7 * 7 = 490 in all).
    light.CHANNELS = 10
    # Long side of the large separable convolution, odd (the paper: 15).
    light.KERNEL = 15
    # Channels between its two convolutions (the paper: 256 for large models, 64 for small ones).
    light.MIDDLE = 256
    # "align" (position-sensitive RoIAlign), or "avg" or "max" over whole cells.
    light.POOLING = "align"
