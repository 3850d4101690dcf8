"""Make small random evaluation cases."""

from __future__ import annotations

import numpy as np
import torch

from detector.structures import Detections, GroundTruth

SIZE = (48, 64)


def truth(boxes: object, labels: object, difficult: object | None = None) -> GroundTruth:
    """Return a GroundTruth from lists."""
    corners = torch.as_tensor(np.asarray(boxes), dtype=torch.float32).reshape(-1, 4)
    flags = torch.zeros(len(corners)) if difficult is None else torch.as_tensor(np.asarray(difficult))
    return GroundTruth(corners, torch.as_tensor(np.asarray(labels), dtype=torch.int64), flags.bool(), SIZE)


def found(boxes: object, scores: object, labels: object, names: tuple[str, ...]) -> Detections:
    """Return Detections from lists, in the order given."""
    corners = torch.as_tensor(np.asarray(boxes), dtype=torch.float32).reshape(-1, 4)
    values = torch.as_tensor(np.asarray(scores), dtype=torch.float32).reshape(-1)
    return Detections(corners, values, torch.as_tensor(np.asarray(labels), dtype=torch.int64), SIZE, names)


def random_boxes(generator: np.random.Generator, count: int) -> np.ndarray:
    """Return (count, 4) boxes on a coarse grid."""
    corners = generator.integers(0, 4, (count, 2)) * 8
    sides = generator.integers(1, 4, (count, 2)) * 8
    return np.concatenate([corners, corners + sides], axis=1)


def random_detections(
    generator: np.random.Generator, objects: GroundTruth, classes: int
) -> tuple[list[list[int]], list[int]]:
    """Return boxes and labels: two thirds near an object, with an IoU of exactly 1, 3/4 or 1/2 with it."""
    count = int(generator.integers(0, 9))
    boxes, labels = random_boxes(generator, count).tolist(), generator.integers(0, classes, count).tolist()
    for i in range(count):
        if len(objects) and generator.random() < 2 / 3:
            j = int(generator.integers(len(objects)))
            x1, y1, x2, y2 = objects.boxes[j].int().tolist()
            boxes[i] = [x1, y1, x2, y1 + (y2 - y1) * int(generator.integers(2, 5)) // 4]
            labels[i] = int(objects.labels[j])
    return boxes, labels


def random_case(
    generator: np.random.Generator, images: int, classes: int
) -> tuple[list[Detections], list[GroundTruth], tuple[str, ...]]:
    """Return detections, truths and names; scores tie often, some classes are empty, some objects are difficult."""
    names = tuple(f"class{k}" for k in range(classes))
    detections, truths = [], []
    for _ in range(images):
        count = int(generator.integers(0, 5))
        flags = generator.random(count) < 0.25
        truths.append(truth(random_boxes(generator, count), generator.integers(0, classes, count), flags))
        boxes, labels = random_detections(generator, truths[-1], classes)
        scores = np.sort(generator.integers(0, 8, len(boxes)) / 8)[::-1].copy()
        detections.append(found(boxes, scores, labels, names))
    return detections, truths, names
