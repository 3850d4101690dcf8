"""Test the measures of classification against a port of VOCevalcls.m in plain Python, scikit-learn and naive loops."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from detector.evaluation.classification import (
    ClassificationResult,
    bootstrap_classification,
    classification_ap,
    classification_difference,
    evaluate_classification,
    format_classification,
    top_k_accuracy,
)

METRICS = ("voc07", "voc10")


def devkit_ap(scores: list[float], labels: list[int], metric: str) -> float:
    """Follow VOCevalcls.m of VOC2007 line by line, and VOCap.m of VOC2010 for the area."""
    positives = sum(label > 0 for label in labels)
    if positives == 0:
        return math.nan
    recall, precision, tp, fp = [], [], 0, 0
    for index in sorted(range(len(scores)), key=lambda i: -scores[i]):  # sorted keeps the order of equals
        tp += labels[index] > 0
        fp += labels[index] < 0
        recall.append(tp / positives)
        precision.append(tp / (tp + fp) if tp + fp else -math.inf)  # MATLAB: NaN, which max passes over
    if metric == "voc07":
        thresholds = [i * 0.1 for i in range(11)]
        best = [max([p for r, p in zip(recall, precision, strict=True) if r >= t], default=0.0) for t in thresholds]
        return sum(p / 11 for p in best)
    mrec, mpre = [0.0, *recall, 1.0], [0.0, *precision, 0.0]
    for i in range(len(mpre) - 2, -1, -1):
        mpre[i] = max(mpre[i], mpre[i + 1])
    return sum((mrec[i] - mrec[i - 1]) * mpre[i] for i in range(1, len(mrec)) if mrec[i] != mrec[i - 1])


def random_case(generator: np.random.Generator, images: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return scores that tie often, some -inf, and labels; about one class in five has no positive."""
    scores = generator.integers(0, 6, (images, classes)) / 4 - 0.5
    scores[generator.random(scores.shape) < 0.05] = -np.inf
    labels = generator.choice([-1, 0, 1], (images, classes), p=[0.5, 0.2, 0.3]).astype(np.int8)
    empty = generator.random(classes) < 0.15
    labels[:, empty] = np.minimum(labels[:, empty], 0)
    return scores, labels


@pytest.mark.parametrize("metric", METRICS)
def test_average_precision_is_the_devkits(metric: str) -> None:
    generator = np.random.default_rng(7)
    known = unknown = 0
    for case in range(300):
        scores, labels = random_case(generator, int(generator.integers(1, 25)), 4)
        found = classification_ap(torch.from_numpy(scores) if case % 2 else scores, labels, metric)
        assert (found.shape, found.dtype) == ((4,), np.float64)
        for k in range(4):
            wanted = devkit_ap(scores[:, k].tolist(), labels[:, k].tolist(), metric)
            assert found[k] == pytest.approx(wanted, abs=1e-12, nan_ok=True)
            known, unknown = known + (not math.isnan(wanted)), unknown + math.isnan(wanted)
    assert known > 600
    assert unknown > 100


def test_ties_keep_the_order_of_the_list_and_zeros_count_as_neither() -> None:
    scores = np.zeros((4, 1))
    for labels, ap in (([1, -1, -1, -1], 1), ([-1, 1, -1, -1], 1 / 2), ([0, 0, 1, -1], 1), ([-1, 0, 0, 1], 1 / 2)):
        assert classification_ap(scores, np.array(labels, dtype=np.int8)[:, None], "voc10").tolist() == [ap]


def test_the_area_is_scikit_learns_where_precision_falls() -> None:
    """scikit-learn does not make precision monotonous: the two agree where precision only falls from hit to hit."""
    metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(3)
    equal = larger = 0
    for _ in range(200):
        labels = generator.choice(np.array([-1, 1], dtype=np.int8), 12)
        scores = generator.permutation(12) / 12
        if (labels == 1).sum() == 0:
            continue
        ap = classification_ap(scores[:, None], labels[:, None], "voc10")[0]
        own = metrics.average_precision_score(labels == 1, scores)
        ranked = labels[np.argsort(-scores)] == 1
        precision = (np.cumsum(ranked) / np.arange(1, 13))[ranked]
        if (np.diff(precision) <= 0).all():
            assert ap == pytest.approx(own, abs=1e-12)
            equal += 1
        else:
            assert ap > own
            larger += 1
    assert min(equal, larger) > 5


