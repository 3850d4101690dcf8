"""Check that mining hard negatives ends where training on all negatives does, and that it keeps its own rules."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchvision.ops import box_iou

from detector.duplicates import distinct_negatives, drop_near_duplicates
from detector.feature_norm import MeanNorm
from detector.mining import ImageRegions, MiningRule, mine, scale_features
from detector.svm import LinearSVM, norm_factor

Array = NDArray[Any]
NAMES = ("cat", "dog", "bus")
EVERY = MiningRule(duplicates="none", epochs=20)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def toy(images: int = 12, regions: int = 60, columns: int = 24) -> tuple[list[ImageRegions], dict[str, Array]]:
    """Return images whose regions are mostly easy background and sometimes near a class, and each class's positives."""
    numbers = np.random.default_rng(5)
    centres = 3.5 * np.linalg.qr(numbers.standard_normal((columns, 3)))[0].T
    found = []
    for _ in range(images):
        near = numbers.integers(0, 12, regions)
        means = np.where((near < 3)[:, None], 0.6 * centres[near % 3], -0.5 * centres.sum(axis=0))
        features = (means + 0.5 * numbers.standard_normal((regions, columns))).astype(np.float32)
        found.append(ImageRegions(features, numbers.random((regions, 3)) < 0.9))
    positives = {
        name: (centres[k] + 0.5 * numbers.standard_normal((20 + 5 * k, columns))).astype(np.float32)
        for k, name in enumerate(NAMES)
    }
    return found, positives


def everything(images: list[ImageRegions], positives: dict[str, Array]) -> tuple[Array, Array]:
    """Return all rows and their signs: what a fit without mining is given."""
    features = np.concatenate([*positives.values(), *(image.features for image in images)])
    signs = np.zeros((len(features), len(positives)), dtype=np.int8)
    start = 0
    for k, rows in enumerate(positives.values()):
        signs[start : start + len(rows), k] = 1
        start += len(rows)
    signs[start:][np.concatenate([image.negatives for image in images])] = -1
    return features, signs


@pytest.mark.parametrize("retrain_limit", [15, 2000])
def test_mining_ends_at_the_solution_of_all_negatives(retrain_limit: int) -> None:
    """Compare weights: two points of gap g on an objective P lie at most 2 sqrt(2 g P) apart (strong convexity)."""
    images, positives = toy()
    svm = LinearSVM(C=0.05, tol=1e-6, max_iter=20_000)
    complete = replace(svm).fit(*everything(images, positives), classes=NAMES)
    report = mine(images, positives, svm, replace(EVERY, retrain_limit=retrain_limit))
    np.testing.assert_allclose(svm.objective_, complete.objective_, rtol=1e-5)
    apart = np.sqrt(((svm.coef_ - complete.coef_).astype(np.float64) ** 2).sum(axis=1))
    assert (apart <= 2 * np.sqrt(2 * 1e-6 * complete.objective_) + 1e-5).all()
    assert svm.classes_.tolist() == list(NAMES)
    # and it got there without most of the negatives
    total = sum(image.negatives.sum(axis=0) for image in images)
    assert (report.kept < 0.6 * total).all()
    assert 1 < report.epochs < 20
    assert (report.added.tolist(), report.crowded) == ((report.evicted + report.kept).tolist(), 0)


def test_one_pass_as_in_the_paper_takes_the_hard_ones_alone() -> None:
    """Follow the rule by hand: no training before the end, after the one on the first image."""
    images, positives = toy()
    svm = LinearSVM(C=0.05, tol=1e-6, max_iter=20_000)
    report = mine(images, positives, svm, MiningRule(duplicates="none"))
    assert (report.epochs, report.trainings.tolist()) == (1, [2, 2, 2])
    first = replace(svm).fit(*everything(images[:1], positives))
    scores = first.decision_function(images[0].features)
    kept = [image.negatives & (first.decision_function(image.features) > -1.0001) for image in images]
    kept[0] = images[0].negatives & (scores >= -1.2)
    assert report.added.tolist() == (images[0].negatives.sum(axis=0) + sum(k.sum(axis=0) for k in kept[1:])).tolist()
    by_hand = [ImageRegions(image.features, mask) for image, mask in zip(images, kept, strict=True)]
    expected = replace(svm).fit(*everything(by_hand, positives))
    np.testing.assert_allclose(svm.objective_, expected.objective_, rtol=1e-5)
    last = [
        image.negatives & (svm.decision_function(image.features) < -1.2) & k
        for image, k in zip(images, kept, strict=True)
    ]
    gone = (images[0].negatives & (scores < -1.2)).sum(axis=0) + sum(mask.sum(axis=0) for mask in last)
    assert report.evicted.tolist() == gone.tolist()
    assert report.kept.tolist() == (report.added - report.evicted).tolist()


