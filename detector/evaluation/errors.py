"""Put every false or missed detection down to one cause, and say what each cause costs in mean average precision.

Causes and costs are those of TIDE (Bolya, Foley, Hays, Hoffman 2020, sections 2.1 and 2.2), with the average precision
of VOC. A detection that is neither a hit nor on a difficult object is, in this order:

| cause | IoU | repaired by |
|---|---|---|
| localisation | at least 0.1 and too small with an object of its class | taking the object's box |
| class | enough with an object of another class | taking the object's class |
| duplicate | enough with an object of its class that a better one found | leaving it out |
| background | at most 0.1 with every object | leaving it out |
| class and localisation | the rest | leaving it out |

Where several would be repaired to the same object, or a hit has it already, the best is and the others are left out. An
object that no hit has and that no detection of the first two causes could be repaired to is missed; it is repaired by
not counting it. `detector.evaluation.misses` tells four causes of a miss apart if it is told the regions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..structures import Detections, GroundTruth
from .misses import MISSES, Candidates, explain_miss, overlaps_with
from .repairs import Record, compete, repair, without_false, without_objects
from .voc import Array, Pairs, pair_all

BACKGROUND = 0.1
FALSE = ("localisation", "class", "duplicate", "background", "class and localisation")
MISSED = "missed"
CAUSES = (*FALSE, *MISSES, MISSED)
ALL_FALSE, ALL_MISSED = "all false detections", "all objects not found"


@dataclass(frozen=True, slots=True)
class Rules:
    """Say how detections are measured: a metric, voc07 or voc10, the IoU of a hit, and whether it must be exceeded."""

    metric: str = "voc07"
    iou: float = 0.5
    strict: bool = False


@dataclass(frozen=True, slots=True)
class Mistake:
    """Hold one false detection, or one object that was missed (score is None).

    image: the image's number. box: xyxy. object: the number of the object, in its image, that the detection is nearest
    to or that was missed; None for background. overlap: the IoU with it; of a miss the best of any proposal, NaN if
    the proposals are not known.
    """

    image: int
    cause: str
    label: int
    score: float | None
    box: tuple[float, float, float, float]
    object: int | None
    overlap: float


@dataclass(frozen=True, slots=True)
class ErrorReport:
    """Hold all mistakes, false detections first, best score first.

    baseline: the mean average precision. costs: by cause, what it would gain if that cause alone were repaired, and if
    all false detections were left out or all objects that were not found not counted. counts: mistakes by cause.
    """

    baseline: float
    mistakes: tuple[Mistake, ...]
    costs: dict[str, float]
    counts: dict[str, int]


def find_errors(
    detections: Sequence[Detections],
    truths: Sequence[GroundTruth],
    class_names: Sequence[str],
    rules: Rules | None = None,
    candidates: Callable[[int], Candidates] | None = None,
) -> ErrorReport:
    """Explain the mistakes of each image, in the order of `truths`.

    candidates: gives the regions of an image by its number; it is asked once, for images with missed objects only.
    Without it every missed object has the cause `missed`. Raises ValueError as `voc_ap` does.
    """
    rules = rules or Rules()
    pairs = pair_all(detections, truths, class_names, rules.iou, rules.strict)
    scene = _Scene(truths)
    taken = np.zeros(len(scene.labels), dtype=bool)
    judged = [p.judge() for p in pairs]
    for p, (hits, _, _) in zip(pairs, judged, strict=True):
        taken[p.objects[p.best[hits]]] = True
    mistakes: list[Mistake] = []
    records = []
    for label, (p, (hits, counted, _)) in enumerate(zip(pairs, judged, strict=True)):
        found, own = _explain_class(label, p, (hits, counted), scene, rules)
        mistakes += found
        records.append(own)
    misses = _find_misses(scene, taken | compete(records, taken), candidates, rules)
    mistakes = sorted(mistakes, key=lambda m: -(m.score or 0.0)) + misses
    known = [cause for cause in CAUSES if cause in FALSE or (cause == MISSED) == (candidates is None)]
    counts = Counter(m.cause for m in mistakes)
    costs, baseline = {}, without_objects(records, np.zeros(len(records), dtype=np.int64), rules.metric)
    for cause in known:
        if cause in FALSE:
            costs[cause] = repair(records, cause, scene.labels, rules.metric)
        else:
            lost = np.array([m.label for m in misses if m.cause == cause], dtype=np.int64)
            costs[cause] = without_objects(records, np.bincount(lost, minlength=len(records)), rules.metric)
    not_found = np.bincount(scene.labels[~taken & ~scene.difficult], minlength=len(records))
    costs[ALL_FALSE] = without_false(records, rules.metric)
    costs[ALL_MISSED] = without_objects(records, not_found, rules.metric)
    gains = {cause: value - baseline for cause, value in costs.items()}
    return ErrorReport(baseline, tuple(mistakes), gains, {cause: counts[cause] for cause in known})


class _Scene:
    """Hold the objects of all images, numbered on. first: (N + 1,) the number of each image's first."""

    def __init__(self, truths: Sequence[GroundTruth]):
        self.first = np.cumsum([0, *(len(truth) for truth in truths)])
        self.images = np.repeat(np.arange(len(truths)), np.diff(self.first))
        empty = np.empty((0, 4))
        self.boxes = np.concatenate([empty, *(t.boxes.cpu().numpy().astype(np.float64) for t in truths)])
        self.labels = np.concatenate([np.empty(0, dtype=np.int64), *(t.labels.cpu().numpy() for t in truths)])
        self.difficult = np.concatenate([np.empty(0, dtype=bool), *(t.difficult.cpu().numpy() for t in truths)])

    def near(self, image: int, box: Array) -> tuple[Array, Array]:
        """Return the objects of an image that count, and their IoU with a box."""
        numbers = np.arange(self.first[image], self.first[image + 1])
        numbers = numbers[~self.difficult[numbers]]
        return numbers, overlaps_with(self.boxes[numbers], box)


