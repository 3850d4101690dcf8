"""Order the regions of hierarchies so that likely objects come first, and thin out those that nearly repeat.

Every region is described by numbers that grouping gives for free: its place and shape, when it was made and absorbed,
and how alike it was to what it was merged with. A network with one hidden layer, whose weights are in `objectness.py`,
turns them into a score: the higher, the more likely a box overlaps an annotated object by half.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .grouping import Hierarchy, Ints

FEATURES = 22
BLOCK = 32  # boxes that one is compared with at a time
Singles = NDArray[np.float32]


@njit(cache=True, nogil=True)
def _describe_history(tree: Hierarchy, out: Singles) -> None:
    """Fill in columns 11 to 21: when a region was made and absorbed, and what it was merged with."""
    n = len(tree.merges) + 1
    for region in range(2 * n - 1):
        made = region - n
        row = out[region]
        row[11], row[12] = (made + 1) / n if made >= 0 else 0, made < 0
        for c in range(3):
            row[13 + c] = tree.alike[made, c] if made >= 0 else 1
        row[16], row[17], row[18], row[19], row[20], row[21] = 1, 0, 0, 0, 1, 1
    for step in range(n - 1):
        whole = tree.regions[n + step]
        for side in range(2):
            part, row = tree.regions[tree.merges[step, side]], out[tree.merges[step, side]]
            row[16] = (step + 1) / n
            for c in range(3):
                row[17 + c] = tree.alike[step, c]
            row[20] = part[4] / whole[4]
            row[21] = (part[2] - part[0]) * (part[3] - part[1]) / ((whole[2] - whole[0]) * (whole[3] - whole[1]))


@njit(cache=True, nogil=True)
def describe(tree: Hierarchy) -> Singles:
    """Describe the regions of a hierarchy of a whole image: (regions, FEATURES) float32."""
    regions = tree.regions
    out = np.empty((len(regions), FEATURES), np.float32)
    width, height = regions[-1, 2], regions[-1, 3]
    for i in range(len(regions)):
        x1, y1, x2, y2, size = regions[i]
        w, h, row = x2 - x1, y2 - y1, out[i]
        row[0] = math.log(w * h / (width * height))
        row[1] = math.log(w / h)
        row[2] = row[1] * row[1]
        row[3] = math.log(min(w, h))
        row[4] = size / (w * h)
        row[5], row[6], row[7] = (x1 == 0) + (x2 == width), y1 == 0, y2 == height
        row[8] = (y1 + y2) / (2 * height) - 0.5
        row[9] = row[8] * row[8]
        row[10] = ((x1 + x2) / (2 * width) - 0.5) ** 2
    _describe_history(tree, out)
    return out


@njit(cache=True, nogil=True)
def score(features: Singles, hidden: Singles, output: Singles) -> Singles:
    """Score (R, F) features by a network. hidden: (F + 1, N) weights, the last row biases. output: (N,) weights."""
    scores = np.zeros(len(features), np.float32)
    units = np.empty(output.size, np.float32)
    for i in range(len(features)):
        units[:] = hidden[-1]
        for f in range(features.shape[1]):
            value = features[i, f]
            for u in range(units.size):
                units[u] += value * hidden[f, u]
        for u in range(units.size):
            scores[i] += max(units[u], np.float32(0)) * output[u]
    return scores


@njit(cache=True, nogil=True)
def _overlaps_one(box: Singles, kept: Singles, limit: float) -> bool:
    """Tell whether a box has an IoU above `limit` with one of a block. box: x1, y1, x2, y2, area. kept: (5, BLOCK).

    As many steps for every block, and a count in place of a way out, let the compiler take 16 boxes at a time.
    """
    x1, y1, x2, y2, area = box[0], box[1], box[2], box[3], box[4]
    above = np.int32(0)
    for j in range(BLOCK):
        width = max(min(x2, kept[2, j]) - max(x1, kept[0, j]), np.float32(0))
        height = max(min(y2, kept[3, j]) - max(y1, kept[1, j]), np.float32(0))
        both = width * height
        above += np.int32(both > np.float32(limit) * (area + kept[4, j] - both))
    return bool(above > 0)


@njit(cache=True, nogil=True)
def thin_out(boxes: Ints, limit: float, most: int) -> NDArray[np.bool_]:
    """Mark which of (R, 4) int32 boxes, best first, are kept: those of no IoU above `limit` with one kept before."""
    keep = np.zeros(len(boxes), np.bool_)
    kept = np.zeros(((max(most, 0) + BLOCK - 1) // BLOCK, 5, BLOCK), np.float32)  # no box overlaps the empty ones
    box, count = np.empty(5, np.float32), 0
    for i in range(len(boxes)):
        if count >= most:
            break
        box[:4] = boxes[i]
        box[4] = (box[2] - box[0]) * (box[3] - box[1])
        free = True
        for block in range((count + BLOCK - 1) // BLOCK):
            if _overlaps_one(box, kept[block], limit):
                free = False
                break
        if free:
            keep[i] = True
            kept[count // BLOCK, :, count % BLOCK] = box
            count += 1
    return keep


def without_repeats(boxes: Ints) -> Ints:
    """Keep the first of equal ones of (R, 4) int32 boxes."""
    same_place = np.lexsort(boxes.T)  # stable: equal boxes stay in their order
    placed = boxes[same_place]
    first = np.ones(len(boxes), np.bool_)
    first[1:] = (placed[1:] != placed[:-1]).any(axis=1)
    kept: NDArray[np.int64] = np.sort(same_place[first])
    return boxes[kept]
