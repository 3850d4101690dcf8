"""Propose regions by selective search (Uijlings et al., IJCV 2013), written for speed: the default proposer.

An image is worked on at a longer side of 360 pixels. In each colour space of a mode it is segmented several times, from
fine to coarse, and each segmentation is grouped by several sets of similarities. The regions of all these hierarchies
are ranked by a learned score and thinned out:

    mode     colour spaces  segmentations  sets of similarities  hierarchies  most boxes
    single   1              1              1                       1          2000
    fast     2              3              3                      18          2000
    quality  3              4              4                      48          4000

Segmentations are grown on several threads; the boxes do not depend on how many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .colour import COLOUR_COLUMNS, COLUMNS, Bytes, find_bins, gradients, shrink, smooth_colours
from .grouping import Hierarchy, Ints, count_bins, find_neighbours, group, measure_regions
from .kernels import compiled, usable_cores
from .objectness import HIDDEN, OUTPUT
from .ranking import Singles, describe, score, thin_out, without_repeats
from .segmentation import edge_weights, segment, sort_edges
from .structures import Proposals, check_image

VERSION = 5
SIDE, SIGMA = 360, 0.6  # pixels of the longer side that is worked on; Gaussian smoothing before segmentation, in pixels
FIRST_PART = 0.85  # of the boxes are thinned out more
FIRST_APART = 0.55  # the first boxes, as many as a mode says, overlap no better one of them by more than this IoU
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Mode:
    """Say which hierarchies are grown and how their regions are thinned out.

    spaces: names in `colour.SPACES`. grains: k and the smallest size of regions in pixels, one pair for each
    segmentation. strategies: weights of colour, texture, size and fill. apart: the first 85 % of the boxes overlap no
    better one by more than this IoU, so that few boxes find many objects. almost_same: the rest are the best that
    overlap none by more than this; they fit objects better that are found already. first: as many boxes come first that
    are further apart still (`FIRST_APART`); a mode with one hierarchy has too few good boxes for it.
    """

    spaces: tuple[str, ...]
    grains: tuple[tuple[int, int], ...]
    strategies: tuple[tuple[int, int, int, int], ...]
    max_boxes: int = 2000
    apart: float = 0.75
    almost_same: float = 0.9
    first: int = 300


_ALL, _NO_COLOUR, _SIZE_AND_FILL, _FILL = (1, 1, 1, 1), (0, 1, 1, 1), (0, 0, 1, 1), (0, 0, 0, 1)
MODES = {
    "single": Mode(("hsv",), ((120, 50),), (_ALL,), first=0),
    "fast": Mode(("hsv", "lab"), ((60, 30), (120, 50), (240, 70)), (_ALL, _NO_COLOUR, _SIZE_AND_FILL)),
    "quality": Mode(
        ("hsv", "lab", "rgb"),
        ((30, 20), (60, 30), (120, 50), (240, 70)),
        (_ALL, _NO_COLOUR, _SIZE_AND_FILL, _FILL),
        max_boxes=4000,
        apart=0.8,
        almost_same=0.92,
    ),
}

KERNELS: tuple[Any, ...] = (
    *(edge_weights, sort_edges, segment, find_bins, count_bins, measure_regions),
    *(find_neighbours, group, describe, score, thin_out),
)


class SelectiveSearch:
    """Propose the regions of hierarchies grown in several colour spaces, from several segmentations each.

    mode: "single", "fast" or "quality"; see `MODES`. max_boxes: how many boxes are kept at most, by default as many as
    the mode says. threads: by default the number of processor cores that this process may use. The first image of a
    machine waits for kernels to be compiled (`is_compiled`), for about 20 seconds.
    """

    def __init__(self, max_boxes: int | None = None, threads: int | None = None, mode: str = "fast") -> None:
        if mode not in MODES:
            raise ValueError(f"expected a mode of {', '.join(MODES)}, got {mode!r}")
        self.mode = mode
        self.max_boxes = MODES[mode].max_boxes if max_boxes is None else max_boxes
        self.threads = usable_cores() if threads is None else threads
        if self.max_boxes < 1 or self.threads < 1:
            raise ValueError(f"expected at least 1 box and 1 thread, got {self.max_boxes} and {self.threads}")

    @property
    def name(self) -> str:
        """Return the name that the command line uses: that of the mode."""
        return self.mode

    @property
    def settings(self) -> Mapping[str, Any]:
        """Return what shapes the boxes; VERSION changes with the algorithm and the modes."""
        return {"proposer": self.name, "version": VERSION, "max_boxes": self.max_boxes}

    def __call__(self, image: Tensor, path: Path | None = None) -> Proposals:
        """Propose regions of a (3, H, W) uint8 RGB image, likely objects first, in whole pixels."""
        check_image(image)
        height, width = int(image.shape[1]), int(image.shape[2])
        small = shrink(np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy()), SIDE)
        mode = MODES[self.mode]
        parts = _for_each_segmentation(small, mode, self.threads, _boxes_and_scores)
        boxes, scores = (np.concatenate(part) for part in zip(*parts, strict=True))
        scale = np.array([width / small.shape[1], height / small.shape[0]] * 2)
        boxes = np.rint(boxes * scale).astype(np.int32)[np.argsort(-scores, kind="stable")]
        chosen = choose(without_repeats(boxes), mode, self.max_boxes)
        return Proposals(torch.from_numpy(chosen.astype(np.float32)))


class _Space(NamedTuple):
    """Hold what all segmentations of an image in one colour space share."""

    weights: NDArray[np.uint16]
    order: Ints
    bins: NDArray[np.uint16]


def grow_hierarchies(image: Bytes, mode: Mode) -> list[Hierarchy]:
    """Group the regions of an (H, W, 3) RGB image: one hierarchy per space, grain and strategy, in this order."""
    return [tree for trees in _for_each_segmentation(image, mode, 1, lambda trees: trees) for tree in trees]


def _for_each_segmentation(image: Bytes, mode: Mode, threads: int, use: Callable[[list[Hierarchy]], T]) -> list[T]:
    """Return what `use` makes of the hierarchies of every segmentation; spaces change slowest."""
    slopes = gradients(image)

    def prepare(space: str) -> _Space:
        colours, smooth = smooth_colours(image, space, SIGMA)
        weights = edge_weights(smooth)
        return _Space(weights, sort_edges(weights), find_bins(colours, *slopes))

    def grow(task: tuple[_Space, tuple[int, int]]) -> T:
        return use(_grow(task[0], task[1], (image.shape[0], image.shape[1]), mode))

    tasks = len(mode.spaces) * len(mode.grains)
    if min(threads, tasks) == 1:
        return _run(map, prepare, grow, mode)
    with ThreadPoolExecutor(min(threads, tasks)) as pool:
        return _run(pool.map, prepare, grow, mode)


def _run(
    run: Callable[..., Iterable[Any]],
    prepare: Callable[[str], _Space],
    grow: Callable[[tuple[_Space, tuple[int, int]]], T],
    mode: Mode,
) -> list[T]:
    """Prepare every space, then grow every segmentation; `run` is `map`, or that of a pool of threads."""
    spaces = list(run(prepare, mode.spaces))
    return list(run(grow, [(space, grain) for space in spaces for grain in mode.grains]))


def _grow(space: _Space, grain: tuple[int, int], shape: tuple[int, int], mode: Mode) -> list[Hierarchy]:
    """Segment once and group with every strategy."""
    labels = segment(space.weights, space.order, shape, float(grain[0]), grain[1])
    regions, counts = measure_regions(labels), count_bins(labels, space.bins, COLUMNS)
    pairs = find_neighbours(labels)
    weights = [np.array(strategy, np.float64) for strategy in mode.strategies]
    return [group(regions, counts, pairs, COLOUR_COLUMNS, weight) for weight in weights]


def _boxes_and_scores(trees: list[Hierarchy]) -> tuple[Ints, Singles]:
    scores = [score(describe(tree), HIDDEN, OUTPUT) for tree in trees]
    return np.concatenate([tree.regions[:, :4] for tree in trees]), np.concatenate(scores)


def choose(boxes: Ints, mode: Mode, most: int) -> Ints:
    """Thin out boxes that are in order, best first, in two parts; then let those come first that are far apart."""
    boxes = _prefer(boxes, mode.apart, most, max(round(FIRST_PART * most), 1))
    boxes = boxes[thin_out(boxes, mode.almost_same, most)]
    return _prefer(boxes, FIRST_APART, min(mode.first, most), mode.first)


def _prefer(boxes: Ints, apart: float, most: int, count: int) -> Ints:
    """Put up to `count` boxes first, of the `most` best that overlap none of them by more than an IoU of `apart`."""
    first = np.zeros(len(boxes), np.bool_)
    first[np.flatnonzero(thin_out(boxes, apart, most))[:count]] = True
    return np.concatenate([boxes[first], boxes[~first]])


def is_compiled() -> bool:
    """Tell whether compiled kernels lie on disk, newer than their sources, so that the first image need not wait."""
    return compiled(KERNELS)
