"""Make small images and label maps, none of them square."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from proposals.structures import Proposals


class FixedBoxes:
    """Propose the same boxes for every image, and count the calls: a proposer whose answers a test knows."""

    name = "fixed"

    def __init__(self, boxes: object) -> None:
        self.boxes = torch.tensor(boxes, dtype=torch.float32)
        self.calls = 0

    @property
    def settings(self) -> dict[str, object]:
        return {"proposer": self.name, "boxes": self.boxes.tolist()}

    def __call__(self, image: Tensor, path: Path | None = None) -> Proposals:
        self.calls += 1
        return Proposals(self.boxes.clone())


def draw_blocks(generator: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return an (H, W, 3) uint8 image of rectangles of random colours over each other, with a little noise."""
    image = np.full((height, width, 3), generator.integers(0, 256, 3), np.int64)
    for _ in range(6):
        y, x = generator.integers(0, height), generator.integers(0, width)
        h, w = generator.integers(1, height + 1), generator.integers(1, width + 1)
        image[y : y + h, x : x + w] = generator.integers(0, 256, 3)
    return np.clip(image + generator.integers(-6, 7, image.shape), 0, 255).astype(np.uint8)


def draw_labels(generator: np.random.Generator, height: int, width: int, seeds: int) -> np.ndarray:
    """Return an (H, W) int32 map of regions around random points, numbered in the order of first pixels."""
    points = np.stack([generator.integers(0, height, seeds), generator.integers(0, width, seeds)], axis=1)
    pixels = np.stack(np.mgrid[0:height, 0:width], axis=-1)
    nearest = np.abs(pixels[:, :, None] - points).sum(axis=-1).argmin(axis=-1)
    values, first = np.unique(nearest, return_index=True)
    numbers = np.empty(values.max() + 1, np.int32)
    numbers[values[np.argsort(first)]] = np.arange(len(values))
    return numbers[nearest]


def cross_diagonals(height: int, width: int) -> np.ndarray:
    """Return an (H, W) int32 map of diagonal lines of both directions: each line of one kind crosses all of the other.

    A line is connected by corners only, so that more pairs of lines share a side than a planar graph could have.
    """
    y, x = np.mgrid[0:height, 0:width]
    lines = np.where((x + y) % 2 == 0, x - y + 2 * height, 10 * (height + width) + x + y)
    _, first, numbers = np.unique(lines, return_index=True, return_inverse=True)
    ranks = np.empty(len(first), np.int32)
    ranks[np.argsort(first)] = np.arange(len(first))
    return ranks[numbers.reshape(height, width)]