def _explain_class(
    label: int, pairs: Pairs, judged: tuple[Array, Array], scene: _Scene, rules: Rules
) -> tuple[list[Mistake], Record]:
    hits, counted = judged
    cause = np.full(len(hits), "", dtype=object)
    repaired = np.full(len(hits), -1, dtype=np.int64)
    mistakes = []
    for row in np.flatnonzero(counted & ~hits):
        image, box = int(pairs.found.images[row]), pairs.found.boxes[row]
        numbers, overlaps = scene.near(image, box)
        cause[row], nearest, overlap = _cause(scene.labels[numbers] == label, overlaps, rules)
        if nearest is not None and cause[row] in FALSE[:2]:
            repaired[row] = numbers[nearest]
        own = None if nearest is None else int(numbers[nearest] - scene.first[image])
        score = float(pairs.found.values[row])
        mistakes.append(Mistake(image, cause[row], label, score, _corners(box), own, overlap))
    objects = int((~pairs.true.values).sum())
    scores, places = pairs.found.values[counted], pairs.found.places[counted]
    return mistakes, Record(scores, hits[counted], cause[counted], repaired[counted], places, objects)


def _cause(same: Array, overlaps: Array, rules: Rules) -> tuple[str, int | None, float]:
    """Return the cause of a false detection, the object that it is nearest to, and the IoU with it.

    same: (N,) bool, which objects are of its class. overlaps: (N,) IoU with each.
    """
    if len(overlaps) == 0:
        return "background", None, 0.0
    own, other = np.where(same, overlaps, 0.0), np.where(same, 0.0, overlaps)

    def enough(overlap: float) -> bool:
        return overlap > rules.iou if rules.strict else overlap >= rules.iou

    if own.max() >= BACKGROUND and not enough(own.max()):
        return "localisation", int(own.argmax()), float(own.max())
    if enough(other.max()):
        return "class", int(other.argmax()), float(other.max())
    if enough(own.max()):
        return "duplicate", int(own.argmax()), float(own.max())
    if overlaps.max() <= BACKGROUND:
        return "background", None, float(overlaps.max())
    return "class and localisation", int(overlaps.argmax()), float(overlaps.max())


def _find_misses(
    scene: _Scene, explained: Array, candidates: Callable[[int], Candidates] | None, rules: Rules
) -> list[Mistake]:
    misses = []
    known: tuple[int, Candidates | None] = (-1, None)
    for number in np.flatnonzero(~explained & ~scene.difficult):
        image, box, label = int(scene.images[number]), scene.boxes[number], int(scene.labels[number])
        cause, overlap = MISSED, float("nan")
        if candidates is not None:
            if known[0] != image or known[1] is None:
                known = (image, candidates(image))
            assert known[1] is not None
            cause, overlap = explain_miss(box, label, known[1], rules.iou, rules.strict)
        misses.append(Mistake(image, cause, label, None, _corners(box), int(number - scene.first[image]), overlap))
    return misses


def _corners(box: Array) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = box.tolist()
    return x1, y1, x2, y2