def test_a_forgotten_negative_that_becomes_hard_again_returns() -> None:
    """Let the first image teach a slope that the second turns over: what was easy in the first is then hard.

    One feature, positives at 1: negatives at 0.9 force a threshold near 1, so those at -3 are forgotten; negatives at
    100 then turn the slope, and -3 comes to the positives' side.
    """
    positives = {"a": np.full((3, 1), 1, np.float32)}
    images = [
        ImageRegions(np.array([[-3.0], [0.2]], np.float32), np.ones((2, 1), dtype=np.bool_)),
        ImageRegions(np.full((9, 1), 100, np.float32), np.ones((9, 1), dtype=np.bool_)),
    ]
    rule = replace(EVERY, retrain_limit=1)
    svm = LinearSVM(C=1.0, tol=1e-6, max_iter=20_000)
    once = mine(images, positives, svm, replace(rule, epochs=1))
    assert once.evicted[0] >= 1 and once.added[0] == 11
    assert svm.coef_[0, 0] < 0 and svm.decision_function(images[0].features)[0, 0] > -1
    again = mine(images, positives, svm, rule)
    assert again.added[0] > 11
    complete = replace(svm).fit(*everything(images, positives))
    np.testing.assert_allclose(svm.objective_, complete.objective_, rtol=1e-5)


def test_a_crowded_cache_stays_within_its_rows_and_says_so() -> None:
    images, positives = toy()
    full = sum(len(rows) for rows in positives.values())
    svm = LinearSVM(C=0.05)
    report = mine(images, positives, svm, MiningRule(duplicates="none", max_rows=full + 30, retrain_limit=10))
    assert report.crowded > 0
    assert report.kept.max() <= 30
    scores = np.concatenate([svm.decision_function(rows)[:, k] for k, rows in enumerate(positives.values())])
    assert (scores > 0).mean() > 0.9
    with pytest.raises(ValueError, match=f"expected max_rows above the {full} positives, got {full}"):
        mine(images, positives, svm, MiningRule(duplicates="none", max_rows=full))


def test_threads_change_no_bit_of_what_is_mined() -> None:
    images, positives = toy()
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        svm = LinearSVM(C=0.05)
        seen: list[int] = []
        report = mine(images, positives, svm, replace(EVERY, retrain_limit=15), report=seen.append)
        assert sum(seen) == len(images) * report.epochs
        results.append((svm.coef_.tobytes(), svm.intercept_.tobytes(), report.added.tolist(), report.kept.tolist()))
    assert results[0] == results[1]


def test_a_class_that_does_not_get_there_is_named() -> None:
    images, positives = toy(images=2)
    with pytest.warns(RuntimeWarning, match=r"^cat, dog, bus: gap up to .* after 1 passes"):
        mine(images, positives, LinearSVM(C=0.05, tol=1e-6, max_iter=1), replace(EVERY, epochs=1))


def test_the_scale_of_the_features_acts_on_raw_ones() -> None:
    images, positives = toy()
    sample = [image.features for image in images[:4]]
    scale = scale_features(sample)
    norms = np.linalg.norm(np.concatenate(sample).astype(np.float64), axis=1)
    assert scale == pytest.approx(20 / norms.mean(), rel=1e-6)
    svm = LinearSVM(tol=1e-5)
    mine(images, positives, svm, EVERY, scale)
    features, signs = everything(images, positives)
    complete = LinearSVM(tol=1e-5).fit(features * np.float32(scale), signs)
    assert svm.scale_ == scale
    np.testing.assert_allclose(svm.objective_, complete.objective_, rtol=1e-4)
    np.testing.assert_allclose(
        svm.decision_function(features), complete.decision_function(features * np.float32(scale)), atol=0.03
    )


def test_a_mean_norm_needs_no_copy_of_the_features() -> None:
    """Compare with all rows at once: sums of float64 in another order, so a few units in the last place."""
    parts = [np.random.default_rng(k).random((k % 7, 33), dtype=np.float32) for k in range(40)]
    norms = MeanNorm()
    for part in parts:
        norms.add(part)
    assert norms.factor(20.0) == pytest.approx(norm_factor(np.concatenate(parts), 20.0), rel=1e-14, abs=0)
    assert norms.count == sum(map(len, parts))
    assert scale_features(parts) == norms.factor(20.0)
    with pytest.raises(ValueError, match="expected features that are not all 0"):
        scale_features([np.zeros((3, 5), np.float32)])


