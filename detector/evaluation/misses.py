"""Say why an object was missed, by what the detector thought of the regions that it was given.

Only a detector of proposed regions can be asked this: whether a proposal covered the object, whether the classifier
knew it, whether the regressor kept it covered, and whether non-maximum suppression took it away.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .voc import Array

MISSES = ("no proposal", "low score", "regression", "suppressed")


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Hold all regions of one image before selection.

    boxes: (R, 4) float, the proposals, xyxy pixels. scores: (R, K) float, of the classes, as the selection sees them.
    refined: (R, K, 4) float, each box as corrected for each class and clipped to the image. min_score: the score from
    which the selection looks at a region.
    """

    boxes: Array
    scores: Array
    refined: Array
    min_score: float


def explain_miss(
    box: Array, label: int, candidates: Candidates, iou: float = 0.5, strict: bool = False
) -> tuple[str, float]:
    """Say why an object (4,) of class `label` is not among the detections, and its best IoU with a proposal.

    In this order: `no proposal` has an IoU of `iou` with the object; some region had the score and its corrected box
    covers the object, so that it was `suppressed` by non-maximum suppression or the limit on detections; a proposal
    that covers it had the score, but its corrected box covers it no more (`regression`); no proposal that covers it
    had the score (`low score`). strict: to cover is to have an IoU above `iou`.
    """
    overlaps = overlaps_with(candidates.boxes, box)
    best = float(overlaps.max(initial=0.0))
    enough = np.greater if strict else np.greater_equal
    covering = enough(overlaps, iou)
    if not covering.any():
        return "no proposal", best
    scored = candidates.scores[:, label] >= candidates.min_score
    if enough(overlaps_with(candidates.refined[scored, label], box), iou).any():
        return "suppressed", best
    return ("regression" if (scored & covering).any() else "low score"), best


def overlaps_with(boxes: Array, box: Array) -> Array:
    """Return the IoU of (R, 4) boxes with one, (R,) float64."""
    boxes, box = boxes.astype(np.float64), box.astype(np.float64)
    sides = np.maximum(np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2]), 0)
    shared = sides[:, 0] * sides[:, 1]
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    union = areas + (box[2] - box[0]) * (box[3] - box[1]) - shared
    found: Array = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return found
