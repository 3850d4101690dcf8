"""Measure proposals against annotated objects: recall and average best overlap (Uijlings et al. 2013, section 5).

Overlap is the intersection over union (IoU) of boxes (x1, y1, x2, y2). Classes play no role: for a figure per class,
give the objects of one class. The caller leaves difficult objects out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_iou

from .structures import Proposals

IOUS = tuple(round(0.5 + 0.025 * step, 3) for step in range(21))
COUNTS = (100, 300, 1000, 2000)  # always measured, however many boxes there are
SHUFFLES = 5  # random orders that a ranking is compared with


def best_overlaps(proposals: Sequence[Proposals], truths: Sequence[Tensor]) -> Tensor:
    """Return the highest IoU that any proposal of its image has with each object.

    truths: per image, (N, 4) boxes of its objects. Returns (sum of N,) float64 in [0, 1], in the order of `truths`; 0
    for the objects of an image without proposals. Raises ValueError if there are not as many truths as proposals.
    """
    return overlaps_by_count(proposals, truths, [max([1, *map(len, proposals)])])[0]


def overlaps_by_count(proposals: Sequence[Proposals], truths: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
    """Return `best_overlaps` of the first `count` proposals of each image, for every count: (counts, objects)."""
    if len(proposals) != len(truths):
        raise ValueError(f"expected the objects of {len(proposals)} images, got those of {len(truths)}")
    if any(count < 1 for count in counts):
        raise ValueError(f"expected counts of at least 1, got {list(counts)}")
    parts = [torch.zeros(len(counts), 0, dtype=torch.float64)]
    for found, truth in zip(proposals, truths, strict=True):
        if len(found) == 0 or len(truth) == 0:
            parts.append(torch.zeros(len(counts), len(truth), dtype=torch.float64))
            continue
        overlaps = box_iou(found.boxes.double(), truth.double())
        best = overlaps.cummax(dim=0).values
        parts.append(best[[min(count, len(found)) - 1 for count in counts]])
    return torch.cat(parts, dim=1)


def recall_at(overlaps: Tensor, thresholds: Sequence[float]) -> list[float]:
    """Return which part of the objects is found, for every threshold: those with a best overlap of at least that IoU.

    overlaps: (N,) from `best_overlaps`. Raises ValueError if there are no objects.
    """
    _check_objects(overlaps)
    return [float((overlaps >= threshold).double().mean()) for threshold in thresholds]


def average_best_overlap(overlaps: Tensor) -> float:
    """Return the mean of the best overlaps (ABO). Raises ValueError if there are no objects."""
    _check_objects(overlaps)
    return float(overlaps.mean())


def recall_by_count(
    proposals: Sequence[Proposals], truths: Sequence[Tensor], counts: Sequence[int], threshold: float = 0.5
) -> list[float]:
    """Return the recall at one IoU of the first `count` proposals of every image, for every count."""
    return [recall_at(row, [threshold])[0] for row in overlaps_by_count(proposals, truths, counts)]


@dataclass(frozen=True, slots=True)
class Coverage:
    """Say how well proposals cover the objects of a data set.

    boxes: how many an image has in the mean, most_boxes: at most. recall: by IoU, with all boxes. abo: average best
    overlap, mabo: the mean over classes of that of each, abo_per_class. recall_by_count: at IoU 0.5, by the number of
    first boxes; recall_shuffled: the same in random order, the mean of SHUFFLES orders; what is above that is the
    ranking's merit.
    """

    boxes: float
    most_boxes: int
    recall: dict[float, float]
    abo: float
    mabo: float
    abo_per_class: dict[str, float]
    recall_by_count: dict[int, float]
    recall_shuffled: dict[int, float]

    @property
    def curve(self) -> dict[int, float]:
        """Return `recall_by_count` without numbers that no image has."""
        return {count: recall for count, recall in self.recall_by_count.items() if count <= max(self.most_boxes, 1)}

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)


def spread_counts(most: int) -> list[int]:
    """Return numbers of boxes to measure at, increasing: six in each power of ten up to `most`, `most`, and COUNTS."""
    decades = [step * 10**power for power in range(len(str(max(most, 1)))) for step in (1, 1.5, 2, 3, 5, 7)]
    return sorted({int(count) for count in decades if count <= most} | {max(most, 1), *COUNTS})


def measure_coverage(
    proposals: Sequence[Proposals],
    truths: Sequence[Tensor],
    labels: Sequence[Tensor],
    class_names: Sequence[str],
    counts: Sequence[int] | None = None,
) -> Coverage:
    """Measure proposals of some images.

    truths: per image, (N, 4) boxes of its objects. labels: per image, (N,) int64 in [0, classes). counts: numbers of
    first boxes, by default `spread_counts`. Raises ValueError if there are no objects or not as many truths or labels
    as proposals.
    """
    if [len(one) for one in labels] != [len(one) for one in truths]:
        raise ValueError("expected one label for every object of every image, got others")
    most = max(map(len, proposals), default=0)
    counts = spread_counts(most) if counts is None else counts
    overlaps, classes = best_overlaps(proposals, truths), torch.cat([torch.zeros(0, dtype=torch.int64), *labels])
    recall = recall_at(overlaps, IOUS)
    per_class = {
        name: average_best_overlap(overlaps[classes == label])
        for label, name in enumerate(class_names)
        if bool((classes == label).any())
    }
    shuffled = [
        recall_by_count([_shuffle(found, 7 * number + order) for number, found in enumerate(proposals)], truths, counts)
        for order in range(SHUFFLES)
    ]
    return Coverage(
        boxes=sum(map(len, proposals)) / max(len(proposals), 1),
        most_boxes=most,
        recall=dict(zip(IOUS, recall, strict=True)),
        abo=average_best_overlap(overlaps),
        mabo=sum(per_class.values()) / len(per_class),
        abo_per_class=per_class,
        recall_by_count=dict(zip(counts, recall_by_count(proposals, truths, counts), strict=True)),
        recall_shuffled=dict(zip(counts, torch.tensor(shuffled).double().mean(dim=0).tolist(), strict=True)),
    )


def _shuffle(found: Proposals, seed: int) -> Proposals:
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed))
    return Proposals(found.boxes[order])


def _check_objects(overlaps: Tensor) -> None:
    if overlaps.numel() == 0:
        raise ValueError("expected at least one object to measure recall, got none")
