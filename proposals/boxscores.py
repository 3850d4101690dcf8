"""Score boxes by the contours that lie wholly inside, and move them to where they score best.

This is section 3.2 of Zitnick and Dollar (ECCV 2014), with the constants of the authors' code. Boxes here are y1, x1,
y2, x2 in whole pixels, y2 and x2 exclusive.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .edgegroups import MIN_STRENGTH, EdgeGroups, Ints, Singles

Floats = NDArray[np.float64]

KAPPA = 1.5  # the power of a box's half perimeter that its score is divided by
MIN_SCORE = 0.01
FAINT = 0.05  # paths of a lower affinity are not followed


class EdgeSums(NamedTuple):
    """Hold what makes scoring fast.

    groups, strengths: (H + 1, W + 1) float64, sums over all pixels above and to the left: of groups' strengths, each at
    the place of its group, and of edge strengths. rows: the groups along every row, run by run, one row after the
    other; row_index: (H, W), the run that a pixel belongs to. columns, column_index: the same for columns.
    """

    groups: Floats
    strengths: Floats
    rows: Ints
    row_index: Ints
    columns: Ints
    column_index: Ints


class Scratch(NamedTuple):
    """Hold the memory of one thread: per group the last box that reached it, its weight there and whether it waits in
    the queue; the groups that a box reached, in order; the queue; and the number of boxes so far."""

    stamps: Ints
    weights: Singles
    queued: NDArray[np.bool_]
    order: Ints
    queue: Ints
    counter: Ints


@njit(cache=True, nogil=True)
def add_up(values: Floats) -> Floats:
    """Return (H + 1, W + 1) sums of (H, W) values above and to the left."""
    height, width = values.shape
    sums = np.zeros((height + 1, width + 1), np.float64)
    for y in range(height):
        row = 0.0
        for x in range(width):
            row += values[y, x]
            sums[y + 1, x + 1] = sums[y, x + 1] + row
    return sums


@njit(cache=True, nogil=True)
def find_runs(labels: Ints) -> tuple[Ints, Ints]:
    """Return the labels of all runs along the rows of (H, W) labels, and (H, W) the run that each pixel belongs to."""
    height, width = labels.shape
    runs, index = np.empty(labels.size, np.int32), np.empty((height, width), np.int32)
    count = 0
    for y in range(height):
        for x in range(width):
            if x == 0 or labels[y, x] != labels[y, x - 1]:
                runs[count] = labels[y, x]
                count += 1
            index[y, x] = count - 1
    return runs[:count].copy(), index


@njit(cache=True, nogil=True)
def sum_edges(groups: EdgeGroups, strength: Singles) -> EdgeSums:
    """Return the sums of an image's groups and edges."""
    at_places = np.zeros(strength.shape, np.float64)
    for label in range(1, len(groups.strengths)):
        at_places[groups.places[label, 0], groups.places[label, 1]] = groups.strengths[label]
    edges = np.where(strength > MIN_STRENGTH, strength, np.float32(0)).astype(np.float64)
    rows, row_index = find_runs(groups.labels)
    columns, column_index = find_runs(np.ascontiguousarray(groups.labels.T))
    return EdgeSums(add_up(at_places), add_up(edges), rows, row_index, columns, np.ascontiguousarray(column_index.T))


@njit(cache=True, nogil=True)
def make_scratch(groups: EdgeGroups) -> Scratch:
    """Return working memory for scoring boxes with these groups."""
    count = len(groups.strengths)
    return Scratch(
        np.zeros(count, np.int32),
        np.zeros(count, np.float32),
        np.zeros(count, np.bool_),
        np.zeros(count, np.int32),
        np.zeros(count, np.int32),
        np.zeros(1, np.int32),
    )


@njit(cache=True, nogil=True, inline="always")
def _inside(sums: Floats, y1: int, x1: int, y2: int, x2: int) -> float:
    return float(sums[y2, x2] - sums[y1, x2] - sums[y2, x1] + sums[y1, x1])


@njit(cache=True, nogil=True)
def _list_crossing(runs: Ints, span: tuple[int, int], scratch: Scratch, count: int) -> int:
    """Add the groups of a span of runs, which cross the border of a box, to the order; return its new length."""
    stamp = scratch.counter[0]
    for run in range(span[0], span[1] + 1):
        group = runs[run]
        if group > 0 and scratch.stamps[group] != stamp:
            scratch.stamps[group], scratch.weights[group] = stamp, 1
            scratch.order[count] = group
            count += 1
    return count


@njit(cache=True, nogil=True)
def _follow_paths(groups: EdgeGroups, box: Ints, scratch: Scratch, count: int) -> int:
    """Give every group in the box that a path leads to the largest product of affinities from a crossing one.

    Returns how many groups are in the order: the `count` that cross the border, then those that were reached.
    """
    stamp, queue = scratch.counter[0], scratch.queue
    queue[:count] = scratch.order[:count]
    for i in range(count):
        scratch.queued[queue[i]] = True
    first, waiting = 0, count
    while waiting > 0:
        group = queue[first]
        first = first + 1 if first + 1 < len(queue) else 0
        waiting -= 1
        scratch.queued[group] = False
        for k in range(groups.starts[group], groups.starts[group + 1]):
            other = groups.neighbours[k]
            reached = scratch.weights[group] * groups.affinities[k]
            if reached < FAINT:
                continue
            if scratch.stamps[other] == stamp:
                if reached <= scratch.weights[other]:
                    continue
            elif not _holds(groups, box, other):
                continue
            else:
                scratch.stamps[other], scratch.order[count] = stamp, other
                count += 1
            scratch.weights[other] = reached
            if not scratch.queued[other]:
                scratch.queued[other] = True
                queue[(first + waiting) % len(queue)] = other
                waiting += 1
    return count


