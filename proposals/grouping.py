"""Merge regions into a hierarchy, the most alike first: the grouping of Uijlings et al. (IJCV 2013, section 3).

Regions carry whole-number histograms that add up exactly when two are merged. Similarities are computed from whole
numbers and single divisions, so that they, and the hierarchy, are the same on every machine.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

Ints = NDArray[np.int32]
Floats = NDArray[np.float64]

ONE = 1 << 20  # a histogram is normalised to this sum


class Hierarchy(NamedTuple):
    """Hold the regions of one grouping of n regions: the first n are those it began with, n + i is made by merge i.

    merges: (n - 1, 2) int32. alike: (n - 1, 3) float64, the similarity of the two, and of their colours and textures.
    regions: (2n - 1, 5) int32, x1, y1, x2, y2 and the number of pixels. counts: (2n - 1, D) int32, their histograms.
    """

    merges: Ints
    alike: Floats
    regions: Ints
    counts: Ints


@njit(cache=True, nogil=True)
def count_bins(labels: Ints, bins: NDArray[np.uint16], columns: int) -> Ints:
    """Count the bins of every region.

    labels: (H, W), regions numbered from 0. bins: (H, W, D) uint16, the columns that each pixel adds one to.
    Returns (regions, columns) int32 counts.
    """
    height, width, depth = bins.shape
    counts = np.zeros((labels.max() + 1, columns), np.int32)
    for y in range(height):
        for x in range(width):
            row = counts[labels[y, x]]
            for d in range(depth):
                row[bins[y, x, d]] += 1
    return counts


@njit(cache=True, nogil=True)
def measure_regions(labels: Ints) -> Ints:
    """Return (regions, 5) int32: x1, y1, x2, y2 (exclusive) and the number of pixels of every region."""
    height, width = labels.shape
    regions = np.zeros((labels.max() + 1, 5), np.int32)
    regions[:, 0], regions[:, 1] = width, height
    for y in range(height):
        for x in range(width):
            region = regions[labels[y, x]]
            region[0], region[1] = min(region[0], x), min(region[1], y)
            region[2], region[3] = max(region[2], x + 1), max(region[3], y + 1)
            region[4] += 1
    return regions


@njit(cache=True, nogil=True, inline="always")
def _slot(table: NDArray[np.int64], key: int) -> int:
    """Return where a key is in a hash table of a power of two slots, or the free slot (-1) where it belongs."""
    slot = (key * 0x9E3779B1 >> 8) & (table.size - 1)
    while table[slot] != -1 and table[slot] != key:
        slot = (slot + 1) & (table.size - 1)
    return slot


@njit(cache=True, nogil=True)
def find_neighbours(labels: Ints) -> Ints:
    """Return (pairs, 2) int32: the regions that share a side of a pixel, each pair once, the smaller number first.

    Regions of 8-connected pixels can cross at a corner, so pairs are not as few as in a planar graph: tables grow.
    """
    height, width = labels.shape
    count = labels.max() + 1
    slots = 2 ** int(np.ceil(np.log2(8 * count)))
    table, keys = np.full(slots, -1, np.int64), np.empty(slots // 2, np.int64)
    found = 0
    for y in range(height):
        for x in range(width):
            for side in range(2):
                v, u = y + side, x + 1 - side
                if v == height or u == width or labels[v, u] == labels[y, x]:
                    continue
                key = np.int64(min(labels[y, x], labels[v, u])) * count + max(labels[y, x], labels[v, u])
                slot = _slot(table, key)
                if table[slot] == -1:
                    table[slot] = keys[found] = key
                    found += 1
                    if found == keys.size:
                        table, keys = _double(keys)
    pairs = np.empty((found, 2), np.int32)
    pairs[:, 0], pairs[:, 1] = keys[:found] // count, keys[:found] % count
    return pairs


@njit(cache=True, nogil=True)
def _double(keys: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return a hash table of twice the slots that holds these keys, and the keys with room for as many more."""
    table, larger = np.full(4 * keys.size, -1, np.int64), np.empty(2 * keys.size, np.int64)
    larger[: keys.size] = keys
    for key in keys:
        table[_slot(table, key)] = key
    return table, larger


