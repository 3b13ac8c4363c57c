"""Numbers at score thresholds, and confusion: by hand, and against counting one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np

from fsn_d2.report.counting import FIRST_LEVEL, LAST_LEVEL, confusion, count, levels_of
from fsn_d2.report.inputs import Evaluated
from fsn_d2.report.matching import match


def test_levels_compare_as_scores_do() -> None:
    scores = np.concatenate([np.arange(101) / 100, np.nextafter(np.arange(1, 101) / 100, 0)])
    scores = np.append(scores, np.random.default_rng(0).random(500))
    levels = levels_of(scores)
    for threshold in range(101):
        assert ((levels >= threshold) == (scores >= threshold / 100)).all()


def test_thresholds_by_hand(by_hand: Evaluated) -> None:
    counts = count(by_hand, match(by_hand))
    assert counts.boxes.tolist() == [2, 1, 3]  # apples, bears without the crowd, both

    def at(level: int) -> list[list[int]]:
        tables = (counts.correct, counts.false)
        return [table[:, level - FIRST_LEVEL].tolist() for table in tables]

    assert at(5) == [[1, 1, 2], [1, 1, 2]]
    assert at(60) == at(5)
    assert at(61) == [[1, 1, 2], [1, 0, 1]]
    assert at(71) == [[1, 0, 1], [1, 0, 1]]
    assert at(81) == [[1, 0, 1], [0, 0, 0]]
    assert at(91) == [[0, 0, 0], [0, 0, 0]]
    # apples: 2 / 3 without the false one, else 2 / 4; bears: 1; both: 4 / (4 + 1 + 1).
    assert counts.best_levels().tolist() == [81, 61, 61]
    f1 = counts.f1()[:, [61 - FIRST_LEVEL, 81 - FIRST_LEVEL]]
    np.testing.assert_allclose(f1, [[1 / 2, 2 / 3], [1, 0], [2 / 3, 1 / 2]])


def test_confusion_by_hand(by_hand: Evaluated) -> None:
    apple, bear, background = 0, 1, 2
    rows = confusion(by_hand, match(by_hand, across_classes=True))
    assert sorted(rows.tolist()) == [
        [apple, apple, 90, 1],
        [bear, apple, 80, 1],
        [background, bear, 60, 1],
        [background, bear, 70, 1],
    ]


def test_counting_one_by_one(random_case: Evaluated) -> None:
    matches = match(random_case)
    counts = count(random_case, matches)
    across = match(random_case, across_classes=True)
    rows = confusion(random_case, across)
    found, scores = random_case.detected.label, random_case.scores
    for level in range(FIRST_LEVEL, LAST_LEVEL + 1):
        kept = [i for i, score in enumerate(scores) if score >= level / 100]
        correct = Counter(found[i] for i in kept if matches.annotation[i] >= 0)
        false = Counter(found[i] for i in kept if matches.annotation[i] < 0)
        place = level - FIRST_LEVEL
        assert counts.correct[:, place].tolist() == [
            correct[0],
            correct[1],
            correct[2],
            correct.total(),
        ]
        assert counts.false[:, place].tolist() == [false[0], false[1], false[2], false.total()]
        pairs: Counter[tuple[int, int]] = Counter()
        for truth, said, at, times in rows:
            pairs[truth, said] += times if at >= level else 0
        expected = Counter(
            (random_case.annotated.label[j] if (j := across.annotation[i]) >= 0 else 3, found[i])
            for i in kept
        )
        assert +pairs == expected
    assert len({(truth, said) for truth, said, *_ in rows.tolist()}) > 6


def test_a_perfect_score_is_above_the_last_threshold(build: Callable[..., Evaluated]) -> None:
    box = [10.0, 10, 40, 40]
    evaluated = build([(1, 0, box)], [(1, 0, box, 1.0)])
    counts = count(evaluated, match(evaluated))
    assert counts.correct[0].tolist() == [1] * (LAST_LEVEL - FIRST_LEVEL + 1)
    assert confusion(evaluated, match(evaluated, across_classes=True)).tolist() == [[0, 0, 99, 1]]


def test_nothing_at_all(build: Callable[..., Evaluated]) -> None:
    evaluated = build([], [])
    counts = count(evaluated, match(evaluated))
    assert counts.boxes.tolist() == [0, 0, 0]
    assert not counts.f1().any()
    assert confusion(evaluated, match(evaluated, across_classes=True)).shape == (0, 4)
