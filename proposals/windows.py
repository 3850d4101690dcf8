"""Propose a regular grid of windows, without a look at the image: for tests, and as what others must beat.

As in detectors before selective search, windows of several sizes and aspect ratios slide over the image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .structures import Proposals, check_image

VERSION = 1
SIZES = (1.0, 0.75, 0.55, 0.4, 0.3, 0.2, 0.14)  # square root of a window's area, relative to that of the image
RATIOS = (1.0, 0.5, 2.0)  # width : height
STEPS = (0.125, 0.25, 0.375, 0.5, 0.75, 1.0)  # between windows, relative to their sides


class SlidingWindows:
    """Propose the whole image, then windows from large to small, row by row.

    max_boxes: how many boxes are kept at most. The grid is the densest of a few that stays within that number; where
    even the widest has more, its smallest windows are left out.
    """

    name = "windows"

    def __init__(self, max_boxes: int = 2000) -> None:
        if max_boxes < 1:
            raise ValueError(f"expected max_boxes of at least 1, got {max_boxes}")
        self.max_boxes = max_boxes

    @property
    def settings(self) -> Mapping[str, Any]:
        """Return what shapes the boxes; VERSION changes with the algorithm."""
        return {"proposer": self.name, "version": VERSION, "max_boxes": self.max_boxes}

    def __call__(self, image: Tensor, path: Path | None = None) -> Proposals:
        """Propose windows of a (3, H, W) uint8 image, in whole pixels; they depend on its size only."""
        check_image(image)
        size = int(image.shape[1]), int(image.shape[2])
        grids = (make_windows(size, step) for step in STEPS)
        boxes = next((grid for grid in grids if len(grid) <= self.max_boxes), make_windows(size, STEPS[-1]))
        return Proposals(torch.from_numpy(boxes[: self.max_boxes].astype(np.float32)))


def make_windows(size: tuple[int, int], step: float) -> NDArray[np.int64]:
    """Return (R, 4) int64 windows, xyxy, of an image of (height, width) pixels: the whole, then from large to small.

    step: the largest distance between neighbouring windows of a kind, relative to their side; the outermost ones touch
    the borders of the image.
    """
    height, width = size
    parts = [np.array([[0, 0, width, height]])]
    for relative in SIZES:
        side = relative * math.sqrt(height * width)
        for ratio in RATIOS:
            w = min(max(round(side * math.sqrt(ratio)), 1), width)
            h = min(max(round(side / math.sqrt(ratio)), 1), height)
            y, x = np.meshgrid(_starts(height, h, step), _starts(width, w, step), indexing="ij")
            parts.append(np.stack([x, y, x + w, y + h], axis=-1).reshape(-1, 4))
    windows = np.concatenate(parts)
    _, first = np.unique(windows, axis=0, return_index=True)  # sizes that the image cuts off may coincide
    return windows[np.sort(first)]


def _starts(length: int, side: int, step: float) -> NDArray[np.int64]:
    """Return where windows of this side begin on an axis, evenly spread over it."""
    count = math.ceil((length - side) / max(step * side, 1)) + 1
    return np.rint(np.linspace(0, length - side, count)).astype(np.int64)
