"""Measure the classification of images: VOC's average precision (VOCevalcls.m) and top-k accuracy.

VOCevalcls sorts the images of a class by score, ties in the order of the list. An image labelled 1 is a hit, one
labelled -1 a false positive; one labelled 0, which shows difficult objects of the class only, counts as neither. From
recall and precision on, all is as in the measurement of detections (`voc`).

Intervals are those of the bootstrap over images (`bootstrap`): the order of the images stays, only how often each
counts is drawn.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .bootstrap import draw_images, interval, resampled_ap
from .voc import METRICS, Array, Matches, average_precision, curve

Values = Array | Tensor


@dataclass(frozen=True, slots=True, eq=False)
class ClassificationResult:
    """Hold what was measured, by metric: `voc07`, `voc10` or `topK` with a number K, such as `top1`.

    values: in [0, 1], the mean average precision over the classes that have an image, or the accuracy over all
    images; NaN if there are none. per_class: by class name, NaN without an image: the average precision, or the
    accuracy on the images of the class. intervals: the ends of the 95 % interval of the value, if it was measured.
    """

    values: dict[str, float]
    per_class: dict[str, dict[str, float]]
    intervals: dict[str, tuple[float, float]]

    def to_dict(self) -> dict[str, Any]:
        """Return `{METRIC: {"map" or "accuracy": number, "interval": [low, high], "per_class": {name: number}}}`.

        It is ready for JSON: NaN becomes None. There is no `interval` where none was measured.
        """
        return {
            metric: {
                "map" if metric in METRICS else "accuracy": _number(value),
                **({"interval": [_number(e) for e in self.intervals[metric]]} if metric in self.intervals else {}),
                "per_class": {name: _number(number) for name, number in self.per_class[metric].items()},
            }
            for metric, value in self.values.items()
        }


def evaluate_classification(
    scores: Values,
    labels: Values,
    class_names: Sequence[str],
    metrics: Sequence[str] = ("voc07", "voc10"),
    samples: int = 1000,
    seed: int = 0,
) -> ClassificationResult:
    """Measure scores of N images by each of the metrics, with the interval that `bootstrap_classification` gives.

    samples: draws of the bootstrap; 0 measures no intervals.
    scores: (N, K). labels: (N, K) int8 as `classification_ap` takes them, or (N,) int64 in [0, K), one class an
    image; for `topK` each row of a matrix must have exactly one 1. Raises ValueError for an unknown metric and for
    shapes, types and values that are other than this.
    """
    names, points = tuple(class_names), _scores(scores)
    if points.shape[1] != len(names):
        raise ValueError(f"expected scores of {len(names)} classes, got {points.shape[1]}")
    values, per_class, intervals = {}, {}, {}
    for metric in dict.fromkeys(metrics):
        value, parts, resample = _measure(points, labels, metric)
        values[metric] = value
        per_class[metric] = dict(zip(names, parts.tolist(), strict=True))
        if samples:
            intervals[metric] = interval(resample(draw_images(len(points), samples, seed)))
    return ClassificationResult(values, per_class, intervals)


def classification_ap(scores: Values, labels: Values, metric: str = "voc07") -> Array:
    """Return the average precision of each class, (K,) float64, NaN where no image shows the class.

    scores: (N, K); -inf stands for an image without a result, as in the devkit. labels: (N, K) int8: 1 shows the
    class, -1 does not, 0 is left out. metric: `voc07` (11 points) or `voc10` (area). Raises ValueError for NaN among
    the scores, for another metric, and for shapes, types and labels that are other than this.
    """
    points = _scores(scores)
    return _all_ap(_all_matches(points, _matrix(labels, points.shape)), metric)


def top_k_accuracy(scores: Values, labels: Values, k: int = 1) -> float:
    """Return the share of images whose class is among the k of highest score, NaN of no images.

    scores: (N, K). labels: (N,) int64 in [0, K). Of classes with equal scores the one of lower index ranks first. With
    k of K or more every image is right. Raises ValueError for k below 1, NaN among the scores and other shapes, types
    or labels.
    """
    points = _scores(scores)
    right = _right(points, _single(labels, points.shape), k)
    return float(right.mean()) if len(right) else math.nan


def bootstrap_classification(
    scores: Values, labels: Values, metric: str = "voc07", samples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % interval (2.5 % and 97.5 % quantile) over images of the mean average precision or accuracy.

    metric: `voc07`, `voc10` or `topK`. A class that no image of a draw shows is left out of the mean of that draw; a
    draw without any class is left out altogether. Both ends are NaN if nothing can be measured. Raises ValueError for
    less than one sample and as `evaluate_classification`.
    """
    points = _scores(scores)
    return interval(_measure(points, labels, metric)[2](draw_images(len(points), samples, seed)))


