"""Group edge pixels into contours and say how alike neighbouring groups are (Zitnick and Dollar 2014, section 3.1).

Pixels are visited column by column, as the authors' code does: the groups depend on it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

Ints = NDArray[np.int32]
Counts = NDArray[np.uint32]
Singles = NDArray[np.float32]

MIN_STRENGTH = 0.1  # of an edge pixel
MAX_TURN = 0.5  # of half a turn: how much the directions of a group may differ in sum
MIN_GROUP = 0.5  # summed strength of a group; smaller ones join a neighbour
REACH = 2  # pixels between groups that are neighbours
SHARPNESS = 2.0  # gamma: the power of affinities


class EdgeGroups(NamedTuple):
    """Hold G groups of edge pixels, numbered from 1; number 0 is no group.

    labels: (H, W) int32, the group of every pixel or 0. strengths: (G + 1,) float32, the summed strength of each.
    places: (G + 1, 2) int32, y and x of the last pixel of each. starts: (G + 2,) int32; the neighbours of group g are
    neighbours[starts[g] : starts[g + 1]] (uint32), the most alike first, with affinities in [0, 1] at the same indices
    (float32).
    """

    labels: Ints
    strengths: Singles
    places: Ints
    starts: Ints
    neighbours: Counts
    affinities: Singles


@njit(cache=True, nogil=True, inline="always")
def _turn(a: float, b: float) -> float:
    """Return the angle between two directions without sign, in half turns: 0 to 0.5."""
    v = abs(a - b) / math.pi
    return 1 - v if v > 0.5 else v


@njit(cache=True, nogil=True)
def trace_groups(strength: Singles, direction: Singles) -> tuple[Ints, int]:
    """Label connected edge pixels: a group grows, from each that is left, by what turns least until it turned much.

    Returns (H, W) int32 labels, 1, 2, ... in groups, 0 where there is no edge, and one more than the last label. Pixels
    at the border of the image are never edges.
    """
    height, width = strength.shape
    labels = np.full((height, width), -1, np.int32)  # -1: an edge without group
    for y in range(height):
        for x in range(width):
            if min(x, y) == 0 or y == height - 1 or x == width - 1 or strength[y, x] <= MIN_STRENGTH:
                labels[y, x] = 0
    listed = np.zeros((height, width), np.int32)  # the last group that had a pixel in its list
    ys, xs, turns = np.empty(64, np.int32), np.empty(64, np.int32), np.empty(64, np.float64)
    count = 1
    for start_x in range(1, width - 1):
        for start_y in range(1, height - 1):
            if labels[start_y, start_x] != -1:
                continue
            y, x, size, turned = start_y, start_x, 0, 0.0
            while turned < MAX_TURN:
                labels[y, x] = count
                for u in range(x - 1, x + 2):
                    for v in range(y - 1, y + 2):
                        if labels[v, u] == -1 and listed[v, u] != count:
                            listed[v, u] = count
                            if size == len(ys):
                                ys, xs = np.append(ys, np.zeros_like(ys)), np.append(xs, np.zeros_like(xs))
                                turns = np.append(turns, np.zeros_like(turns))
                            ys[size], xs[size], turns[size] = v, u, _turn(direction[v, u], direction[y, x])
                            size += 1
                if size == 0:
                    break
                best = 0
                for i in range(1, size):
                    if turns[i] < turns[best]:
                        best = i
                y, x = int(ys[best]), int(xs[best])
                turned += turns[best]
                for i in range(best, size - 1):  # the others stay in order: the first of equals comes first
                    ys[i], xs[i], turns[i] = ys[i + 1], xs[i + 1], turns[i + 1]
                size -= 1
            count += 1
    return labels, count


@njit(cache=True, nogil=True)
def join_small(labels: Ints, count: int, strength: Singles, direction: Singles) -> None:
    """Give the pixels of weak groups to the neighbouring groups of the most similar direction, or to none."""
    height, width = labels.shape
    sums = np.zeros(count, np.float64)
    for y in range(height):
        for x in range(width):
            sums[labels[y, x]] += strength[y, x]
    free = 0
    for y in range(height):
        for x in range(width):
            if labels[y, x] > 0 and sums[labels[y, x]] <= MIN_GROUP:
                labels[y, x] = -1
                free += 1
    moved = free
    while moved > 0:
        moved = 0
        for x in range(1, width - 1):
            for y in range(1, height - 1):
                if labels[y, x] != -1:
                    continue
                least, nearest = 2.0, labels[y, x]
                for u in range(x - 1, x + 2):
                    for v in range(y - 1, y + 2):
                        turn = _turn(direction[v, u], direction[y, x])
                        if labels[v, u] > 0 and turn < least:
                            least, nearest = turn, labels[v, u]
                labels[y, x] = nearest
                moved += int(nearest != -1)
    for y in range(height):
        for x in range(width):
            labels[y, x] = max(labels[y, x], 0)


@njit(cache=True, nogil=True)
def number(labels: Ints, count: int) -> int:
    """Number the groups that are left from 1 without gaps, in their order; return how many there are, and one."""
    new = np.zeros(count, np.int32)
    new[labels.ravel()] = 1
    new[0], left = 0, 1
    for old in range(1, count):
        if new[old]:
            new[old] = left
            left += 1
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            labels[y, x] = new[labels[y, x]]
    return left


@njit(cache=True, nogil=True)
def measure_groups(labels: Ints, count: int, strength: Singles, direction: Singles) -> tuple[Singles, Ints, Singles]:
    """Return summed strengths (count,), last pixels (count, 2) and means (count, 3) of y, x and direction.

    Means are weighted by strength; that of directions is taken of doubled angles, since opposite ones are the same.
    """
    places, sums = np.zeros((count, 2), np.int32), np.zeros((count, 5), np.float64)
    for x in range(labels.shape[1]):
        for y in range(labels.shape[0]):
            label, value = labels[y, x], strength[y, x]
            if label > 0:
                places[label, 0], places[label, 1] = y, x
                sums[label, 0] += value
                sums[label, 1] += value * y
                sums[label, 2] += value * x
                sums[label, 3] += value * math.sin(2 * direction[y, x])
                sums[label, 4] += value * math.cos(2 * direction[y, x])
    strengths, means = np.zeros(count, np.float32), np.zeros((count, 3), np.float32)
    for label in range(1, count):
        strengths[label] = sums[label, 0]
        means[label, 0], means[label, 1] = sums[label, 1] / sums[label, 0], sums[label, 2] / sums[label, 0]
        means[label, 2] = math.atan2(sums[label, 3], sums[label, 4]) / 2
    return strengths, places, means


@njit(cache=True, nogil=True)
def affinity(a: Singles, b: Singles) -> float:
    """Return how likely two groups are one contour (equation 1), from their means of y, x and direction.

    The paper's angles are those of edges; a direction here is across the edge, hence the quarter turn.
    """
    line = math.atan2(a[0] - b[0], a[1] - b[1]) + math.pi / 2
    return float(abs(math.cos(a[2] - line) * math.cos(b[2] - line)) ** SHARPNESS)


@njit(cache=True, nogil=True)
def find_pairs(labels: Ints, count: int) -> tuple[Ints, Ints]:
    """Return (P, 2) int32 pairs of groups that come within REACH of each other, once each, and (count,) degrees."""
    height, width = labels.shape
    pairs, last = np.empty((4 * count + 16, 2), np.int32), np.full(count, -1, np.int32)
    before, degrees = np.empty(len(pairs), np.int32), np.zeros(count, np.int32)  # lists of the pairs of a lower label
    found = 0
    for y in range(height):
        for x in range(width):
            a = labels[y, x]
            if a == 0:
                continue
            for v in range(max(y - REACH, 0), min(y + REACH + 1, height)):
                for u in range(max(x - REACH, 0), min(x + REACH + 1, width)):
                    b = labels[v, u]
                    if b <= a:
                        continue
                    pair = last[a]
                    while pair != -1 and pairs[pair, 1] != b:
                        pair = before[pair]
                    if pair != -1:
                        continue
                    if found == len(pairs):
                        pairs, before = np.concatenate((pairs, pairs)), np.concatenate((before, before))
                    pairs[found, 0], pairs[found, 1] = a, b
                    before[found], last[a] = last[a], found
                    degrees[a] += 1
                    degrees[b] += 1
                    found += 1
    return pairs[:found], degrees


@njit(cache=True, nogil=True)
def _sort(neighbours: Counts, affinities: Singles) -> None:
    """Put the neighbours of a group in the order of falling affinity, in place; equal ones stay in their order."""
    for i in range(1, len(neighbours)):
        neighbour, alike, k = neighbours[i], affinities[i], i
        while k > 0 and affinities[k - 1] < alike:
            neighbours[k], affinities[k] = neighbours[k - 1], affinities[k - 1]
            k -= 1
        neighbours[k], affinities[k] = neighbour, alike


@njit(cache=True, nogil=True)
def group_edges(strength: Singles, direction: Singles) -> EdgeGroups:
    """Group the edges of an image; strength and direction as `edges.find_edges` returns them, (H, W) float32."""
    labels, count = trace_groups(strength, direction)
    join_small(labels, count, strength, direction)
    count = number(labels, count)
    strengths, places, means = measure_groups(labels, count, strength, direction)
    pairs, degrees = find_pairs(labels, count)
    starts = np.zeros(count + 1, np.int32)
    for label in range(count):
        starts[label + 1] = starts[label] + degrees[label]
    neighbours, affinities = np.empty(2 * len(pairs), np.uint32), np.empty(2 * len(pairs), np.float32)
    filled = starts[:-1].copy()
    for a, b in pairs:
        alike = affinity(means[a], means[b])
        for one, other in ((a, b), (b, a)):
            neighbours[filled[one]], affinities[filled[one]] = other, alike
            filled[one] += 1
    for label in range(count):
        _sort(neighbours[starts[label] : starts[label + 1]], affinities[starts[label] : starts[label + 1]])
    return EdgeGroups(labels, strengths, places, starts, neighbours, affinities)