@njit(cache=True, nogil=True, inline="always")
def _normalise(counts: Ints, out: Ints, split: int) -> None:
    """Scale the colour part and the texture part of a histogram to a sum of ONE each, rounded down."""
    for start, stop in ((0, split), (split, counts.size)):
        total = 0
        for i in range(start, stop):
            total += counts[i]
        scale = ONE / max(total, 1)
        for i in range(start, stop):
            out[i] = np.int32(counts[i] * scale)


@njit(cache=True, nogil=True)
def _common(first: Ints, second: Ints) -> float:
    """Return the intersection of two normalised histograms, in [0, 1]."""
    total = np.int32(0)
    for i in range(first.size):
        total += min(first[i], second[i])
    return float(total / ONE)


@njit(cache=True, nogil=True)
def _compare(boxes: tuple[Ints, Ints], histograms: tuple[Ints, Ints], split: int, weights: Floats) -> float:
    """Weigh colour, texture, size and fill (Uijlings et al. 2013, equations 1 to 6); weights[4]: the image's pixels."""
    (first, second), (a, b) = boxes, histograms
    size = np.int64(first[4]) + second[4]
    width = max(first[2], second[2]) - min(first[0], second[0])
    height = max(first[3], second[3]) - min(first[1], second[1])
    alike: float = weights[2] * (1 - size / weights[4]) + weights[3] * (1 - (width * height - size) / weights[4])
    if weights[0] != 0:
        alike += weights[0] * _common(a[:split], b[:split])
    if weights[1] != 0:
        alike += weights[1] * _common(a[split:], b[split:])
    return alike


@njit(cache=True, nogil=True, inline="always")
def _before(heap: Floats, i: int, j: int) -> bool:
    """Tell whether entry i of the heap comes out before entry j: more alike, then smaller numbers."""
    if heap[i, 0] != heap[j, 0]:
        return bool(heap[i, 0] > heap[j, 0])
    if heap[i, 1] != heap[j, 1]:
        return bool(heap[i, 1] < heap[j, 1])
    return bool(heap[i, 2] < heap[j, 2])


@njit(cache=True, nogil=True, inline="always")
def _swap(heap: Floats, i: int, j: int) -> None:
    for c in range(3):
        heap[i, c], heap[j, c] = heap[j, c], heap[i, c]