def test_top_k_accuracy_against_scikit_learn_and_by_sorting() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(5)
    for _ in range(60):
        images, classes = int(generator.integers(1, 30)), int(generator.integers(3, 8))
        labels = generator.integers(0, classes, images)
        for scores in (generator.random((images, classes)), generator.integers(0, 3, (images, classes)) / 2):
            for k in range(1, classes + 3):
                ranks = [sorted(range(classes), key=lambda c, row=row: (-row[c], c)) for row in scores.tolist()]
                right = sum(label in rank[:k] for label, rank in zip(labels.tolist(), ranks, strict=True))
                assert top_k_accuracy(torch.from_numpy(scores), torch.from_numpy(labels), k) == right / images
                if k < classes and len(np.unique(scores)) == scores.size:  # it ranks equal scores otherwise
                    wanted = metrics.top_k_accuracy_score(labels, scores, k=k, labels=range(classes))
                    assert right / images == pytest.approx(wanted)
    assert math.isnan(top_k_accuracy(np.empty((0, 3)), np.empty(0, dtype=np.int64), 1))


def naive_map(scores: np.ndarray, labels: np.ndarray, metric: str) -> float:
    aps = [devkit_ap(scores[:, k].tolist(), labels[:, k].tolist(), metric) for k in range(scores.shape[1])]
    known = [ap for ap in aps if not math.isnan(ap)]
    return sum(known) / len(known) if known else math.nan


def naive_top(scores: np.ndarray, labels: np.ndarray, metric: str) -> float:
    return float((scores.argmax(axis=1) == labels).mean())  # argmax: the first of equals


@pytest.mark.parametrize(("metric", "naive"), [("voc07", naive_map), ("voc10", naive_map), ("top1", naive_top)])
def test_the_bootstrap_is_that_of_a_naive_loop(metric: str, naive: Callable[..., float]) -> None:
    generator = np.random.default_rng(17)
    scores, labels = random_case(generator, 14, 3)
    labels[:, 0] = -1
    labels[3, 0] = 1  # a class that many draws lack
    other = random_case(generator, 14, 3)[0]
    if metric == "top1":
        labels = generator.integers(0, 3, 14)
    values = []
    for draw in np.random.default_rng(9).multinomial(14, np.full(14, 1 / 14), size=80):
        rows = np.repeat(np.arange(14), draw)
        values.append([naive(points[rows], labels[rows], metric) for points in (scores, other)])
    first, second = np.array(values).T
    wanted = np.quantile(first, [0.025, 0.975])
    assert wanted[0] < wanted[1]
    assert bootstrap_classification(scores, labels, metric, 80, 9) == pytest.approx(tuple(wanted), abs=1e-12)
    wanted = np.quantile(first - second, [0.025, 0.975])
    found = classification_difference((scores, other), labels, metric, 80, 9)
    assert found == pytest.approx(tuple(wanted), abs=1e-12)
    assert classification_difference((scores, scores), labels, metric, 80) == (0, 0)
    assert bootstrap_classification(other, labels, metric, 80, 9) != bootstrap_classification(other, labels, metric, 80)


def test_nothing_to_measure_has_no_interval() -> None:
    nothing = np.full((3, 2), -1, dtype=np.int8)
    for scores, labels in ((np.zeros((3, 2)), nothing), (np.empty((0, 2)), nothing[:0])):
        assert all(math.isnan(end) for end in bootstrap_classification(scores, labels))
        assert np.isnan(classification_ap(scores, labels)).all()
    assert classification_ap(np.empty((3, 0)), nothing[:, :0]).shape == (0,)