@njit(cache=True, nogil=True, inline="always")
def _holds(groups: EdgeGroups, box: Ints, group: int) -> bool:
    y, x = groups.places[group, 0], groups.places[group, 1]
    return bool(box[0] <= y < box[2] and box[1] <= x < box[3])


@njit(cache=True, nogil=True)
def score_box(groups: EdgeGroups, sums: EdgeSums, box: Ints, scratch: Scratch, floor: float) -> float:
    """Return the score of a box (equations 2 to 4), 0 if it is not above `floor`.

    It is the strength of the groups inside, less what a path connects with the border, less the edges of the middle
    quarter, over a power of half the half perimeter, as in the authors' code.
    """
    y1, x1, y2, x2 = np.int64(box[0]), np.int64(box[1]), np.int64(box[2]), np.int64(box[3])
    half_height, half_width = (y2 - y1) // 2, (x2 - x1) // 2
    y, x = y1 + half_height // 2, x1 + half_width // 2
    total = _inside(sums.groups, y1, x1, y2, x2) - _inside(sums.strengths, y, x, y + half_height, x + half_width)
    norm = max(half_height + half_width, 1) ** -KAPPA
    if total * norm <= floor:
        return 0.0
    scratch.counter[0] += 1
    count = 0
    for row in (y1, y2 - 1):
        count = _list_crossing(sums.rows, (sums.row_index[row, x1], sums.row_index[row, x2 - 1]), scratch, count)
    for column in (x1, x2 - 1):
        span = (sums.column_index[y1, column], sums.column_index[y2 - 1, column])
        count = _list_crossing(sums.columns, span, scratch, count)
    total -= _removed(groups, box, scratch, (0, count))
    if total * norm <= floor:  # paths can only take more away
        return 0.0
    total -= _removed(groups, box, scratch, (count, _follow_paths(groups, box, scratch, count)))
    return total * norm if total * norm > floor else 0.0


@njit(cache=True, nogil=True, inline="always")
def _removed(groups: EdgeGroups, box: Ints, scratch: Scratch, span: tuple[int, int]) -> float:
    """Return what a span of the order takes away from the groups in a box."""
    total = 0.0
    for i in range(span[0], span[1]):
        group = scratch.order[i]
        if _holds(groups, box, group):
            total += scratch.weights[group] * groups.strengths[group]
    return total


@njit(cache=True, nogil=True)
def refine_box(groups: EdgeGroups, sums: EdgeSums, box: Ints, scratch: Scratch, shift: float) -> float:
    """Move the sides of a box, by ever smaller steps, to where it scores better; return its score (section 3.4).

    shift: the step that the search began with, relative to the sides of the box; a first move is half of it.
    """
    height, width = groups.labels.shape
    best = score_box(groups, sums, box, scratch, MIN_SCORE)
    if best == 0:
        return best
    y_step, x_step = int((box[2] - box[0]) * shift) // 2, int((box[3] - box[1]) * shift) // 2
    tried = box.copy()
    while y_step > 2 or x_step > 2:
        y_step, x_step = max(y_step, 1), max(x_step, 1)
        for side in (0, 2, 1, 3):
            outward = (-1 if side < 2 else 1) * (y_step if side % 2 == 0 else x_step)
            for move in (outward, -outward):
                tried[:] = box
                tried[side] = min(max(box[side] + move, 0), height if side % 2 == 0 else width)
                if tried[side] == box[side] or tried[0] >= tried[2] or tried[1] >= tried[3]:
                    continue
                score = score_box(groups, sums, tried, scratch, best)
                if score > best:
                    best = score
                    box[:] = tried
                    break
        y_step, x_step = y_step // 2, x_step // 2
    return best


@njit(cache=True, nogil=True)
def score_boxes(groups: EdgeGroups, sums: EdgeSums, boxes: Ints) -> Floats:
    """Return the scores of (N, 4) int32 boxes, (N,) float64."""
    scratch, scores = make_scratch(groups), np.zeros(len(boxes), np.float64)
    for i in range(len(boxes)):
        scores[i] = score_box(groups, sums, boxes[i], scratch, MIN_SCORE)
    return scores


@njit(cache=True, nogil=True)
def refine_boxes(groups: EdgeGroups, sums: EdgeSums, boxes: Ints, shift: float) -> Floats:
    """Refine (N, 4) int32 boxes in place; return their scores, (N,) float64."""
    scratch, scores = make_scratch(groups), np.zeros(len(boxes), np.float64)
    for i in range(len(boxes)):
        scores[i] = refine_box(groups, sums, boxes[i], scratch, shift)
    return scores