@njit(cache=True, nogil=True)
def _push(heap: Floats, size: int, alike: float, a: int, b: int) -> Floats:
    """Add an entry to the first `size`; return the heap, or a copy of twice the length if it was full."""
    if size == len(heap):
        larger = np.empty((2 * size + 1, 3), np.float64)
        larger[:size] = heap
        heap = larger
    heap[size, 0], heap[size, 1], heap[size, 2] = alike, min(a, b), max(a, b)
    i = size
    while i > 0 and _before(heap, i, (i - 1) // 2):
        _swap(heap, i, (i - 1) // 2)
        i = (i - 1) // 2
    return heap


@njit(cache=True, nogil=True)
def _pop(heap: Floats, size: int) -> None:
    """Move the first of `size` entries to the end and put the others in order."""
    size -= 1
    _swap(heap, 0, size)
    i = 0
    while 2 * i + 1 < size:
        child = 2 * i + 1
        if child + 1 < size and _before(heap, child + 1, child):
            child += 1
        if not _before(heap, child, i):
            return
        _swap(heap, i, child)
        i = child


@njit(cache=True, nogil=True)
def _link(pairs: Ints, count: int) -> tuple[Ints, Ints, Ints, Ints]:
    """Return the neighbours of `count` regions as linked lists that can be joined when regions are merged.

    ends: (2 count - 1, 2) first and last link of each list. links: (2 pairs, 2) a neighbour, and the next link or -1.
    owners: the region that each was merged into, or itself. seen: the last merge that looked at a region.
    """
    ends, links = np.full((2 * count - 1, 2), -1, np.int32), np.full((2 * len(pairs), 2), -1, np.int32)
    owners, seen = np.arange(2 * count - 1).astype(np.int32), np.full(2 * count - 1, -1, np.int32)
    for link in range(len(links)):
        region = pairs[link >> 1, link & 1]
        links[link, 0] = pairs[link >> 1, 1 - (link & 1)]
        if ends[region, 0] == -1:
            ends[region, 0] = link
        else:
            links[ends[region, 1], 1] = link
        ends[region, 1] = link
    return ends, links, owners, seen


@njit(cache=True, nogil=True)
def _owner(owners: Ints, region: int) -> int:
    while owners[region] != region:
        owners[region] = owners[owners[region]]
        region = owners[region]
    return region


@njit(cache=True, nogil=True)
def _join_lists(lists: tuple[Ints, Ints, Ints, Ints], merge: Ints, new: int, neighbours: Ints) -> int:
    """Give a new region the neighbours of the two merged, each once; write them down and return how many they are."""
    ends, links, owners, seen = lists
    owners[merge[0]], owners[merge[1]] = new, new
    links[ends[merge[0], 1], 1] = ends[merge[1], 0]
    link, last, count = ends[merge[0], 0], -1, 0
    while link != -1:
        other = _owner(owners, links[link, 0])
        if other != new and seen[other] != new:
            seen[other] = new
            neighbours[count] = other
            links[link, 0] = other
            ends[new, 1] = link
            if last == -1:
                ends[new, 0] = link
            else:
                links[last, 1] = link
            last = link
            count += 1
        link = links[link, 1]
    if last != -1:
        links[last, 1] = -1
    return count


@njit(cache=True, nogil=True)
def _join(regions: Ints, a: int, b: int, new: int) -> None:
    for c in range(2):
        regions[new, c] = min(regions[a, c], regions[b, c])
        regions[new, c + 2] = max(regions[a, c + 2], regions[b, c + 2])
    regions[new, 4] = regions[a, 4] + regions[b, 4]


@njit(cache=True, nogil=True)
def group(first: Ints, first_counts: Ints, pairs: Ints, split: int, strategy: Floats) -> Hierarchy:
    """Merge the two most alike neighbours again and again until one region is left.

    first: (n, 5) int32 boxes and sizes. first_counts: (n, D) int32, colour bins before column `split`, texture from
    there. pairs: (m, 2) neighbours; they connect all regions. strategy: 4 float64, the weights of colour, texture, size
    and fill. Of pairs that are equally alike, the one with the smallest number goes first, then smallest second number.
    """
    n, depth = first_counts.shape
    regions, counts = np.empty((2 * n - 1, 5), np.int32), np.empty((2 * n - 1, depth), np.int32)
    normal = np.empty((2 * n - 1, depth), np.int32)
    regions[:n], counts[:n] = first, first_counts
    for i in range(n):
        _normalise(counts[i], normal[i], split)
    weights = np.empty(5, np.float64)
    weights[:4], weights[4] = strategy, first[:, 4].sum()
    lists, neighbours = _link(pairs, n), np.empty(n, np.int32)
    heap, size = np.empty((4 * len(pairs) + 16, 3), np.float64), 0
    for a, b in pairs:
        heap = _push(heap, size, _compare((regions[a], regions[b]), (normal[a], normal[b]), split, weights), a, b)
        size += 1
    merges, alike = np.empty((n - 1, 2), np.int32), np.empty((n - 1, 3), np.float64)
    for new in range(n, 2 * n - 1):
        while True:
            _pop(heap, size)
            size -= 1
            a, b = int(heap[size, 1]), int(heap[size, 2])
            if lists[2][a] == a and lists[2][b] == b:
                break
        step = new - n
        merges[step, 0], merges[step, 1], alike[step, 0] = a, b, heap[size, 0]
        alike[step, 1] = _common(normal[a, :split], normal[b, :split])
        alike[step, 2] = _common(normal[a, split:], normal[b, split:])
        _join(regions, a, b, new)
        counts[new] = counts[a] + counts[b]
        _normalise(counts[new], normal[new], split)
        for i in range(_join_lists(lists, merges[step], new, neighbours)):
            other = neighbours[i]
            both = (regions[new], regions[other]), (normal[new], normal[other])
            heap = _push(heap, size, _compare(both[0], both[1], split, weights), new, other)
            size += 1
    return Hierarchy(merges, alike, regions, counts)
