"""Check why an object was missed, in scenes where the reason is known."""

from __future__ import annotations

import numpy as np
import pytest

from detector.evaluation.errors import ALL_MISSED, MISSED, Rules, find_errors
from detector.evaluation.misses import MISSES, Candidates, explain_miss
from tests.evaluation.cases import found, truth

NAMES = ("cat", "dog")
OBJECT = np.array([10.0, 20, 50, 40])  # 40 x 20
GOOD, HALF, POOR, AWAY = [10, 20, 48, 40], [10, 20, 30, 40], [10, 20, 29, 40], [60, 0, 64, 8]


def region(box: list[int], scores: tuple[float, float], refined: list[int]) -> Candidates:
    """Return one region, refined for dogs; for cats it stays on the object."""
    corners = np.array([[refined if label else OBJECT.tolist() for label in range(2)]], dtype=np.float32)
    return Candidates(np.array([box], dtype=np.float32), np.array([scores], dtype=np.float32), corners, 0.25)


def both(*parts: Candidates) -> Candidates:
    rows = (np.concatenate([getattr(p, name) for p in parts]) for name in ("boxes", "scores", "refined"))
    return Candidates(*rows, parts[0].min_score)


HIGH, LOW = (0.0, 0.25), (0.9, 0.24)  # of cat and dog; exactly min_score is enough


@pytest.mark.parametrize(
    ("candidates", "cause", "overlap"),
    [
        (region(POOR, HIGH, GOOD), "no proposal", 0.475),
        (region(GOOD, LOW, GOOD), "low score", 0.95),
        (both(region(GOOD, LOW, GOOD), region(AWAY, HIGH, AWAY)), "low score", 0.95),
        (region(HALF, HIGH, POOR), "regression", 0.5),
        (both(region(HALF, HIGH, AWAY), region(GOOD, LOW, GOOD)), "regression", 0.95),
        (region(GOOD, HIGH, HALF), "suppressed", 0.95),
        (both(region(GOOD, HIGH, AWAY), region(POOR, HIGH, GOOD)), "suppressed", 0.95),
        (both(region(GOOD, LOW, GOOD), region(AWAY, HIGH, HALF)), "suppressed", 0.95),
    ],
)
def test_cause_of_a_miss(candidates: Candidates, cause: str, overlap: float) -> None:
    assert explain_miss(OBJECT, 1, candidates) == (cause, pytest.approx(overlap, abs=1e-12))


def test_without_any_region_there_is_no_proposal() -> None:
    empty = Candidates(np.empty((0, 4)), np.empty((0, 2)), np.empty((0, 2, 4)), 0.25)
    assert explain_miss(OBJECT, 1, empty) == ("no proposal", 0.0)


def test_the_iou_is_that_of_the_rules() -> None:
    assert explain_miss(OBJECT, 1, region(GOOD, HIGH, HALF), 0.75)[0] == "regression"
    assert explain_miss(OBJECT, 1, region(GOOD, HIGH, HALF), 0.96)[0] == "no proposal"


def test_a_strict_iou_is_strict_about_regions_too() -> None:
    """Half of the object is a hit by the devkit and a poor box by its Python port."""
    nothing = found([], [], [], NAMES)
    report = find_errors(
        [nothing], [truth([OBJECT], [1])], NAMES, Rules(strict=True), lambda _: region(HALF, LOW, GOOD)
    )
    assert report.mistakes[0].cause == "no proposal"


def test_regions_are_asked_for_once_and_only_where_something_is_missed() -> None:
    """One dog is found and one is difficult; the other four are missed, each for a reason of its own."""
    nothing, hit = found([], [], [], NAMES), found([OBJECT], [0.5], [1], NAMES)
    other = [0, 0, 8, 16]
    truths = [
        truth([OBJECT], [1]),
        truth([OBJECT, other], [1, 1]),
        truth([OBJECT], [1], [True]),
        truth([OBJECT], [1]),
        truth([OBJECT], [1]),
    ]
    regions = {1: region(HALF, HIGH, POOR), 3: region(GOOD, LOW, GOOD), 4: region(GOOD, HIGH, GOOD)}
    asked = []

    def candidates(image: int) -> Candidates:
        asked.append(image)
        return regions[image]

    report = find_errors([hit, nothing, nothing, nothing, nothing], truths, NAMES, Rules("voc10"), candidates)
    assert asked == [1, 3, 4]
    assert [(m.image, m.object, m.cause) for m in report.mistakes] == [
        (1, 0, "regression"),
        (1, 1, "no proposal"),
        (3, 0, "low score"),
        (4, 0, "suppressed"),
    ]
    assert [report.counts[cause] for cause in MISSES] == [1, 1, 1, 1]
    assert MISSED not in report.counts
    assert report.baseline == pytest.approx(1 / 5, abs=1e-12)
    for cause in MISSES:  # one object of five less
        assert report.costs[cause] == pytest.approx(1 / 4 - 1 / 5, abs=1e-12)
    assert report.costs[ALL_MISSED] == pytest.approx(4 / 5, abs=1e-12)
