"""Splitting: a partition by images, repeatable, that keeps copies together."""

from __future__ import annotations

import pytest

from fsn_d2.data.splitting import split_coco


def make_coco(count: int) -> dict:
    images = [{"id": i, "file_name": f"{i:03}.jpg"} for i in range(count)]
    owners = [i for i in range(count) for _ in range(i % 3)]
    annotations = [{"id": n, "image_id": i} for n, i in enumerate(owners, start=1)]
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "x"}]}


def names(part: dict) -> set[str]:
    return {image["file_name"] for image in part["images"]}


@pytest.mark.parametrize("count, fraction, second", [(100, 0.2, 20), (2, 0.01, 1), (2, 0.99, 1)])
def test_it_is_a_partition(count: int, fraction: float, second: int) -> None:
    coco = make_coco(count)
    train, test = split_coco(coco, fraction, seed=0)
    assert len(test["images"]) == second
    assert not names(train) & names(test)
    assert names(train) | names(test) == names(coco)
    for part in (train, test):
        ids = {image["id"] for image in part["images"]}
        assert part["annotations"] == [a for a in coco["annotations"] if a["image_id"] in ids]
        assert part["categories"] == coco["categories"]


def test_the_seed_decides() -> None:
    coco = make_coco(50)
    first = split_coco(coco, 0.3, seed=1)
    assert split_coco(coco, 0.3, seed=1) == first
    assert split_coco(coco, 0.3, seed=2) != first
    shuffled = {**coco, "images": coco["images"][::-1]}
    assert names(split_coco(shuffled, 0.3, seed=1)[1]) == names(first[1])


@pytest.mark.parametrize("seed", range(10))
def test_copies_stay_together(seed: int) -> None:
    copies = [f"{i:03}.jpg" for i in (3, 7, 20)]
    for part in split_coco(make_coco(30), 0.5, seed=seed, together=[copies]):
        assert len(names(part) & set(copies)) in (0, 3)


@pytest.mark.parametrize("fraction", [0, 1, -1, 1.5, float("nan")])
def test_fractions_out_of_range(fraction: float) -> None:
    with pytest.raises(ValueError, match=r"--test-fraction is .*expected more than 0"):
        split_coco(make_coco(5), fraction, seed=0)


def test_one_image_cannot_be_split() -> None:
    with pytest.raises(ValueError, match="1 images cannot be split"):
        split_coco(make_coco(1), 0.5, seed=0)
