"""Count which classes are taken for which."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..structures import Detections, GroundTruth
from .misses import overlaps_with
from .results import check_lists
from .voc import Array


def confusion(
    detections: Sequence[Detections],
    truths: Sequence[GroundTruth],
    class_names: Sequence[str],
    iou: float = 0.5,
    score: float = 0.5,
) -> Array:
    """Return the confusion matrix (K + 1, K + 1) int64: rows are true classes, columns detected ones, background last.

    Only detections of at least this score count. Best score first, each takes the object that it overlaps most,
    whatever its class, among those of IoU >= `iou` that are still free; one that finds none stands in the row
    background, and an object that stays free in the column background. Difficult objects are left out, and detections
    that overlap one so much and no free object. Raises ValueError if the lists differ in length or speak of other
    classes.
    """
    check_lists(detections, truths, class_names)
    none = len(class_names)
    counts: Array = np.zeros((none + 1, none + 1), dtype=np.int64)
    for found, truth in zip(detections, truths, strict=True):
        boxes, labels, difficult = (t.cpu().numpy() for t in (truth.boxes, truth.labels, truth.difficult))
        free = ~difficult
        scores = found.scores.detach().cpu().numpy()
        for row in np.argsort(-scores, kind="stable"):
            if scores[row] < score:
                break
            overlaps = overlaps_with(boxes, found.boxes[row].cpu().numpy())
            reached = overlaps >= iou
            label = int(found.labels[row])
            if (reached & free).any():
                taken = int(np.where(reached & free, overlaps, -1.0).argmax())
                free[taken] = False
                counts[int(labels[taken]), label] += 1
            elif not (reached & difficult).any():
                counts[none, label] += 1
        np.add.at(counts, (labels[free], np.full(int(free.sum()), none)), 1)
    return counts
