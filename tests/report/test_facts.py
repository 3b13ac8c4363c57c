"""Everything together: complete, in json's terms, and consistent."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from fsn_d2.report import Evaluated, build_facts


def test_by_hand(by_hand: Evaluated) -> None:
    facts = build_facts(by_hand)
    assert facts["classes"] == ["apple", "bear"]
    assert (facts["images"], facts["detections"]) == (3, 6)
    assert facts["boxes"] == [2, 1, 3]
    # One of two apples is found, before any false one; the bear before its false one.
    apples = round(100 * 51 / 101, 4)
    assert facts["ap"] == [apples, 100, round((100 * 51 / 101 + 100) / 2, 4)]
    assert facts["ap50"] == facts["ap75"] == facts["ap"]
    assert facts["best"] == [81, 61, 61]
    small, medium, large = facts["sizes"]
    assert [part["boxes"] for part in (small, medium, large)] == [[0, 0, 0], [2, 1, 3], [0, 0, 0]]
    assert (small["ap"], medium["ap"]) == ([None] * 3, facts["ap"])
    assert [part["boxes"][-1] for part in facts["ratios"]] == [0, 3, 0]
    assert [part["boxes"][-1] for part in facts["places"]] == [2, 1, 0, 0, 0, 0, 0, 0, 0]
    assert {len(curve) for curve in facts["curves"]["75"]} == {101}
    assert [picture["list"] for picture in facts["pictures"]] == ["worst", "best"]


def test_json_holds_it(by_hand: Evaluated) -> None:
    facts = build_facts(by_hand)
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts


def test_nothing_at_all(build: Callable[..., Evaluated]) -> None:
    facts = build_facts(build([], []))
    assert facts["ap"] == [None] * 3
    assert facts["pictures"] == []
    json.dumps(facts, allow_nan=False)


def test_a_negative_number_of_images_is_refused(by_hand: Evaluated) -> None:
    with pytest.raises(ValueError, match="images: expected 0 or more, got -1"):
        build_facts(by_hand, images=-1)
