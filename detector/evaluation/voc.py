"""Measure average precision as the MATLAB devkit of PASCAL VOC does (VOCevaldet.m, VOCap.m).

Per class, detections are sorted by score, ties in the order in which they were given: image by image, or by their
places in the file that they were read from (`Detections.order`). Each is compared with the object of its class and
image with which its IoU is largest (the first of equals). If that IoU is at least 0.5 it is a hit the first time the
object is reached and a false positive every further time; if the object is `difficult` the detection counts as
neither, and difficult objects are not counted as objects. Every other detection is a false positive.

`strict` asks for an IoU above 0.5, as the Python port of the devkit does (voc_eval.py of py-faster-rcnn: `if ovmax >
ovthresh`); the rest of the port is the same. On whole pixels an IoU of exactly 0.5 is not rare.

Means by size follow COCO's rule: objects of other sizes are treated as difficult, and detections of another size that
reach no object are left out.

The devkit writes boxes 1-based and inclusive and adds 1 to each width. On [xmin - 1, xmax) the plain difference is
the same number, so the IoU here equals the devkit's exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..structures import Detections, GroundTruth
from .results import Result, check_lists, mean

Array = np.ndarray[Any, np.dtype[Any]]
METRICS = ("voc07", "voc10")
SIZES = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, math.inf)}  # areas, as in COCO
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
    strict: bool = False,
) -> Result:
    """Return the average precision of each class and their mean; image i has detections[i] and truths[i].

    metric: `voc07` (11 points) or `voc10` (area under the curve). iou: what makes a hit, in (0, 1]. strict: more than
    that. Raises ValueError if it is neither metric, for another IoU, or if the two lists differ in length or speak of
    other classes.
    """
    pairs = pair_all(detections, truths, class_names, iou, strict)
    matches = [p.matches() for p in pairs]
    per_class = _per_class(matches, class_names, metric)
    hits = [(m.hits.sum(), m.objects.sum()) for m in matches]
    recall = {name: float(h / n) if n else math.nan for name, (h, n) in zip(class_names, hits, strict=True)}
    bands = {size: [p.matches(band) for p in pairs] for size, band in SIZES.items()}
    sizes = {size: mean(_per_class(parts, class_names, metric)) for size, parts in bands.items()}
    return Result(mean(per_class), per_class, metric, (), recall, sizes, iou)


def _per_class(matches: Sequence[Matches], class_names: Sequence[str], metric: str) -> dict[str, float]:
    return {
        name: average_precision(*curve(m), metric) if m.objects.any() else math.nan
        for name, m in zip(class_names, matches, strict=True)
    }


def precision_recall(
    detections: Sequence[Detections],
    truths: Sequence[GroundTruth],
    class_names: Sequence[str],
    name: str,
    iou: float = 0.5,
    strict: bool = False,
) -> tuple[Array, Array, Array]:
    """Return recall, precision and score, each (D,) float64, after each detection of class `name` that counts.

    Recall is NaN if the class has no objects. Raises ValueError if there is no class of that name.
    """
    if name not in class_names:
        raise ValueError(f"expected one of the classes {', '.join(class_names)}, got {name}")
    matches = match_all(detections, truths, class_names, iou, strict)[list(class_names).index(name)]
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
    detections: Sequence[Detections],
    truths: Sequence[GroundTruth],
    class_names: Sequence[str],
    iou: float = 0.5,
    strict: bool = False,
) -> list[Matches]:
    """Match the detections of every class with its objects; one Matches per class."""
    return [pairs.matches() for pairs in pair_all(detections, truths, class_names, iou, strict)]


@dataclass(frozen=True, slots=True, eq=False)
class _Boxes:
    """Hold boxes of many images in the order of the images; values: the scores, or the flags `difficult`.

    places: (N,) int64, the order in which equal scores count.
    """

    images: Array
    boxes: Array
    labels: Array
    values: Array
    places: Array

    @property
    def areas(self) -> Array:
        """Return the areas in pixels, (N,) float64."""
        sides = self.boxes[:, 2:] - self.boxes[:, :2]
        areas: Array = sides[:, 0] * sides[:, 1]
        return areas

    def rows(self, label: int) -> Array:
        """Return which boxes are of a class."""
        return np.flatnonzero(self.labels == label)

    def take(self, rows: Array) -> _Boxes:
        """Return some of the boxes."""
        return _Boxes(self.images[rows], self.boxes[rows], self.labels[rows], self.values[rows], self.places[rows])


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Hold the detections of one class, best first, and the object that each is compared with.

    found: D detections. true: N objects. best: (D,) int64, an object. reached: (D,) bool, whether its IoU is enough.
    rows, objects: (D,) and (N,) int64, their numbers when all images' are counted on. count: of images.
    """

    found: _Boxes
    true: _Boxes
    best: Array
    reached: Array
    rows: Array
    objects: Array
    count: int

    def judge(self, band: tuple[float, float] | None = None) -> tuple[Array, Array, Array]:
        """Say which detections are hits and which count at all, (D,) bool each, and which objects count, (N,) bool.

        band: the areas of the objects that count, both ends included; by default all.
        """
        ignored = self.true.values
        left_out = np.zeros(len(self.best), dtype=bool)
        if band is not None:
            ignored = ignored | _outside(self.true.areas, band)
            left_out = ~self.reached & _outside(self.found.areas, band)
        left_out[self.reached] = ignored[self.best[self.reached]]
        hits = np.zeros(len(self.best), dtype=bool)
        rows = np.flatnonzero(self.reached & ~left_out)
        hits[rows[np.unique(self.best[rows], return_index=True)[1]]] = True
        return hits, ~left_out, ~ignored

    def matches(self, band: tuple[float, float] | None = None) -> Matches:
        """Leave out what does not count."""
        hits, counts, wanted = self.judge(band)
        objects = np.bincount(self.true.images[wanted], minlength=self.count)
        return Matches(self.found.images[counts], self.found.values[counts], hits[counts], objects)


