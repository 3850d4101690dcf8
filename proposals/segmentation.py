"""Split an image into regions of even colour: the graph segmentation of Felzenszwalb and Huttenlocher (IJCV 2004).

Pixels are nodes; an edge joins each pixel to its neighbours and weighs the Euclidean distance of their colours, in
whole steps of 1 / WEIGHT_STEPS, so that edges are put in order by counting. Going through the edges from light to
heavy, two components are merged if the edge weighs no more than Int(C) + k / |C| of either, where Int(C) is the
heaviest edge merged so far (their section 3.1; components are grown in order, so the last merged edge is the heaviest).
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

Ints = NDArray[np.int32]

COLOUR_SHIFT = 7  # colours enter as uint16, 128 steps to one of the 256 grey levels
WEIGHT_STEPS = 8  # edge weights are whole numbers of 1 / 8 grey level
MAX_WEIGHT = 256 * 2 * WEIGHT_STEPS  # above the distance of black and white, 255 * sqrt(3)


@njit(cache=True, nogil=True)
def edge_weights(colours: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Weigh the edges of the 8-connected grid.

    colours: (H, W, 3) uint16, 128 steps to a grey level. Returns (H * W, 4) uint16: the distance of each pixel to its
    neighbour on the right, below, below right, below left, in steps of 1/8 grey level; MAX_WEIGHT where there is none.
    """
    height, width = colours.shape[:2]
    weights = np.full((height * width, 4), MAX_WEIGHT, np.uint16)
    unit = np.float32(WEIGHT_STEPS / (1 << COLOUR_SHIFT))
    for y in range(height):
        for x in range(width):
            node = y * width + x
            c0, c1, c2 = np.int32(colours[y, x, 0]), np.int32(colours[y, x, 1]), np.int32(colours[y, x, 2])
            for side in range(4):
                v = y + (side > 0)
                u = x + (side == 0) + (side == 2) - (side == 3)
                if v < height and 0 <= u < width:
                    d0, d1, d2 = c0 - colours[v, u, 0], c1 - colours[v, u, 1], c2 - colours[v, u, 2]
                    square = np.float32(d0) * np.float32(d0) + np.float32(d1) * np.float32(d1)
                    square += np.float32(d2) * np.float32(d2)
                    weights[node, side] = np.uint16(np.sqrt(square) * unit + np.float32(0.5))
    return weights


@njit(cache=True, nogil=True)
def sort_edges(weights: NDArray[np.uint16]) -> Ints:
    """Return the edges from light to heavy, equal ones by number; edge `4 * pixel + side` as in `edge_weights`."""
    flat = weights.ravel()
    starts = np.zeros(MAX_WEIGHT + 2, np.int32)
    for weight in flat:
        starts[weight + 1] += 1
    for level in range(1, MAX_WEIGHT + 2):
        starts[level] += starts[level - 1]
    order = np.empty(starts[MAX_WEIGHT], np.int32)  # the edges that lead out of the image are left out
    for edge in range(flat.size):
        weight = flat[edge]
        if weight < MAX_WEIGHT:
            order[starts[weight]] = edge
            starts[weight] += 1
    return order


@njit(cache=True, nogil=True, inline="always")
def _root(parents: Ints, node: int) -> int:
    while parents[node] != node:
        parents[node] = parents[parents[node]]
        node = parents[node]
    return node


@njit(cache=True, nogil=True)
def segment(weights: NDArray[np.uint16], order: Ints, shape: tuple[int, int], k: float, min_size: int) -> Ints:
    """Segment the grid with edges of these weights, taken in this order.

    shape: (height, width). k: how readily regions grow, in grey levels times pixels. min_size: smaller regions are
    joined to the neighbour behind their lightest edge. Returns (H, W) int32 labels 0, 1, ... in the order of first
    pixels.
    """
    height, width = shape
    flat = weights.ravel()
    steps = np.array([1, width, width + 1, width - 1], np.int32)
    parents = np.arange(height * width, dtype=np.int32)
    sizes = np.ones(height * width, np.int32)
    grain = np.float32(k * WEIGHT_STEPS)
    limits = np.full(height * width, grain, np.float32)
    borders = np.empty(order.size, np.int32)
    count = 0
    for edge in order:
        a, b = _root(parents, edge >> 2), _root(parents, (edge >> 2) + steps[edge & 3])
        if a == b:
            continue
        weight = np.float32(flat[edge])
        if weight <= limits[a] and weight <= limits[b]:
            a, b = min(a, b), max(a, b)
            parents[b] = a
            sizes[a] += sizes[b]
            limits[a] = weight + grain / np.float32(sizes[a])
        else:
            borders[count] = edge
            count += 1
    for edge in borders[:count]:
        a, b = _root(parents, edge >> 2), _root(parents, (edge >> 2) + steps[edge & 3])
        if a != b and min(sizes[a], sizes[b]) < min_size:
            a, b = min(a, b), max(a, b)
            parents[b] = a
            sizes[a] += sizes[b]
    return _number(parents).reshape(height, width)


@njit(cache=True, nogil=True)
def _number(parents: Ints) -> Ints:
    """Number the components; the root of each is its first pixel."""
    labels = np.empty(parents.size, np.int32)
    count = 0
    for node in range(parents.size):
        root = _root(parents, node)
        if root == node:
            labels[node] = count
            count += 1
        else:
            labels[node] = labels[root]
    return labels
