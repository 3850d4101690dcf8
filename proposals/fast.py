"""Propose regions by selective search (Uijlings et al., IJCV 2013), written for speed: the default proposer.

An image is worked on at a longer side of 360 pixels. In each of two colour spaces it is segmented three times, from
fine to coarse, and each segmentation is grouped by three similarities: 18 hierarchies, whose regions are ranked by a
learned score and thinned out. The two colour spaces run on two threads; the boxes do not depend on that.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .colour import COLOUR_COLUMNS, COLUMNS, SPACES, Bytes, find_bins, gradients, shrink, smooth_colours
from .grouping import Hierarchy, Ints, count_bins, find_neighbours, group, measure_regions
from .objectness import HIDDEN, OUTPUT
from .ranking import Singles, describe, score, thin_out
from .segmentation import edge_weights, segment, sort_edges
from .structures import Proposals, check_image

VERSION = 2
SIDE, SIGMA = 360, 0.6  # pixels of the longer side that is worked on; Gaussian smoothing before segmentation, in pixels
GRAINS = ((60, 30), (120, 50), (240, 70))  # k and the smallest size of regions, in pixels
STRATEGIES = ((1, 1, 1, 1), (0, 1, 1, 1), (0, 0, 1, 1))  # weights of colour, texture, size and fill
# The first 85 % of the boxes overlap no better one by more than 0.75 IoU, so that few boxes find many objects; the rest
# are the best that overlap none by more than 0.9, which are closer fits to objects that are found already.
APART, ALMOST_SAME, FIRST_PART = 0.75, 0.9, 0.85

KERNELS: tuple[Any, ...] = (
    *(edge_weights, sort_edges, segment, find_bins, count_bins, measure_regions),
    *(find_neighbours, group, describe, score, thin_out),
)


class SelectiveSearch:
    """Propose the regions of hierarchies grown in two colour spaces, from three segmentations each.

    max_boxes: how many boxes are kept at most. threads: 1 or 2. The first image of a machine waits for kernels to be
    compiled (`is_compiled`), for about 20 seconds.
    """

    name = "fast"

    def __init__(self, max_boxes: int = 2000, threads: int = 2) -> None:
        if max_boxes < 1 or threads not in (1, 2):
            raise ValueError(f"expected max_boxes of at least 1 and 1 or 2 threads, got {max_boxes} and {threads}")
        self.max_boxes, self.threads = max_boxes, threads

    @property
    def settings(self) -> Mapping[str, Any]:
        """Return what shapes the boxes; VERSION changes with the algorithm."""
        return {"proposer": self.name, "version": VERSION, "max_boxes": self.max_boxes}

    def __call__(self, image: Tensor, path: Path | None = None) -> Proposals:
        """Propose regions of a (3, H, W) uint8 RGB image, likely objects first, in whole pixels."""
        check_image(image)
        height, width = int(image.shape[1]), int(image.shape[2])
        small = shrink(np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy()), SIDE)
        if self.threads == 1:
            found = [_score_regions(small, space) for space in SPACES]
        else:
            with ThreadPoolExecutor(self.threads) as pool:
                found = list(pool.map(lambda space: _score_regions(small, space), SPACES))
        boxes, scores = (np.concatenate(parts) for parts in zip(*found, strict=True))
        scale = np.array([width / small.shape[1], height / small.shape[0]] * 2)
        boxes = np.rint(boxes * scale).astype(np.int32)[np.argsort(-scores, kind="stable")]
        return Proposals(torch.from_numpy(_choose(_without_repeats(boxes), self.max_boxes).astype(np.float32)))


def grow_hierarchies(image: Bytes, space: str) -> list[Hierarchy]:
    """Group the regions of an (H, W, 3) RGB image in one colour space; one hierarchy per grain and strategy."""
    colours, smooth = smooth_colours(image, space, SIGMA)
    weights = edge_weights(smooth)
    order = sort_edges(weights)
    bins = find_bins(colours, *gradients(image))
    found = []
    for grain, min_size in GRAINS:
        labels = segment(weights, order, (image.shape[0], image.shape[1]), float(grain), min_size)
        regions, counts, pairs = measure_regions(labels), count_bins(labels, bins, COLUMNS), find_neighbours(labels)
        for strategy in STRATEGIES:
            found.append(group(regions, counts, pairs, COLOUR_COLUMNS, np.array(strategy, np.float64)))
    return found


def _score_regions(image: Bytes, space: str) -> tuple[Ints, Singles]:
    trees = grow_hierarchies(image, space)
    scores = [score(describe(tree), HIDDEN, OUTPUT) for tree in trees]
    return np.concatenate([tree.regions[:, :4] for tree in trees]), np.concatenate(scores)


def _without_repeats(boxes: Ints) -> Ints:
    """Keep the first of equal boxes."""
    same_place = np.lexsort(boxes.T)  # stable: equal boxes stay in their order
    placed = boxes[same_place]
    first = np.ones(len(boxes), np.bool_)
    first[1:] = (placed[1:] != placed[:-1]).any(axis=1)
    kept: NDArray[np.int64] = np.sort(same_place[first])
    return boxes[kept]


def _choose(boxes: Ints, most: int) -> Ints:
    """Thin out boxes that are in order, best first, and keep the order of each of the two parts."""
    first = np.zeros(len(boxes), np.bool_)
    first[np.flatnonzero(thin_out(boxes, APART, most))[: max(round(FIRST_PART * most), 1)]] = True
    boxes = np.concatenate([boxes[first], boxes[~first]])
    return boxes[thin_out(boxes, ALMOST_SAME, most)]


def is_compiled() -> bool:
    """Tell whether compiled kernels lie on disk, newer than their sources, so that the first image need not wait."""
    for kernel in KERNELS:
        source = Path(kernel.py_func.__code__.co_filename)
        compiled = Path(kernel.stats.cache_path).glob(f"{source.stem}.{kernel.__name__}-*.nbi")
        if not any(file.stat().st_mtime >= source.stat().st_mtime for file in compiled):
            return False
    return True