def greedy(boxes: Array, overlap: float) -> list[int]:
    """Keep a box unless it overlaps one kept before, box by box."""
    kept: list[int] = []
    for row in range(len(boxes)):
        ious = box_iou(torch.from_numpy(boxes[[row]]), torch.from_numpy(boxes[kept])) if kept else torch.zeros(1, 1)
        if float(ious.max()) <= overlap:
            kept.append(row)
    return kept


def some_boxes(count: int) -> Array:
    corners = np.random.default_rng(3).integers(0, 12, (count, 2))
    return np.hstack([corners, corners + np.random.default_rng(4).integers(4, 14, (count, 2))]).astype(np.float32)


def test_near_duplicates_go_greedily_from_the_best() -> None:
    boxes = some_boxes(120)
    for overlap in (0.3, 0.7, 1.0):
        assert drop_near_duplicates(boxes, overlap).tolist() == greedy(boxes, overlap)
    # an IoU of exactly 0.7 is not more than 0.7
    assert drop_near_duplicates(np.array([[0, 0, 10, 1], [0, 0, 7, 1], [0, 0, 8, 1]], np.float32)).tolist() == [0, 1]
    assert drop_near_duplicates(np.zeros((0, 4), np.float32)).tolist() == []


@pytest.mark.parametrize("rule", ["paper", "cells", "none"])
def test_duplicates_are_dropped_among_the_negatives_of_one_class(rule: str) -> None:
    boxes = np.concatenate([some_boxes(60), some_boxes(60)[::-1]])
    negatives = np.random.default_rng(6).random((120, 4)) < 0.7
    negatives[:, 3] = negatives[:, 0]
    distinct = distinct_negatives(boxes, negatives, rule)
    for k in range(4):
        rows = np.flatnonzero(negatives[:, k])
        if rule == "paper":
            expected = rows[greedy(boxes[rows], 0.7)].tolist()
        elif rule == "cells":
            seen = [tuple(box) for box in boxes[rows].tolist()]
            expected = [row for place, row in enumerate(rows.tolist()) if seen.index(seen[place]) == place]
        else:
            expected = rows.tolist()
        assert np.flatnonzero(distinct[:, k]).tolist() == expected


def test_the_miner_drops_duplicates_by_the_rule() -> None:
    images, positives = toy(images=1)
    twice = np.repeat(np.arange(30), 2)[:, None] * np.array([[20, 0, 20, 0]]) + np.array([[0, 0, 10, 7]])
    image = replace(images[0], regions=twice, negatives=np.ones((60, 3), dtype=np.bool_))
    for rule, expected in (("paper", 30), ("cells", 30), ("none", 60)):
        assert mine([image], positives, LinearSVM(), MiningRule(duplicates=rule)).added.tolist() == [expected] * 3


def test_images_without_a_region_are_passed_over() -> None:
    images, positives = toy(images=3)
    empty = ImageRegions(np.zeros((0, 24), np.float32), np.zeros((0, 3), dtype=np.bool_))
    svm, other = LinearSVM(), LinearSVM()
    mine([empty, *images, empty], positives, svm, replace(EVERY, epochs=1))
    mine(images, positives, other, replace(EVERY, epochs=1))
    assert svm.coef_.tobytes() == other.coef_.tobytes()


def test_wrong_input_is_refused() -> None:
    images, positives = toy(images=2)
    rule = MiningRule(duplicates="none")
    cases: list[tuple[Any, Any, MiningRule, str]] = [
        (iter(images), positives, EVERY, "expected images that can be visited 20 times, got an iterator"),
        ([], positives, rule, "expected negatives of every class in the images, got none of cat, dog, bus"),
        (images, {}, rule, "expected positives of one length for every class"),
        (images, {**positives, "bus": positives["bus"][:, 1:]}, rule, "expected positives of one length"),
        (images, {**positives, "bus": positives["bus"][:0]}, rule, r"expected features of shape \(n, d\)"),
        (images, {"cat": positives["cat"]}, rule, r"expected bool negatives of shape \(60, 1\), got \(60, 3\)"),
        (images, {k: v[:, 1:] for k, v in positives.items()}, rule, "expected 23 features as the positives have"),
        (images, positives, MiningRule(), r"expected regions of shape \(60, 4\) to drop duplicates by paper, got None"),
    ]
    for given, having, how, message in cases:
        with pytest.raises(ValueError, match=message):
            mine(given, having, LinearSVM(), how)
    with pytest.raises(ValueError, match="expected at least one region to measure"):
        scale_features([])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"evict_threshold": -1.0}, "expected an evict_threshold of at most hard_threshold, got -1.0 and -1.0001"),
        ({"retrain_limit": 0}, "of 1 or more, got 0, 1, 50000"),
        ({"duplicates": "boxes"}, "expected duplicates to be one of paper, cells, none, got boxes"),
    ],
)
def test_a_wrong_rule_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MiningRule(**values)
