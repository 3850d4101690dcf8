"""Propose boxes that hold whole contours: EdgeBoxes (Zitnick and Dollar, ECCV 2014).

Edges are grouped into contours (`edgegroups`), a sliding window of many sizes and shapes is scored by the contours that
lie wholly inside (`boxscores`), the boxes found are moved to where they score best, and near-duplicates are left out.
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .boxscores import Floats, refine_boxes, score_boxes, sum_edges
from .colour import shrink
from .edgegroups import Ints, Singles, group_edges
from .edges import find_edges, find_structured_edges, load_forest, steepest, thin
from .kernels import compiled, usable_cores
from .ranking import thin_out, without_repeats
from .structures import Proposals, check_image

VERSION = 2
SIDE = 500  # pixels of the longer side that is worked on
ALPHA, BETA = 0.65, 0.75  # IoU of windows that are next to each other; IoU above which a worse box is left out
MIN_AREA, MAX_RATIO = 1000, 3  # pixels of a window, and its longer side over its shorter one
REFINED = 2.25  # times as many windows as boxes are kept, the best, are moved to where they score better
CHUNK = 512  # windows that a thread takes at a time

KERNELS: tuple[Any, ...] = (steepest, thin, group_edges, sum_edges, score_boxes, refine_boxes, thin_out)


class EdgeBoxes:
    """Propose the windows that hold the most contours wholly.

    model: the file of a model of structured edges, for which OpenCV must be a contrib build; gradients without.
    max_boxes: how many boxes are kept at most. threads: by default the number of processor cores that this process
    may use; the boxes do not depend on it. Raises ValueError or FileNotFoundError, one sentence that names the model.
    """

    name = "edgeboxes"

    def __init__(self, max_boxes: int = 2000, model: Path | None = None, threads: int | None = None) -> None:
        self.max_boxes, self.threads = max_boxes, usable_cores() if threads is None else threads
        if self.max_boxes < 1 or self.threads < 1:
            raise ValueError(f"expected at least 1 box and 1 thread, got {self.max_boxes} and {self.threads}")
        self._forest = None if model is None else load_forest(model)
        self._digest = None if model is None else hashlib.sha256(Path(model).read_bytes()).hexdigest()

    @property
    def settings(self) -> Mapping[str, Any]:
        """Return what shapes the boxes; VERSION changes with the algorithm."""
        return {"proposer": self.name, "version": VERSION, "max_boxes": self.max_boxes, "model": self._digest}

    def __call__(self, image: Tensor, path: Path | None = None) -> Proposals:
        """Propose boxes of a (3, H, W) uint8 RGB image, the best score first, in whole pixels.

        An image without contours gets one box, the whole of it.
        """
        check_image(image)
        height, width = int(image.shape[1]), int(image.shape[2])
        small = shrink(np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy()), SIDE)
        edges = find_edges(small) if self._forest is None else find_structured_edges(small, self._forest)
        found = find_boxes(*edges, self.max_boxes, self.threads)
        if len(found) == 0:
            return Proposals(torch.tensor([[0, 0, width, height]], dtype=torch.float32))
        boxes = np.rint(found * np.array([width / small.shape[1], height / small.shape[0]] * 2)).astype(np.int32)
        return Proposals(torch.from_numpy(without_repeats(boxes).astype(np.float32)))


def find_boxes(strength: Singles, direction: Singles, most: int, threads: int = 1) -> Ints:
    """Return (R, 4) int32 boxes, xyxy, x2 and y2 exclusive, best first, at most `most`; see `edges.find_edges`."""
    groups = group_edges(strength, direction)
    sums = sum_edges(groups, strength)
    windows = make_windows(strength.shape)
    with ThreadPoolExecutor(threads) as pool:
        found = pool.map(lambda part: score_boxes(groups, sums, windows[part]), _parts(len(windows)))
        windows, scores = _best(windows, np.concatenate([np.zeros(0), *found]), int(REFINED * most))
        shift = (1 - ALPHA) / (1 + ALPHA)
        tasks = pool.map(
            lambda part: refine_boxes(groups, sums, windows[part], scores[part], shift), _parts(len(scores))
        )
        deque(tasks, 0)
    boxes = without_repeats(np.ascontiguousarray(_best(windows, scores, len(windows))[0][:, [1, 0, 3, 2]]))
    return boxes[thin_out(boxes, BETA, most)]


def _parts(count: int) -> list[slice]:
    """Return what each task takes of a number of boxes."""
    return [slice(start, start + CHUNK) for start in range(0, count, CHUNK)]


def _best(boxes: Ints, scores: Floats, most: int) -> tuple[Ints, Floats]:
    """Return boxes and scores, best first, without those that score 0, at most `most`."""
    order = np.argsort(-scores, kind="stable")[: min(most, np.count_nonzero(scores))]
    return boxes[order], scores[order]


def make_windows(size: tuple[int, ...]) -> Ints:
    """Return (N, 4) int32 windows of an image of (height, width) pixels: y1, x1, y2, x2, exclusive (section 3.4).

    Neighbours in place, size or shape overlap by an IoU of ALPHA; windows are cut at the borders of the image. Sides go
    from the first to the last pixel, as in the authors' code.
    """
    height, width = size
    shift, turn, growth = (1 - ALPHA) / (1 + ALPHA), (1 + ALPHA) / (2 * ALPHA), math.sqrt(1 / ALPHA)
    shapes, smallest = int(math.log(MAX_RATIO) / (2 * math.log(turn))), math.sqrt(MIN_AREA)
    parts = [np.zeros((0, 4), np.int32)]
    for step in range(math.ceil(math.log(max(max(size) / smallest, 1)) / math.log(growth))):
        for shape in range(-shapes, shapes + 1):
            side = smallest * growth**step
            h, w = int(side / turn**shape), int(side * turn**shape)
            ys = np.arange(0, height - h + max(2, int(h * shift)), max(2, int(h * shift)))
            xs = np.arange(0, width - w + max(2, int(w * shift)), max(2, int(w * shift)))
            y, x = np.meshgrid(ys, xs, indexing="ij")
            corners = [y, x, np.minimum(y + h + 1, height), np.minimum(x + w + 1, width)]
            parts.append(np.stack(corners, axis=-1).reshape(-1, 4).astype(np.int32))
    windows = np.concatenate(parts)
    return windows[(windows[:, 2] - windows[:, 0] > 1) & (windows[:, 3] - windows[:, 1] > 1)]


def is_compiled() -> bool:
    """Tell whether compiled kernels lie on disk, newer than their sources, so that the first image need not wait."""
    return compiled(KERNELS)