def pair_all(
    detections: Sequence[Detections],
    truths: Sequence[GroundTruth],
    class_names: Sequence[str],
    iou: float = 0.5,
    strict: bool = False,
) -> list[Pairs]:
    """Compare the detections of every class with its objects; one Pairs per class.

    Raises ValueError for an IoU outside (0, 1], or if the lists differ in length or speak of other classes.
    """
    if not 0 < iou <= 1:
        raise ValueError(f"expected an IoU above 0 and at most 1, got {iou}")
    check_lists(detections, truths, class_names)
    orders = [found.order for found in detections]
    found = _flatten(detections, [item.scores for item in detections], np.float64, orders)
    true = _flatten(truths, [item.difficult for item in truths], np.bool_)
    pairs = []
    for label in range(len(class_names)):
        rows, objects = found.rows(label), true.rows(label)
        rows = rows[np.lexsort((found.places[rows], -found.values[rows]))]
        own, theirs = found.take(rows), true.take(objects)
        best, overlap = _best_objects(own, theirs)
        reached = overlap > iou if strict else overlap >= iou
        pairs.append(Pairs(own, theirs, best, reached, rows, objects, len(truths)))
    return pairs


def _flatten(
    items: Sequence[Detections] | Sequence[GroundTruth],
    values: Sequence[Any],
    kind: type,
    orders: Sequence[Any] = (),
) -> _Boxes:
    images = np.repeat(np.arange(len(items)), [len(item) for item in items])
    boxes = [item.boxes.cpu().numpy().astype(np.float64) for item in items]
    labels = [item.labels.cpu().numpy() for item in items]
    columns = [value.detach().cpu().numpy().astype(kind) for value in values]
    places = np.arange(len(images))
    if len(orders) and all(order is not None for order in orders):
        places = np.concatenate([np.empty(0, dtype=np.int64), *(order.cpu().numpy() for order in orders)])
    return _Boxes(
        images,
        np.concatenate([np.empty((0, 4)), *boxes]),
        np.concatenate([np.empty(0, dtype=np.int64), *labels]),
        np.concatenate([np.empty(0, dtype=kind), *columns]),
        places,
    )


def _outside(areas: Array, band: tuple[float, float]) -> Array:
    outside: Array = (areas < band[0]) | (areas > band[1])
    return outside


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
