"""Score boxes by the contours that lie wholly inside, and move them to where they score best.

This is section 3.2 of Zitnick and Dollar (ECCV 2014), with the constants of the authors' code. Boxes here are y1, x1,
y2, x2 in whole pixels, y2 and x2 exclusive.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .edgegroups import MIN_STRENGTH, Counts, EdgeGroups, Ints, Singles

Floats = NDArray[np.float64]
Box = tuple[int, int, int, int]

KAPPA = 1.5  # the power of a box's half perimeter that its score is divided by
MIN_SCORE = 0.01
FAINT = 0.05  # paths of a lower affinity are not followed


# what is kept of a group while a box is scored, in 32 bytes: paths jump about, and this is one access to memory
STATE = np.dtype(
    [
        ("y", np.int32),  # the place of the group, and the span of its neighbours
        ("x", np.int32),
        ("start", np.uint32),
        ("end", np.uint32),
        ("strength", np.float32),
        ("weight", np.float32),  # of the best path from the border so far, 1 if the group crosses it
        ("stamp", np.int32),  # the last box that reached the group
        ("queued", np.int32),  # whether the group waits in a queue
    ],
    align=True,
)


class EdgeSums(NamedTuple):
    """Hold what makes scoring fast.

    groups, strengths: (H + 1, W + 1) float64, sums over all pixels above and to the left: of groups' strengths, each at
    the place of its group, and of edge strengths. rows: the groups along every row, run by run, one row after the
    other; row_index: (H, W), the run that a pixel belongs to. columns, column_index: the same for columns.
    """

    groups: Floats
    strengths: Floats
    rows: Counts
    row_index: Ints
    columns: Counts
    column_index: Ints


class Scratch(NamedTuple):
    """Hold the memory of one thread.

    states: (G + 1,) STATE of every group. queue, later: groups whose neighbours are to be visited, now and in the next
    round. counters: the number of boxes so far, and that of groups in the queue.
    """

    states: NDArray[np.void]
    queue: Counts
    later: Counts
    counters: Ints


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
def find_runs(labels: Ints) -> tuple[Counts, Ints]:
    """Return the labels of all runs along the rows of (H, W) labels, and (H, W) the run that each pixel belongs to."""
    height, width = labels.shape
    runs, index = np.empty(labels.size, np.uint32), np.empty((height, width), np.int32)
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
    states = np.zeros(count, STATE)
    for group in range(count):
        state = states[group]
        state.y, state.x = groups.places[group, 0], groups.places[group, 1]
        state.start, state.end = groups.starts[group], groups.starts[group + 1]
        state.strength = groups.strengths[group]
    return Scratch(states, np.zeros(count, np.uint32), np.zeros(count, np.uint32), np.zeros(2, np.int32))


@njit(cache=True, nogil=True, inline="always")
def _inside(sums: Floats, y1: int, x1: int, y2: int, x2: int) -> float:
    return float(sums[y2, x2] - sums[y1, x2] - sums[y2, x1] + sums[y1, x1])


@njit(cache=True, nogil=True)
def _remove_crossing(runs: Counts, span: tuple[int, int], box: Box, scratch: Scratch) -> float:
    """Queue the groups of a span of runs, which cross the border of a box; return the strength of those in it."""
    stamp, count, removed = scratch.counters[0], scratch.counters[1], 0.0
    for run in range(span[0], span[1] + 1):
        group = runs[run]
        if group == 0:
            continue
        state = scratch.states[group]
        if state.stamp != stamp:
            state.stamp, state.weight, state.queued = stamp, np.float32(1), 1
            scratch.queue[count] = group
            count += 1
            if box[0] <= state.y < box[2] and box[1] <= state.x < box[3]:
                removed += state.strength
    scratch.counters[1] = count
    return removed


@njit(cache=True, nogil=True)
def _follow_paths(groups: EdgeGroups, box: Box, scratch: Scratch, total: float, least: float) -> float:
    """Return what is left of a total when paths from the crossing groups have taken their share of all in the box.

    The weight of a path is the product of its affinities; a group loses its strength times that of the best path to
    it. Ends as soon as no more than `least` is left, since the rest can only take more away.
    """
    states, queue, later = scratch.states, scratch.queue, scratch.later
    stamp, count = scratch.counters[0], scratch.counters[1]
    while count > 0:
        found = 0
        for i in range(count):
            state = states[queue[i]]
            state.queued = 0
            for k in range(state.start, state.end):
                reached = state.weight * groups.affinities[k]
                if reached < FAINT:  # the most alike come first
                    break
                other = states[groups.neighbours[k]]
                before = other.weight if other.stamp == stamp else np.float32(0)
                inside = box[0] <= other.y < box[2] and box[1] <= other.x < box[3]
                if reached <= before or not inside:  # a group that crosses has 1 from the start
                    continue
                total -= (reached - before) * other.strength
                if total <= least:
                    return total
                if other.stamp != stamp or other.queued == 0:
                    later[found] = groups.neighbours[k]
                    found += 1
                other.stamp, other.weight, other.queued = stamp, reached, 1
        queue, later, count = later, queue, found
    return total


@njit(cache=True, nogil=True)
def score_box(groups: EdgeGroups, sums: EdgeSums, box: Ints, scratch: Scratch, floor: float) -> float:
    """Return the score of a box (equations 2 to 4), 0 if it is not above `floor`.

    It is the strength of the groups inside, less what a path connects with the border, less the edges of the middle
    quarter, over a power of half the half perimeter. As in the authors' code, sides end at the last pixel.
    """
    y1, x1, y2, x2 = np.int64(box[0]), np.int64(box[1]), np.int64(box[2]), np.int64(box[3])
    half_height, half_width = (y2 - y1 - 1) // 2, (x2 - x1 - 1) // 2
    y, x = y1 + half_height // 2, x1 + half_width // 2
    middle = _inside(sums.strengths, y, x, y + half_height + 1, x + half_width + 1)
    total = _inside(sums.groups, y1, x1, y2, x2) - middle
    size = max(half_height + half_width, 1) ** KAPPA
    least = floor * size
    if total <= least:
        return 0.0
    scratch.counters[0] += 1
    scratch.counters[1] = 0
    corners = (y1, x1, y2, x2)
    for row in (y1, y2 - 1):
        span = (sums.row_index[row, x1], sums.row_index[row, x2 - 1])
        total -= _remove_crossing(sums.rows, span, corners, scratch)
    for column in (x1, x2 - 1):
        span = (sums.column_index[y1, column], sums.column_index[y2 - 1, column])
        total -= _remove_crossing(sums.columns, span, corners, scratch)
    if total > least:  # paths can only take more away
        total = _follow_paths(groups, corners, scratch, total, least)
    score = float(total / size)
    return score if total > least and score > floor else 0.0


@njit(cache=True, nogil=True)
def refine_box(groups: EdgeGroups, sums: EdgeSums, box: Ints, scratch: Scratch, best: float, shift: float) -> float:
    """Move the sides of a box, by ever smaller steps, to where it scores better; return its score (section 3.4).

    best: its score so far; a box of none, 0, stays. shift: the step that the search began with, relative to the sides
    of the box; a first move is half of it.
    """
    height, width = groups.labels.shape
    if best == 0:
        return best
    y_step, x_step = int((box[2] - box[0] - 1) * shift) // 2, int((box[3] - box[1] - 1) * shift) // 2
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
def refine_boxes(groups: EdgeGroups, sums: EdgeSums, boxes: Ints, scores: Floats, shift: float) -> None:
    """Refine (N, 4) int32 boxes and their scores, (N,) float64, in place."""
    scratch = make_scratch(groups)
    for i in range(len(boxes)):
        scores[i] = refine_box(groups, sums, boxes[i], scratch, scores[i], shift)
