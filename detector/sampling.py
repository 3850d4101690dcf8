"""Choose the regions that a training step learns from (He et al. 2015, section 4.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_iou

from .boxes import encode
from .config import Config
from .structures import GroundTruth


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Hold the regions of one image that may be sampled, with their targets.

    boxes: (R, 4) float32. labels: (R,) int64, K for background. targets: (R, 4) float32 deltas, zero for background.
    positives, negatives: int64 row numbers. Rows in neither (IoU below the range, or on a difficult object) never
    enter a batch.
    """

    boxes: Tensor
    labels: Tensor
    targets: Tensor
    positives: Tensor
    negatives: Tensor


def candidates(boxes: Tensor, truth: GroundTruth, background: int, config: Config) -> Candidates:
    """Label proposals by their overlap with the ground truth, which itself is among them.

    Positives have IoU >= positive_iou with an object; negatives have their largest IoU in negative_iou = [low, high)
    with every object, difficult ones included, so that a difficult object is never taught as background.
    An image whose proposals leave no negative in that range lends those below it.
    """
    sure = ~truth.difficult
    objects, labels = truth.boxes[sure], truth.labels[sure]
    boxes = torch.cat([objects, boxes])
    if len(objects):
        best, match = box_iou(boxes, objects).max(dim=1)
    else:
        best, match = torch.zeros(len(boxes)), torch.zeros(len(boxes), dtype=torch.int64)
    overlap = box_iou(boxes, truth.boxes).max(dim=1).values if len(truth) else best
    positive = best >= config.positive_iou
    low, high = config.negative_iou
    negative = ~positive & (overlap >= low) & (overlap < high)
    if not negative.any():
        negative = ~positive & (overlap < high)
    row_labels = torch.full((len(boxes),), background, dtype=torch.int64)
    targets = torch.zeros(len(boxes), 4)
    if len(objects):
        row_labels[positive] = labels[match[positive]]
        targets[positive] = encode(boxes[positive], objects[match[positive]])
    return Candidates(boxes, row_labels, targets, positive.nonzero()[:, 0], negative.nonzero()[:, 0])


def sample(rows: Candidates, config: Config, generator: torch.Generator, count: int | None = None) -> Tensor:
    """Draw `count` rows, by default regions_per_image: up to positive_fraction positives, the rest negatives.

    There are fewer if there are fewer to draw from.

    However few regions are wanted, one is positive, unless positive_fraction is 0.
    """
    count = config.regions_per_image if count is None else count
    wanted = max(1, round(count * config.positive_fraction)) if config.positive_fraction else 0
    positives = _draw(rows.positives, wanted, generator)
    negatives = _draw(rows.negatives, count - len(positives), generator)
    return torch.cat([positives, negatives])


def _draw(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    return rows[torch.randperm(len(rows), generator=generator)[:count]]


def mirror(boxes: Tensor, width: int) -> Tensor:
    """Mirror (R, 4) xyxy boxes left to right in an image of this width."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([width - x2, y1, width - x1, y2], dim=-1)
