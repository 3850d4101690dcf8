"""Check the paper's and the released code's projections against known vectors and, for every box, a search.

The search is written in the words of each rule, not in its formula. All numbers are binary fractions, so that both
sides compute without rounding.
"""

from __future__ import annotations

from itertools import combinations, cycle

import pytest
import torch

from detector.boxes import PROJECTIONS, project
from detector.structures import FeatureMap

SHRINK = 6.5
RULES = ("paper", "code")
STRIDES, OFFSETS = (16, 32), (20.0, 15.0, 0.0)
# (height, width) of an image, (scale in y, scale in x): upright and lying, enlarged and reduced unequally.
IMAGES = [((47, 83), (1.0, 1.0)), ((70, 37), (1.5, 1.75)), ((60, 97), (0.75, 0.5))]


def side(first: int, last: int, cells: int, width: int = 0) -> tuple[int, int]:
    """Project the inclusive pixels of one side on ZF-5's map with `code`: inclusive cells."""
    feature_map = FeatureMap(torch.zeros(1, 9, cells), 16, 20.0, (1.0, 1.0))
    x1, _, x2, _ = project(torch.tensor([[first, 30.0, last + 1, 90.0]]), feature_map, "code")[0].tolist()
    return x1, x2 - 1


@pytest.mark.parametrize(
    ("pixels", "count", "cells"),
    [
        ((0, 223), 13, (0, 12)),
        ((0, 15), 13, (0, 0)),
        ((50, 99), 13, (2, 5)),
        ((100, 110), 13, (5, 5)),
        ((200, 223), 13, (12, 12)),
        ((0, 687), 42, (0, 41)),
        ((300, 420), 42, (18, 25)),
        ((333, 340), 42, (20, 20)),
    ],
)
def test_the_released_code_on_zf5(pixels: tuple[int, int], count: int, cells: tuple[int, int]) -> None:
    """Hold the vectors in x; a map 9 cells high keeps the sides apart, and y has a window of its own."""
    assert side(*pixels, count) == cells


def test_sides_are_projected_apart() -> None:
    """Take the vectors (50, 99) in x and (100, 110) in y, then the other way round."""
    feature_map = FeatureMap(torch.zeros(1, 9, 13), 16, 20.0, (1.0, 1.0))
    boxes = torch.tensor([[50.0, 100.0, 100.0, 111.0], [100.0, 50.0, 111.0, 100.0]])
    assert project(boxes, feature_map, "code").tolist() == [[2, 5, 6, 6], [5, 2, 6, 6]]


@pytest.mark.parametrize(
    ("pixels", "cells"),
    # Offset 0, stride 16: x' = floor(x / 16) + 1 and ceil(x / 16) - 1, worked out by hand.
    [((0, 223), (1, 13)), ((1, 223), (1, 13)), ((16, 64), (2, 3)), ((15, 65), (1, 4)), ((50, 99), (4, 6))],
)
def test_the_formula_of_the_paper(pixels: tuple[int, int], cells: tuple[int, int]) -> None:
    feature_map = FeatureMap(torch.zeros(1, 9, 14), 16, 0.0, (1.0, 1.0))
    box = torch.tensor([[float(pixels[0]), 0.0, pixels[1] + 1.0, 99.0]])
    x1, _, x2, _ = project(box, feature_map, "paper")[0].tolist()
    assert (x1, x2 - 1) == cells


def test_an_offset_moves_the_boxes_of_the_paper() -> None:
    """Add the offset to a box: it falls on the cells that it had on a map whose cell 0 is centred on pixel 0."""
    some = torch.tensor([[3.0, 40.0, 90.0, 99.0], [16.0, 17.0, 130.0, 48.0]])
    there = project(some, FeatureMap(torch.zeros(1, 9, 14), 16, 0.0, (1.0, 1.0)), "paper")
    moved = project(some + 20, FeatureMap(torch.zeros(1, 9, 14), 16, 20.0, (1.0, 1.0)), "paper")
    assert torch.equal(there, moved)


def search_paper(first: float, last: float, centres: dict[int, float]) -> tuple[int, int]:
    """Take the cells strictly between two pixels, or else the one nearest to their middle, the later of two."""
    between = [cell for cell, centre in centres.items() if first < centre < last]
    if not between:
        middle = (first + last) / 2
        between = [min(centres, key=lambda cell: (abs(centres[cell] - middle), -cell))]
    return between[0], between[-1]