def test_a_result_is_ready_for_json_and_prints_as_a_table() -> None:
    scores = np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.3, 0.7, 0.0], [0.6, 0.4, 0.0]])
    labels = np.array([0, 1, 0, 0])
    result = evaluate_classification(scores, labels, ("cat", "dog", "owl"), ("voc10", "top1", "top2"), 50)
    assert result.values["top1"] == 0.75
    assert result.per_class["top1"] == pytest.approx({"cat": 2 / 3, "dog": 1, "owl": math.nan}, nan_ok=True)
    assert result.values["voc10"] == 1
    written = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert written["voc10"] == {"map": 1, "interval": [1, 1], "per_class": {"cat": 1, "dog": 1, "owl": None}}
    assert written["top1"]["accuracy"] == 0.75
    assert written["top1"]["interval"] == list(bootstrap_classification(scores, labels, "top1", 50))
    lines = format_classification(result, ("dog", "owl")).splitlines()
    assert [line.split() for line in lines[:4]] == [
        ["class", "voc10", "top1", "top2"],
        ["-" * len(lines[0])],
        ["dog", "100.00", "100.00", "100.00"],
        ["owl", "-", "-", "-"],
    ]
    assert lines[5].split() == ["overall", "100.00", "75.00", "100.00"]
    assert [line[:10].strip() for line in lines[6:]] == ["95 %, low", "95 %, high"]
    assert len({len(line) for line in lines}) == 1
    nothing = ClassificationResult({"top1": math.nan}, {"top1": {}}, {"top1": (math.nan, math.nan)})
    assert nothing.to_dict() == {"top1": {"accuracy": None, "interval": [None, None], "per_class": {}}}
    assert format_classification(nothing).splitlines()[3].split() == ["overall", "-"]


def test_one_class_an_image_may_be_given_as_a_matrix() -> None:
    generator = np.random.default_rng(2)
    scores, single = generator.random((20, 3)), generator.integers(0, 3, 20)
    matrix = np.where(np.eye(3)[single] > 0, 1, -1).astype(np.int8)
    metrics = ("voc07", "top1")
    first, second = (
        evaluate_classification(scores, labels, "abc", metrics, 30).to_dict()
        for labels in (single, torch.tensor(matrix))
    )
    assert first == second
    matrix[4] = -1
    with pytest.raises(
        ValueError, match="expected exactly one class of every image for top-k accuracy, got 0 in row 4"
    ):
        evaluate_classification(scores, matrix, "abc", metrics)


def test_other_input_is_refused() -> None:
    scores, labels = np.zeros((4, 2)), np.ones((4, 2), dtype=np.int8)
    single = np.zeros(4, dtype=np.int64)
    cases: list[tuple[str, Callable[[], object]]] = [
        ("int8 labels of shape", lambda: classification_ap(scores, labels == 1)),
        ("int8 labels of shape", lambda: classification_ap(scores, labels[:3])),
        ("the labels 1, 0 and -1, got 2 to 2", lambda: classification_ap(scores, labels * 2)),
        ("numbers, got NaN", lambda: classification_ap(scores * np.nan, labels)),
        ("scores of shape", lambda: classification_ap(scores[0], labels[0])),
        ("one of the metrics voc07, voc10, got coco", lambda: classification_ap(scores, labels, "coco")),
        ("top1, top5, ..., got top0", lambda: bootstrap_classification(scores, single, "top0")),
        ("at least one sample", lambda: bootstrap_classification(scores, labels, samples=0)),
        ("at least 1, got 0", lambda: top_k_accuracy(scores, single, 0)),
        (r"labels in \[0, 2\), got 2 to 2", lambda: top_k_accuracy(scores, single + 2, 1)),
        ("int64 labels", lambda: top_k_accuracy(scores, labels, 1)),
        ("of one shape", lambda: classification_difference((scores, scores[:3]), labels)),
        ("scores of 3 classes, got 2", lambda: evaluate_classification(scores, labels, "abc")),
    ]
    for message, call in cases:
        with pytest.raises(ValueError, match=f"expected .*{message}"):
            call()


def test_recall_of_three_tenths_does_not_reach_the_fourth_threshold() -> None:
    """With 10 positives of which 3 come first and the rest last, exact thresholds would give another number."""
    labels = np.array([1] * 3 + [-1] * 10 + [1] * 7, dtype=np.int8)
    low = 10 / 20  # the largest precision from the fourth positive on
    ap = classification_ap(-np.arange(20.0)[:, None], labels[:, None], "voc07")[0]
    assert ap == pytest.approx((3 * 1 + 8 * low) / 11)
