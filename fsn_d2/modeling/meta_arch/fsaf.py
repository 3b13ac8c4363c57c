"""FSAF: RetinaNet with an anchor-free branch, alone or beside the anchors."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import batched_nms
from detectron2.modeling import META_ARCH_REGISTRY, detector_postprocess
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor

from ..fsaf import AnchorFreeBranch, best_candidates
from .tower_head import TowerHead, Towers

MODES = ("anchor_free", "anchors", "joint")


@META_ARCH_REGISTRY.register()
class FSAF(RetinaNet):
    """RetinaNet whose towers feed an anchor-free branch, the anchors' layers, or both (FSAF, 3.4).

    With the anchors alone it is Detectron2's RetinaNet, checkpoints included.
    """

    head: TowerHead

    @configurable
    def __init__(self, *, anchors: bool, branch: AnchorFreeBranch | None, **kwargs) -> None:
        """
        Args:
            anchors: whether boxes are predicted from anchors.
            branch: the anchor-free branch; None: there is none.
            kwargs: as for RetinaNet; `head` is a TowerHead.
        """
        super().__init__(**kwargs)
        self.anchors = anchors
        self.branch = branch

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Reads MODEL.FSAF and all that RetinaNet reads.

        Raises:
            ValueError: naming the key that does not fit.
        """
        mode = cfg.MODEL.FSAF.MODE
        if mode not in MODES:
            raise ValueError(f"MODEL.FSAF.MODE must be one of {MODES}, got {mode!r}.")
        plain = cfg.clone()
        plain.defrost()
        plain.MODEL.RETINANET.NORM = ""  # of a head that is replaced; see `_group_norm`
        parts = super().from_config(plain)
        levels = parts["backbone"].output_shape()
        shapes = [levels[name] for name in parts["head_in_features"]]
        parts["head"] = TowerHead(cfg, shapes)
        parts["anchors"] = mode != "anchor_free"
        parts["branch"] = AnchorFreeBranch(cfg, shapes) if mode != "anchors" else None
        return parts

    def forward_training(
        self,
        images: ImageList,
        features: list[Tensor],
        predictions: Towers,
        gt_instances: list[Instances],
    ) -> dict[str, Tensor]:
        losses = {}
        # The branch first: its processes count their objects together, and the anchors' loss may
        # refuse what is not finite, in one of them alone.
        if self.branch is not None:
            losses.update(self.branch.losses(self.branch(*predictions), gt_instances))
        if self.anchors:
            from_anchors = self.head.predict_from_anchors(predictions)
            losses.update(super().forward_training(images, features, from_anchors, gt_instances))
        return losses

    # ------------------------------------------------------------------------ inference

    def forward_inference(
        self, images: ImageList, features: list[Tensor], predictions: Towers
    ) -> list[Instances]:
        sources = []
        if self.anchors:
            sources.append(self._from_anchors(images, features, predictions))
        if self.branch is not None:
            sources.append(self._from_branch(self.branch, images, predictions))
        return [self._suppress(list(found)) for found in zip(*sources, strict=True)]

    def inference(self, batched_inputs: list[dict], do_postprocess: bool = True) -> list:
        """As GeneralizedRCNN's: the detections, by default scaled to the sizes that are asked for.

        Args:
            batched_inputs: as for `forward`.
            do_postprocess: False: boxes stay in the pixels of the input, and per image an Instances
                comes instead of a dict.
        """
        images, features, towers = self._towers(batched_inputs)
        results = self.forward_inference(images, features, towers)
        if not do_postprocess:
            return results
        answers = []
        for found, asked, size in zip(results, batched_inputs, images.image_sizes, strict=True):
            height, width = asked.get("height", size[0]), asked.get("width", size[1])
            answers.append({"instances": detector_postprocess(found, height, width)})
        return answers

    def choose_levels(self, batched_inputs: list[dict]) -> list[Tensor]:
        """The level, as an index into the head's, that each ground-truth instance would choose now.

        Args:
            batched_inputs: as for training.

        Returns:
            int64 Tensor[M] per image.

        Raises:
            ValueError: the detector has no anchor-free branch.
        """
        if self.branch is None:
            raise ValueError(
                "MODEL.FSAF.MODE is 'anchors', which selects no levels; use 'anchor_free' or "
                "'joint'."
            )
        _, _, towers = self._towers(batched_inputs)
        instances = [sample["instances"].to(self.device) for sample in batched_inputs]
        return self.branch.choose_levels(self.branch(*towers), instances)

    def _towers(self, batched_inputs: list[dict]) -> tuple[ImageList, list[Tensor], Towers]:
        images = self.preprocess_image(batched_inputs)
        maps = self.backbone(images.tensor)
        features = [maps[name] for name in self.head_in_features]
        return images, features, self.head(features)

    def _from_anchors(
        self, images: ImageList, features: list[Tensor], towers: Towers
    ) -> list[Instances]:
        predictions = self.head.predict_from_anchors(towers)
        logits, deltas = self._transpose_dense_predictions(predictions, [self.num_classes, 4])
        anchors = self.anchor_generator(features)
        return [
            self._decode_multi_level_predictions(
                anchors,
                [level[image].sigmoid() for level in logits],
                [level[image] for level in deltas],
                self.test_score_thresh,
                self.test_topk_candidates,
                size,
            )
            for image, size in enumerate(images.image_sizes)
        ]

    def _decode_per_level_predictions(
        self,
        anchors: Boxes,
        pred_scores: Tensor,
        pred_deltas: Tensor,
        score_thresh: float,
        topk_candidates: int,
        image_size: tuple[int, int],
    ) -> Instances:
        """As the overridden one, which v0.6 cannot trace for images of other contents."""
        scores, places, classes = best_candidates(pred_scores, score_thresh, topk_candidates)
        boxes = self.box2box_transform.apply_deltas(pred_deltas[places], anchors.tensor[places])
        return Instances(image_size, pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes)

    def _from_branch(
        self, branch: AnchorFreeBranch, images: ImageList, towers: Towers
    ) -> list[Instances]:
        predictions = branch(*towers)
        limits = {"score_thresh": self.test_score_thresh, "topk": self.test_topk_candidates}
        return [
            branch.candidates(predictions, image, size, **limits)
            for image, size in enumerate(images.image_sizes)
        ]

    def _suppress(self, candidates: list[Instances]) -> Instances:
        """Merges the branches' boxes and suppresses, per class, what a better one overlaps."""
        found = Instances.cat(candidates)
        kept = batched_nms(
            found.pred_boxes.tensor, found.scores, found.pred_classes, self.test_nms_thresh
        )
        return found[kept[: self.max_detections_per_image]]
