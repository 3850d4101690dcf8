"""Measure average precision as the MATLAB devkit of PASCAL VOC does (VOCevaldet.m, VOCap.m).

Per class, detections are sorted by score, ties in the order in which they were given. Each is compared with the object
of its class and image with which its IoU is largest (the first of equals). If that IoU is at least 0.5 it is a hit the
first time the object is reached and a false positive every further time; if the object is `difficult` the detection
counts as neither, and difficult objects are not counted as objects. Every other detection is a false positive.

The devkit writes boxes 1-based and inclusive and adds 1 to each width. On [xmin - 1, xmax) the plain difference is
the same number, so the IoU here equals the devkit's exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..structures import Detections, GroundTruth
from .results import Result, check_lists

Array = np.ndarray[Any, np.dtype[Any]]
METRICS = ("voc07", "voc10")
# MATLAB's `for t = 0:0.1:1` counts in multiples of the step: 0.30000000000000004, 0.6000000000000001 and
# 0.7000000000000001 are among them, so that a recall of exactly 3/10 does not reach the fourth threshold.
THRESHOLDS: Array = np.arange(11) * 0.1


@dataclass(frozen=True, slots=True, eq=False)
class Matches:
    """Hold what became of the detections of one class, best score first; those on difficult objects are left out.

    images: (D,) int64, the image of each. scores: (D,) float64. hits: (D,) bool. objects: (N,) int64, how many
    objects that are not difficult each image has.
    """

    images: Array
    scores: Array
    hits: Array
    objects: Array


def voc_ap(
    detections: Sequence[Detections],
    truths: Sequence[GroundTruth],
    class_names: Sequence[str],
    metric: str = "voc07",
    iou: float = 0.5,
) -> Result:
    """Return the average precision of each class and their mean; image i has detections[i] and truths[i].

    metric: `voc07` (11 points) or `voc10` (area under the curve). Raises ValueError if it is neither, or if the two
    lists differ in length or speak of other classes.
    """
    matches = match_all(detections, truths, class_names, iou)
    per_class = {
        name: average_precision(*curve(m), metric) if m.objects.any() else float("nan")
        for name, m in zip(class_names, matches, strict=True)
    }
    values = [ap for ap in per_class.values() if not np.isnan(ap)]
    return Result(float(np.mean(values)) if values else float("nan"), per_class, metric)


def precision_recall(
    detections: Sequence[Detections],
    truths: Sequence[GroundTruth],
    class_names: Sequence[str],
    name: str,
    iou: float = 0.5,
) -> tuple[Array, Array, Array]:
    """Return recall, precision and score, each (D,) float64, after each detection of class `name` that counts.

    Recall is NaN if the class has no objects. Raises ValueError if there is no class of that name.
    """
    if name not in class_names:
        raise ValueError(f"expected one of the classes {', '.join(class_names)}, got {name}")
    matches = match_all(detections, truths, class_names, iou)[list(class_names).index(name)]
    return (*curve(matches), matches.scores)


def average_precision(recall: Array, precision: Array, metric: str = "voc07") -> float:
    """Return the average precision of a curve of (D,) recalls, ascending, and their precisions.

    voc07: mean over 11 recalls of the largest precision at that recall or more. voc10: area under the precision
    made monotonous. Both are 0 for an empty curve.
    """
    if metric not in METRICS:
        raise ValueError(f"expected one of the metrics {', '.join(METRICS)}, got {metric}")
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    if metric == "voc07":
        return float(envelope[np.searchsorted(recall, THRESHOLDS, side="left")].sum() / 11)
    return float((np.diff(recall, prepend=0.0) * envelope[:-1]).sum())


def curve(matches: Matches) -> tuple[Array, Array]:
    """Return recall and precision after each detection, (D,) float64 each."""
    hits = np.cumsum(matches.hits, dtype=np.float64)
    objects = matches.objects.sum()
    recall = hits / objects if objects else np.full(len(hits), np.nan)
    return recall, hits / np.arange(1, len(hits) + 1)


def match_all(
    detections: Sequence[Detections], truths: Sequence[GroundTruth], class_names: Sequence[str], iou: float = 0.5
) -> list[Matches]:
    """Match the detections of every class with its objects; one Matches per class."""
    check_lists(detections, truths, class_names)
    found = _flatten(detections, [item.scores for item in detections], np.float64)
    true = _flatten(truths, [item.difficult for item in truths], np.bool_)
    return [_match(_of_class(found, k), _of_class(true, k), len(truths), iou) for k in range(len(class_names))]


@dataclass(frozen=True, slots=True, eq=False)
class _Boxes:
    """Hold boxes of many images in the order of the images; values: the scores, or the flags `difficult`."""

    images: Array
    boxes: Array
    labels: Array
    values: Array


def _flatten(items: Sequence[Detections] | Sequence[GroundTruth], values: Sequence[Any], kind: type) -> _Boxes:
    images = np.repeat(np.arange(len(items)), [len(item) for item in items])
    boxes = [item.boxes.cpu().numpy().astype(np.float64) for item in items]
    labels = [item.labels.cpu().numpy() for item in items]
    columns = [value.detach().cpu().numpy().astype(kind) for value in values]
    return _Boxes(
        images,
        np.concatenate([np.empty((0, 4)), *boxes]),
        np.concatenate([np.empty(0, dtype=np.int64), *labels]),
        np.concatenate([np.empty(0, dtype=kind), *columns]),
    )


def _of_class(items: _Boxes, label: int) -> _Boxes:
    rows = np.flatnonzero(items.labels == label)
    return _Boxes(items.images[rows], items.boxes[rows], items.labels[rows], items.values[rows])


def _match(found: _Boxes, true: _Boxes, count: int, iou: float) -> Matches:
    """Match the detections of one class in `count` images."""
    objects = np.bincount(true.images[~true.values], minlength=count)
    order = np.argsort(-found.values, kind="stable")
    best, overlap = _best_objects(found, true)
    best, overlap = best[order], overlap[order]
    reached = overlap >= iou
    difficult = np.zeros(len(order), dtype=bool)
    difficult[reached] = true.values[best[reached]]
    hits = np.zeros(len(order), dtype=bool)
    rows = np.flatnonzero(reached & ~difficult)
    hits[rows[np.unique(best[rows], return_index=True)[1]]] = True
    keep = order[~difficult]
    return Matches(found.images[keep], found.values[keep], hits[~difficult], objects)


def _best_objects(found: _Boxes, true: _Boxes) -> tuple[Array, Array]:
    """Return for each detection the index of the object of its image with the largest IoU, and that IoU.

    Both (D,); the first of equals; IoU is -1 where the image has no object of the class.
    """
    first = np.searchsorted(true.images, found.images, side="left")
    counts = np.searchsorted(true.images, found.images, side="right") - first
    best, overlap = np.zeros(len(counts), dtype=np.int64), np.full(len(counts), -1.0)
    some = np.flatnonzero(counts)
    if len(some) == 0:
        return best, overlap
    lengths = counts[some]
    starts = np.cumsum(lengths) - lengths
    pairs = np.arange(lengths.sum()) - np.repeat(starts - first[some], lengths)
    ious = _iou(np.repeat(found.boxes[some], lengths, axis=0), true.boxes[pairs])
    overlap[some] = np.maximum.reduceat(ious, starts)
    equal = np.where(ious == np.repeat(overlap[some], lengths), pairs, len(true.images))
    best[some] = np.minimum.reduceat(equal, starts)
    return best, overlap


def _iou(a: Array, b: Array) -> Array:
    """Return the IoU of each of (P, 4) boxes with its partner, (P,) float64; 0 where both have no area."""
    sides = np.maximum(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0)
    shared = sides.prod(axis=1)
    union = (a[:, 2:] - a[:, :2]).prod(axis=1) + (b[:, 2:] - b[:, :2]).prod(axis=1) - shared
    ious: Array = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return ious
