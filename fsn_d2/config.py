"""Every config key this project adds to Detectron2's."""

from __future__ import annotations

from detectron2.config import CfgNode

from .data.config import add_data_config
from .modeling.backbone.config import add_backbone_config
from .modeling.meta_arch.config import add_fsaf_config
from .modeling.roi_heads.config import add_light_head_config, add_rfcn_config


def add_fsn_config(cfg: CfgNode) -> None:
    """Adds this project's keys, with their defaults, to a config of Detectron2's.

    To be called right after `get_cfg()` and before a file is merged. MODEL.ROI_HEADS.NAME chooses
    the heads that read MODEL.FSN: FSNROIHeads, FSNCascadeROIHeads or FSNRes5ROIHeads. The fully
    connected layers behind the pooler are Detectron2's keys (MODEL.ROI_BOX_HEAD.NUM_FC, FC_DIM);
    behind FSNRes5ROIHeads' there is res5 instead. ROI_BOX_HEAD.POOLER_TYPE is of the RoI feature:
    the older ROIAlign reads it half a cell off the banks, which are read as by ROIAlignV2.

    Args:
        cfg: from `get_cfg()`; is changed in place.
    """
    fsn = cfg.MODEL.FSN = CfgNode()
    # Channels after RoI pooling, and of every map of both banks. 40 as in the one earlier public
    # code; the paper's own number is not known to us.
    fsn.CHANNELS = 40
    # What a sub-region is. "roi": the place of the bin inside its RoI (the paper, figure 1).
    # "image": the place of the RoI's centre in the image (the public code). "none": no such bank.
    fsn.SUB_REGION = "roi"
    # Rows and columns of sub-regions, hence GRID * GRID maps in the bank (the public code: 3). With
    # "roi" and a MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION below it some of the maps are not read.
    fsn.GRID = 3
    # Cells of the feature map that the outer sub-regions' convolutions look away per step from the
    # centre (the public code: 1).
    fsn.SHIFT = 1
    # Height / width of the aspect-ratio bank's maps, as in MODEL.ANCHOR_GENERATOR; an RoI reads
    # the map nearest to its own ratio on a log scale. Empty: no such bank. Our choice of values.
    fsn.RATIOS = [0.5, 1.0, 2.0]
    # Kernel side of the sub-region bank's convolutions, odd. Our choice: 1, the cheapest.
    fsn.BANK_KERNEL = 1
    # What the banks are computed from: the "reduced" feature of CHANNELS channels, or the whole
    # "feature" of the pyramid. Our choice: reduced, the faster: with kernels of 1 POOLING "fused"
    # never computes its maps; their convolutions are applied to what was pooled, in inference at
    # one cost for 2 x 2 maps or more. projects/FSN/README.md has what feature reaches.
    fsn.BANK_INPUT = "reduced"
    # How attention refines the RoI feature: "concat" (the public code: concatenation and a 1x1
    # convolution), "multiply" (most likely the paper's) or "sum". Our choice: sum, by the whole
    # trainings in projects/FSN/README.md. Without banks concat is the convolution alone, the others
    # plain pooling.
    fsn.MERGE = "sum"
    # Activation of the factor of "multiply": "identity", "relu", or "sigmoid" (doubled, so that the
    # factor lies in 0..2). The paper leaves it open.
    fsn.ACTIVATION = "sigmoid"
    # "fused": all that is read is pooled in one pass, given POOLER_TYPE ROIAlignV2. "composed", and
    # any other type: Detectron2's pooler for the feature, then bank by bank, from computed maps.
    # The results are equal. On a CPU the fused pass over computed maps takes less time than
    # Detectron2's pooler for the feature alone (benchmarks/op.py, rows stage and plain).
    fsn.POOLING = "fused"
    add_rfcn_config(cfg)
    add_light_head_config(cfg)
    add_fsaf_config(cfg)
    add_backbone_config(cfg)
    add_data_config(cfg)
    _add_training_config(cfg)


def _add_training_config(cfg: CfgNode) -> None:
    """What may end a training, and what it is watched by."""
    # A loss that is infinite or not a number: "stop" the training, naming the images; or "skip" the
    # batch, counted as skipped_batches in the metrics. Our choice: stop.
    cfg.SOLVER.NONFINITE = "stop"
    # The same SEED gives the same weights, bit for bit (docs/training.md says on what). Needs
    # SEED >= 0; algorithms that cannot do it are refused. Off by default: it can be slower.
    cfg.DETERMINISTIC = False
    # What happens at every evaluation during training, so none of it while TEST.EVAL_PERIOD is 0.
    watch = cfg.WATCH = CfgNode()
    # Images of the first test set whose losses are averaged as validation_loss; 0: none.
    watch.LOSS_IMAGES = 50
    # Images of it that are drawn with their detections for TensorBoard; 0: none.
    watch.SAMPLES = 4
    # By which the best model is kept as model_best.pth and training may end early. With several
    # test sets the first set's; another's with its name before: "my_set/bbox/AP".
    watch.METRIC = "bbox/AP"
    # Evaluations in a row without a better METRIC after which training ends; 0: it does not.
    watch.PATIENCE = 0
