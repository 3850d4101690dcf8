"""Turn scored regions into detections: threshold, decode, clip, per-class non-maximum suppression, box voting."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image

from .boxes import decode
from .config import Config
from .structures import Size

Scored = tuple[Tensor, Tensor, Tensor]  # boxes (N, 4), scores (N,), labels (N,)


def select(boxes: Tensor, probabilities: Tensor, deltas: Tensor, size: Size, config: Config) -> Scored:
    """Select the detections of one image.

    boxes: (R, 4) float32. probabilities: (R, K + 1), background last. deltas: (R, K, 4). size: (height, width).
    Returns boxes (D, 4), scores (D,) and labels (D,), best score first, equal scores in the order of the regions.
    """
    return select_traced(boxes, (probabilities, deltas), size, config)[0]


def select_traced(boxes: Tensor, scored: tuple[Tensor, Tensor], size: Size, config: Config) -> tuple[Scored, Tensor]:
    """Select as `select` does, and return with the detections the row (D,) of the region that gave each its score.

    scored: probabilities and deltas. Voting moves a box only: its score stays that of the one region.
    """
    candidates, rows = _collect(boxes, *scored, size, config.min_score)
    found, kept = _suppress(candidates, size, config)
    return found, rows[kept]


def collect(boxes: Tensor, probabilities: Tensor, deltas: Tensor, size: Size, min_score: float) -> Scored:
    """Return every region, once per class that it has at least this score of, corrected for it and clipped.

    The arguments are those of `select`. Returns boxes (N, 4), scores (N,) and labels (N,) in the order of the regions,
    without those of which nothing lies inside the image.
    """
    return _collect(boxes, probabilities, deltas, size, min_score)[0]


def _collect(
    boxes: Tensor, probabilities: Tensor, deltas: Tensor, size: Size, min_score: float
) -> tuple[Scored, Tensor]:
    """Collect as `collect` does; return the region of each candidate (N,), too."""
    rows, labels = (probabilities[:, :-1] >= min_score).nonzero(as_tuple=True)
    scores = probabilities[rows, labels]
    refined = clip_boxes_to_image(decode(boxes[rows], deltas[rows, labels]), size)
    solid = ((refined[:, 2:] - refined[:, :2]) > 0).all(dim=1)
    return (refined[solid], scores[solid], labels[solid]), rows[solid]


def suppress(candidates: Scored, size: Size, config: Config) -> Scored:
    """Leave the detections of one image among boxes (N, 4), scores (N,) and labels (N,): NMS per class, then voting.

    Returns boxes (D, 4), scores (D,) and labels (D,), best score first, equal scores in the order given.
    """
    return _suppress(candidates, size, config)[0]


def _suppress(candidates: Scored, size: Size, config: Config) -> tuple[Scored, Tensor]:
    """Suppress as `suppress` does; return the candidate of each detection (D,), too."""
    refined, scores, labels = candidates
    order = scores.argsort(descending=True, stable=True)
    refined, scores, labels = refined[order], scores[order], labels[order]
    kept = batched_nms(refined, scores, labels, config.nms)
    kept = kept.sort().values[: config.max_detections]
    final = refined[kept]
    if config.vote < 1 and len(kept):
        voted = vote(final, labels[kept], (refined, scores, labels), config.vote)
        final = clip_boxes_to_image(voted, size)  # a mean of numbers at the limit may be rounded beyond it
    return (final, scores[kept], labels[kept]), order[kept]


def weigh_by_rank(probabilities: Tensor, prior: float, ranks: Tensor | None = None) -> Tensor:
    """Lower the class scores of proposals that come late in their order, best first.

    probabilities: (R, K + 1). Row r is divided by 1 + prior * ranks[r] / 1000, except for its last column, background.
    prior: 0 or more; 0 changes nothing. ranks: (R,) places in the order, by default 0, 1, ..., R - 1.
    """
    ranks = torch.arange(len(probabilities), device=probabilities.device) if ranks is None else ranks
    weights = 1 / (1 + prior * ranks / 1000)
    return torch.cat([probabilities[:, :-1] * weights[:, None], probabilities[:, -1:]], dim=1)


def vote(boxes: Tensor, labels: Tensor, candidates: Scored, iou: float) -> Tensor:
    """Average every kept box with its class's candidates of at least this IoU, weighted by score.

    Gidaris and Komodakis 2015, section 5 (box voting). boxes: (D, 4). candidates: boxes, scores, labels before NMS.
    """
    others, scores, other_labels = candidates
    near = (box_iou(boxes, others) >= iou) & (labels[:, None] == other_labels)
    weights = near * scores
    averaged: Tensor = (weights @ others) / weights.sum(dim=1, keepdim=True)
    return averaged