def classification_difference(
    pair: tuple[Values, Values], labels: Values, metric: str = "voc07", samples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % interval of the difference of two classifiers, the first minus the second.

    pair: the scores of each, (N, K), of the same images. Both are measured on the same draws of images, so that what
    makes a draw easy or hard for both cancels out. Else as `bootstrap_classification`.
    """
    first, second = (_scores(scores) for scores in pair)
    if first.shape != second.shape:
        raise ValueError(f"expected two score matrices of one shape, got {first.shape} and {second.shape}")
    draws = draw_images(len(first), samples, seed)
    one, other = (_measure(points, labels, metric)[2](draws) for points in (first, second))
    return interval(one - other)


def format_classification(result: ClassificationResult, class_names: Sequence[str] | None = None) -> str:
    """Return a plain table: a row per class, a column per metric, in per cent, `-` for NaN.

    Below stand the value over all classes or images and the ends of its 95 % interval. class_names: the classes that
    get a row, in this order; by default all.
    """
    known = dict.fromkeys(name for parts in result.per_class.values() for name in parts)
    names = list(known) if class_names is None else list(class_names)
    rows = [(name, [parts.get(name, math.nan) for parts in result.per_class.values()]) for name in names]
    last = [("overall", list(result.values.values()))]
    if result.intervals:
        last += [
            (f"95 %, {word}", [ends[i] for ends in result.intervals.values()]) for i, word in enumerate(("low", "high"))
        ]
    width = max(len(name) for name, _ in [("class", []), *rows, *last])
    columns = [max(6, len(metric)) for metric in result.values]

    def line(name: str, cells: Sequence[str]) -> str:
        return "  ".join([f"{name:<{width}}", *(f"{cell:>{w}}" for cell, w in zip(cells, columns, strict=True))])

    head = line("class", list(result.values))
    rule = "-" * len(head)
    body, foot = ([line(name, [_percent(v) for v in values]) for name, values in part] for part in (rows, last))
    return "\n".join([head, rule, *body, rule, *foot])


def _measure(points: Array, labels: Values, metric: str) -> tuple[float, Array, Callable[[Array], Array]]:
    """Return the value of a metric, the (K,) values of the classes, and what gives the value of every draw."""
    if metric in METRICS:
        matrix = _one_hot(labels, points.shape) if labels.ndim == 1 else _matrix(labels, points.shape)
        matches = _all_matches(points, matrix)
        aps = _all_ap(matches, metric)
        known = aps[~np.isnan(aps)]
        return float(known.mean()) if len(known) else math.nan, aps, lambda draws: _mean_aps(matches, draws, metric)
    number = re.fullmatch(r"top([1-9]\d*)", metric)
    if number is None:
        raise ValueError(f"expected one of the metrics {', '.join(METRICS)}, top1, top5, ..., got {metric}")
    single = _single(labels, points.shape) if labels.ndim == 1 else _only(_matrix(labels, points.shape))
    right = _right(points, single, int(number[1]))
    images = np.bincount(single, minlength=points.shape[1])
    hits = np.bincount(single[right], minlength=points.shape[1])
    parts = np.where(images > 0, hits / np.maximum(images, 1), np.nan)
    return float(right.mean()) if len(right) else math.nan, parts, lambda draws: _mean_right(right, draws)


def _all_matches(points: Array, matrix: Array) -> list[Matches]:
    """Sort the images of every class as VOCevalcls does: an image is to its class what a detection is to its boxes."""
    matches = []
    for column, label in zip(points.T, matrix.T, strict=True):
        images = np.argsort(-column, kind="stable")
        images = images[label[images] != 0]
        matches.append(Matches(images, column[images], label[images] == 1, (label == 1).astype(np.int64)))
    return matches


def _all_ap(matches: Sequence[Matches], metric: str) -> Array:
    if metric not in METRICS:
        raise ValueError(f"expected one of the metrics {', '.join(METRICS)}, got {metric}")
    return np.array([average_precision(*curve(m), metric) if m.objects.any() else math.nan for m in matches])


def _mean_aps(matches: Sequence[Matches], draws: Array, metric: str) -> Array:
    """Return the mean average precision of every draw that shows a class; the labels alone decide which these are."""
    shown = [m for m in matches if m.objects.any()]
    if not shown:
        return np.empty(0)
    aps = np.stack([resampled_ap(m, draws, metric) for m in shown])
    known = ~np.isnan(aps)
    present = known.any(axis=0)
    means: Array = np.where(known, aps, 0)[:, present].sum(axis=0) / known[:, present].sum(axis=0)
    return means


def _mean_right(right: Array, draws: Array) -> Array:
    """Return the accuracy in every draw."""
    shares: Array = draws @ right / len(right) if len(right) else np.empty(0)
    return shares


def _right(points: Array, single: Array, k: int) -> Array:
    """Say for which images the class is among the best k, (N,) bool, by counting the classes that rank before it."""
    if k < 1:
        raise ValueError(f"expected a number of classes of at least 1, got {k}")
    own = points[np.arange(len(single)), single][:, None]
    earlier = np.arange(points.shape[1]) < single[:, None]
    right: Array = ((points > own) | ((points == own) & earlier)).sum(axis=1) < k
    return right


def _scores(scores: Values) -> Array:
    points = scores.detach().to("cpu", torch.float64).numpy() if isinstance(scores, Tensor) else np.asarray(scores)
    if points.ndim != 2:
        raise ValueError(f"expected scores of shape (N, K), got {points.shape}")
    points = points.astype(np.float64)
    if np.isnan(points).any():
        raise ValueError("expected scores that are numbers, got NaN")
    return points


def _matrix(labels: Values, shape: tuple[int, ...]) -> Array:
    """Check the labels of `classification_ap`. Flags are refused: their 0 would be taken for `left out`."""
    matrix = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if matrix.shape != shape or matrix.dtype != np.int8:
        raise ValueError(f"expected int8 labels of shape {shape}, got {matrix.shape} {matrix.dtype}")
    if matrix.size and (matrix.min() < -1 or matrix.max() > 1):
        raise ValueError(f"expected the labels 1, 0 and -1, got {matrix.min()} to {matrix.max()}")
    return matrix


def _single(labels: Values, shape: tuple[int, ...]) -> Array:
    single = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if single.shape != shape[:1] or single.dtype != np.int64:
        raise ValueError(f"expected int64 labels of shape {shape[:1]}, got {single.shape} {single.dtype}")
    if single.size and (single.min() < 0 or single.max() >= shape[1]):
        raise ValueError(f"expected labels in [0, {shape[1]}), got {single.min()} to {single.max()}")
    return single


def _only(matrix: Array) -> Array:
    """Return the one class that each image shows."""
    counts = (matrix == 1).sum(axis=1)
    if (counts != 1).any():
        row = int(np.flatnonzero(counts != 1)[0])
        raise ValueError(
            f"expected exactly one class of every image for top-k accuracy, got {counts[row]} in row {row}"
        )
    only: Array = (matrix == 1).argmax(axis=1)
    return only


def _one_hot(labels: Values, shape: tuple[int, ...]) -> Array:
    """Return the matrix that says of every other class that the image does not show it."""
    return np.where(np.arange(shape[1]) == _single(labels, shape)[:, None], 1, -1).astype(np.int8)


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _percent(value: float) -> str:
    return f"{100 * value:.2f}" if math.isfinite(value) else "-"