def search_code(first: float, last: float, centres: dict[int, float]) -> tuple[int, int]:
    """Take the cells nearest to the pixels moved inward; of two, the one further inward.

    The code counts cells from 1 and halves the sum of crossed ends as C does, towards zero.
    """
    low, high = first + SHRINK, last - SHRINK
    left = min(centres, key=lambda cell: (abs(centres[cell] - low), -cell))
    right = min(centres, key=lambda cell: (abs(centres[cell] - high), cell))
    if left > right:
        left = right = int((left + 1 + right + 1) / 2) - 1
    return left, right


def search(pair: tuple[int, int], scale: float, feature_map: FeatureMap, axis: int, rule: str) -> tuple[int, int]:
    """Project one side, axis 0 for y, by looking at every cell on the map and some on either side of it."""
    count, offset = feature_map.values.shape[1 + axis], feature_map.offsets[axis]
    centres = {cell: offset + feature_map.stride * cell for cell in range(-4, count + 4)}
    find = search_paper if rule == "paper" else search_code
    left, right = find(pair[0] * scale, pair[1] * scale - 1, centres)
    return min(max(left, 0), count - 1), min(max(right, 0), count - 1)


def map_of(size: tuple[int, int], scale: tuple[float, float], stride: int, offset: float) -> FeatureMap:
    """Return a map with as many cells as have their centres on the resized image, at least one."""
    cells = [max(1, int((side * s - 1 - offset) // stride) + 1) for side, s in zip(size, scale, strict=True)]
    return FeatureMap(torch.zeros(1, *cells), stride, offset, scale)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize(("size", "scale"), IMAGES)
def test_every_box_of_small_images(
    rule: str, stride: int, offset: float, size: tuple[int, int], scale: tuple[float, float]
) -> None:
    """Pair every interval in x with one in y and the other way round: the sides do not depend on each other."""
    feature_map = map_of(size, scale, stride, offset)
    down, across = (list(combinations(range(side + 1), 2)) for side in size)
    found_down = [search(pair, scale[0], feature_map, 0, rule) for pair in down]
    found_across = [search(pair, scale[1], feature_map, 1, rule) for pair in across]
    count = max(len(down), len(across))
    pairs = zip(cycle(zip(across, found_across, strict=True)), cycle(zip(down, found_down, strict=True)), strict=False)
    boxes, expected = [], []
    for _, ((x, cells_x), (y, cells_y)) in zip(range(count), pairs, strict=False):
        boxes.append((x[0], y[0], x[1], y[1]))
        expected.append((cells_x[0], cells_y[0], cells_x[1] + 1, cells_y[1] + 1))
    windows = project(torch.tensor(boxes, dtype=torch.float32), feature_map, rule)
    assert torch.equal(windows, torch.tensor(expected))
    height, width = feature_map.values.shape[1:]
    x1, y1, x2, y2 = windows.unbind(1)
    assert bool(((x1 >= 0) & (x1 < x2) & (x2 <= width) & (y1 >= 0) & (y1 < y2) & (y2 <= height)).all())


@pytest.mark.parametrize("rule", PROJECTIONS)
def test_far_and_degenerate_boxes_still_have_a_cell(rule: str) -> None:
    feature_map = FeatureMap(torch.zeros(1, 3, 5), 16, 20.0, (1.0, 1.0))
    some = torch.tensor([[-500.0, -90, -480, -80], [900, 700, 940, 710], [30, 9, 30.25, 9.25], [-90, -90, 900, 900]])
    found = project(some, feature_map, rule).tolist()
    assert found[:2] == [[0, 0, 1, 1], [4, 2, 5, 3]]
    assert found[2][2] - found[2][0] == found[2][3] - found[2][1] == 1
    assert found[3] == [0, 0, 5, 3]


def test_a_box_of_one_pixel_between_two_cells_goes_to_the_first() -> None:
    """Centres 20 and 36: pixel 28 moved inward crosses, left cell 1, right cell 0; the released code halves down."""
    assert side(28, 28, 13) == (0, 0)
    assert side(29, 29, 13) == (0, 0)
    feature_map = FeatureMap(torch.zeros(1, 9, 13), 16, 20.0, (1.0, 1.0))
    assert project(torch.tensor([[28.0, 0, 29, 80]]), feature_map, "paper")[0, 0] == 1
