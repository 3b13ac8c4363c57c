"""Target assignment equals a loop over pixels, for both rules of the other levels."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from detectron2.structures import Boxes, Instances

from fsn_d2.modeling.fsaf import Objects, Pyramid, Targets, assign_targets, region_cells
from fsn_d2.modeling.fsaf.branch import OTHER_LEVELS

K = 3
IMAGES, BATCH = 200, 4


def instances_of(boxes: torch.Tensor, classes: torch.Tensor) -> Instances:
    return Instances((64, 92), gt_boxes=Boxes(boxes), gt_classes=classes)


def assign(
    objects: Objects,
    chosen: torch.Tensor,
    pyramid: Pyramid,
    fractions: tuple[float, float],
    rule: str,
    images: int = 1,
) -> Targets:
    effective, ignored = (region_cells(objects.boxes, f, pyramid) for f in fractions)
    shape = (images, pyramid.num_cells, K)
    return assign_targets(objects, effective, ignored, chosen, shape, rule)


def owners_and_labels(targets: Targets) -> tuple[torch.Tensor, torch.Tensor]:
    owners = torch.full((len(targets.scores),), -1)
    owners[targets.cells] = targets.instances
    return owners, targets.scores.long() - targets.ignored.long()


@pytest.mark.parametrize("rule", OTHER_LEVELS)
def test_equals_a_loop_over_pixels_on_random_images(
    rule: str, draw: Callable, literal: Callable, pyramid: Pyramid
) -> None:
    seen = {"shared": 0, "ignored": 0, "positive": 0, "left out": 0}
    for start in range(0, IMAGES, BATCH):
        rng = torch.Generator().manual_seed(start)
        batch = [instances_of(*draw(seed)) for seed in range(start, start + BATCH)]
        objects = Objects.of(batch)
        chosen = torch.randint(len(pyramid.strides), (len(objects.boxes),), generator=rng)
        fractions = (0.2, 0.2) if start % (2 * BATCH) else (0.2, 0.5)
        found = assign(objects, chosen, pyramid, fractions, rule, images=BATCH)
        owners, labels = owners_and_labels(found)
        for image in range(BATCH):
            its = (objects.image == image).nonzero().squeeze(1)
            alone = Objects(objects.boxes[its], objects.classes[its], objects.image[its])
            slow = literal(alone, pyramid)
            wanted, wanted_labels = slow.labels(chosen[its].tolist(), *fractions, rule)
            here = slice(image * pyramid.num_cells, (image + 1) * pyramid.num_cells)
            wanted[wanted >= 0] = its[wanted[wanted >= 0]]
            assert torch.equal(owners[here], wanted)
            assert torch.equal(labels[here], wanted_labels)
            seen["shared"] += int((wanted_labels.abs().sum(dim=1) > 1).sum())
            seen["left out"] += len(batch[image]) - len(its)
        seen["ignored"] += int((labels < 0).sum())
        seen["positive"] += int((owners >= 0).sum())
    assert min(seen.values()) > 100, seen  # the images hold every case


FINE = Pyramid([(4, 4), (2, 2), (1, 1), (1, 1)], [8, 16, 32, 64])


def label_maps(objects: Objects, chosen: list[int], ignored: float, rule: str) -> list:
    """Per level, the class map of class 0 as rows of 1, 0 and -1."""
    targets = assign(objects, torch.tensor(chosen), FINE, (0.2, ignored), rule)
    _, labels = owners_and_labels(targets)
    parts = labels[:, 0].split([height * width for height, width in FINE.sizes])
    return [p.view(size).tolist() for p, size in zip(parts, FINE.sizes, strict=True)]


def test_one_object_worked_by_hand() -> None:
    # Its fifth is one cell of each level; its half, 6 to 18, three by three cells of the finest.
    box = Objects(torch.tensor([[0.0, 0, 24, 24]]), torch.tensor([0]), torch.tensor([0]))
    ring = [[-1, -1, -1, 0], [-1, 1, -1, 0], [-1, -1, -1, 0], [0, 0, 0, 0]]
    blank = [[0] * 4] * 4
    paper = label_maps(box, [0], 0.5, "paper")
    assert paper == [ring, [[-1, -1], [-1, -1]], [[0]], [[0]]]
    mmdet = label_maps(box, [0], 0.5, "mmdet")
    assert mmdet == [ring, [[-1, -1], [-1, -1]], [[-1]], [[-1]]]
    no_ring = [[0, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert label_maps(box, [2], 0.2, "mmdet") == [no_ring, [[-1, 0], [0, 0]], [[1]], [[-1]]]
    assert label_maps(box, [2], 0.2, "paper") == [blank, [[-1, 0], [0, 0]], [[1]], [[-1]]]


def test_the_smaller_object_has_the_shared_cells_whatever_their_order() -> None:
    boxes = torch.tensor([[0.0, 0, 32, 32], [12, 12, 20, 20], [14, 14, 18, 18]])
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        objects = Objects(boxes[order], torch.tensor([0, 1, 2])[order], torch.zeros(3).long())
        targets = assign(objects, torch.tensor([0, 0, 0]), FINE, (1.0, 1.0), "paper")
        owners, _ = owners_and_labels(targets)
        smallest = objects.classes[owners[: 4 * 4]].view(4, 4)
        assert smallest.tolist() == [[0, 0, 0, 0], [0, 2, 2, 0], [0, 2, 2, 0], [0, 0, 0, 0]]


def test_a_smaller_object_of_another_level_takes_nothing() -> None:
    boxes = torch.tensor([[0.0, 0, 32, 32], [12, 12, 20, 20]])
    objects = Objects(boxes, torch.tensor([0, 1]), torch.tensor([0, 0]))
    owners, labels = owners_and_labels(
        assign(objects, torch.tensor([0, 1]), FINE, (0.2, 0.2), "mmdet")
    )
    assert owners[[5, 6, 9, 10]].tolist() == [0] * 4
    assert labels[[5, 6, 9, 10]].tolist() == [[1, -1, 0]] * 4


def test_a_cell_that_is_lost_to_a_smaller_object_is_ignored_on_the_own_class() -> None:
    boxes = torch.tensor([[8.0, 8, 24, 24], [15, 15, 17, 17]])
    objects = Objects(boxes, torch.tensor([0, 1]), torch.tensor([0, 0]))
    _, labels = owners_and_labels(assign(objects, torch.tensor([0, 0]), FINE, (0.2, 0.2), "paper"))
    assert labels[[5, 6, 9, 10]].tolist() == [[-1, 1, 0]] * 4


def test_boxes_without_area_are_left_out() -> None:
    boxes = torch.tensor([[1.0, 1, 1, 9], [1, 1, 9, 9], [5, 5, 2, 9]])
    empty = instances_of(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    objects = Objects.of([empty, instances_of(boxes, torch.tensor([0, 1, 2])), empty])
    assert objects.boxes.tolist() == [[1, 1, 9, 9]]
    assert (objects.classes.tolist(), objects.image.tolist()) == ([1], [1])


def test_without_objects_all_is_background() -> None:
    empty = instances_of(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    none = torch.zeros(0, dtype=torch.int64)
    targets = assign(Objects.of([empty] * 2), none, FINE, (0.2, 0.5), "paper", images=2)
    assert targets.scores.shape == (2 * FINE.num_cells, K)
    assert not targets.scores.any() and not targets.ignored.any()
    assert len(targets.cells) == len(targets.instances) == 0
