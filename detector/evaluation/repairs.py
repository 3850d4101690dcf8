"""Say what mean average precision would be if mistakes of one cause were repaired (Bolya et al. 2020, section 2.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .results import mean
from .voc import Array, average_precision


@dataclass(slots=True, eq=False)
class Record:
    """Hold the detections of one class that count, best first, and what is known of each.

    scores: (D,) float64. hits: (D,) bool. causes: (D,) str, empty for hits. targets: (D,) int64, the number among all
    images' objects of the one that a repair would make it find, -1 if the repair is to leave it out. places: (D,)
    int64, the order in which equal scores count. objects: how many the class has, difficult ones left out.
    """

    scores: Array
    hits: Array
    causes: Array
    targets: Array
    places: Array
    objects: int


def compete(records: Sequence[Record], taken: Array) -> Array:
    """Let the best detection have each object that repairs would make several find: the others' targets become -1.

    taken: (N,) bool, the objects that hits have. Returns (N,) bool, the objects that repairs would find.
    """
    wanted = [
        (-record.scores[row], label, row)
        for label, record in enumerate(records)
        for row in np.flatnonzero(record.targets >= 0)
    ]
    had = np.zeros(len(taken), dtype=bool)
    for _, label, row in sorted(wanted):
        number = records[label].targets[row]
        if taken[number] or had[number]:
            records[label].targets[row] = -1
        else:
            had[number] = True
    return had


def repair(records: Sequence[Record], cause: str, labels: Array, metric: str) -> float:
    """Return the mean average precision if the false detections of one cause were repaired.

    labels: (N,) int64, the classes of all objects. One with a target becomes a hit of its target's class with the
    score that it has; the others are left out.
    """
    rows: list[list[tuple[float, int, bool]]] = []  # of each class: minus the score, the place, whether it is a hit
    for record in records:
        keep = record.causes != cause
        rows.append(list(zip(-record.scores[keep], record.places[keep], record.hits[keep], strict=True)))
    for record in records:
        for row in np.flatnonzero((record.causes == cause) & (record.targets >= 0)):
            rows[int(labels[record.targets[row]])].append((-record.scores[row], record.places[row], True))
    repaired = [
        _ap(np.array([hit for _, _, hit in sorted(own)], dtype=bool), record.objects, metric)
        for record, own in zip(records, rows, strict=True)
    ]
    return _mean(repaired)


def without_false(records: Sequence[Record], metric: str) -> float:
    """Return the mean average precision if every false detection were left out."""
    aps = [_ap(r.hits[r.hits], r.objects, metric) for r in records]
    return _mean(aps)


def without_objects(records: Sequence[Record], counts: Array, metric: str) -> float:
    """Return the mean average precision if so many objects of each class, (K,) int64, were not counted.

    A class of which no object is left keeps its average precision.
    """
    aps = []
    for record, count in zip(records, counts.tolist(), strict=True):
        left = record.objects - count
        aps.append(_ap(record.hits, left or record.objects, metric))
    return _mean(aps)


def _ap(hits: Array, objects: int, metric: str) -> float:
    """Return the average precision of one class whose detections, best first, are hits or not; NaN without objects."""
    if objects == 0:
        return math.nan
    found = np.cumsum(hits, dtype=np.float64)
    return average_precision(found / objects, found / np.arange(1, len(found) + 1), metric)


def _mean(values: Sequence[float]) -> float:
    return mean({str(number): value for number, value in enumerate(values)})
