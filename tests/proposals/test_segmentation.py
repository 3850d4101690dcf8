"""Compare the segmentation with Felzenszwalb and Huttenlocher's algorithm, written down plainly with sets of pixels."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from proposals.colour import smooth_colours
from proposals.segmentation import MAX_WEIGHT, edge_weights, segment, sort_edges
from tests.proposals.scenes import draw_blocks

SIDES = ((0, 1), (1, 0), (1, 1), (1, -1))  # right, below, below right, below left


def plain_edges(colours: np.ndarray) -> dict[int, tuple[int, tuple[int, int], tuple[int, int]]]:
    """Return edge number -> (distance of colours in whole eighths of a grey level, pixel, neighbour)."""
    height, width = colours.shape[:2]
    edges = {}
    for y, x, side in itertools.product(range(height), range(width), range(4)):
        v, u = y + SIDES[side][0], x + SIDES[side][1]
        if 0 <= v < height and 0 <= u < width:
            distance = math.dist(colours[y, x].tolist(), colours[v, u].tolist())
            edges[4 * (y * width + x) + side] = (math.floor(distance / 128 * 8 + 0.5), (y, x), (v, u))
    return edges


def plain_segmentation(colours: np.ndarray, k: float, min_size: int) -> set[frozenset[tuple[int, int]]]:
    """Return the components as sets of pixels (section 3.1 of the paper); edges in the order of weight, number."""
    edges = sorted((weight, number, a, b) for number, (weight, a, b) in plain_edges(colours).items())
    height, width = colours.shape[:2]
    component = {(y, x): frozenset([(y, x)]) for y in range(height) for x in range(width)}
    internal = dict.fromkeys(component.values(), 0.0)

    def join(a: frozenset[tuple[int, int]], b: frozenset[tuple[int, int]], weight: float) -> None:
        both = a | b
        internal[both] = weight
        component.update(dict.fromkeys(both, both))

    for weight, _, p, q in edges:
        a, b = component[p], component[q]
        if a is not b and weight <= min(internal[a] + 8 * k / len(a), internal[b] + 8 * k / len(b)):
            join(a, b, weight)
    for weight, _, p, q in edges:
        a, b = component[p], component[q]
        if a is not b and min(len(a), len(b)) < min_size:
            join(a, b, weight)
    return set(component.values())


def run(colours: np.ndarray, k: float, min_size: int) -> np.ndarray:
    weights = edge_weights(colours)
    return segment(weights, sort_edges(weights), colours.shape[:2], k, min_size)


def partition(labels: np.ndarray) -> set[frozenset[tuple[int, int]]]:
    return {frozenset(map(tuple, np.argwhere(labels == label).tolist())) for label in np.unique(labels)}


@pytest.mark.parametrize(("k", "min_size"), [(8.0, 1), (60.0, 1), (60.0, 12), (400.0, 5)])
@pytest.mark.parametrize("shape", [(1, 1), (1, 17), (17, 1), (11, 19), (23, 14)])
def test_it_finds_the_components_of_the_paper(shape: tuple[int, int], k: float, min_size: int) -> None:
    for seed in range(4):
        image = draw_blocks(np.random.default_rng(seed), *shape)
        _, smooth = smooth_colours(image, "lab", 0.6)
        labels = run(smooth, k, min_size)
        assert labels.dtype == np.int32
        assert partition(labels) == plain_segmentation(smooth, k, min_size)


def test_the_cases_have_something_to_find() -> None:
    image = draw_blocks(np.random.default_rng(0), 23, 14)
    _, smooth = smooth_colours(image, "lab", 0.6)
    counts = [run(smooth, k, size).max() + 1 for k, size in ((8.0, 1), (60.0, 1), (60.0, 12))]
    assert 1 < counts[2] < counts[1] < counts[0] < 23 * 14


def test_labels_are_numbered_by_first_pixels() -> None:
    image = draw_blocks(np.random.default_rng(5), 20, 31)
    _, smooth = smooth_colours(image, "hsv", 0.6)
    labels = run(smooth, 30.0, 4)
    values, first = np.unique(labels, return_index=True)
    assert values.tolist() == list(range(labels.max() + 1))
    assert (np.diff(first) > 0).all()
    assert np.bincount(labels.ravel()).min() >= 4


def test_weights_are_distances_in_eighths_of_a_level() -> None:
    colours = np.random.default_rng(2).integers(0, 255 * 128 + 1, (7, 5, 3)).astype(np.uint16)
    colours[0, 0], colours[0, 1] = 0, 255 * 128  # the largest distance there is
    weights = edge_weights(colours).ravel()
    edges = plain_edges(colours)
    assert weights[0] == edges[0][0] == 3533 < MAX_WEIGHT
    outside = [number for number in range(weights.size) if number not in edges]
    assert (weights[outside] == MAX_WEIGHT).all()
    assert {number: int(weights[number]) for number in edges} == {n: weight for n, (weight, _, _) in edges.items()}


def test_edges_are_sorted_by_weight_then_number() -> None:
    weights = np.random.default_rng(3).integers(0, 6, (60, 4)).astype(np.uint16)
    weights[::7, 2] = MAX_WEIGHT
    flat = weights.ravel().tolist()
    expected = sorted((n for n in range(240) if flat[n] < MAX_WEIGHT), key=lambda n: (flat[n], n))
    assert sort_edges(weights).tolist() == expected


def test_an_even_image_is_one_region_and_two_colours_are_two() -> None:
    colours = np.full((9, 16, 3), 90 * 128, np.uint16)
    assert (run(colours, 60.0, 1) == 0).all()
    colours[:, 6:] = 200 * 128
    assert np.array_equal(run(colours, 60.0, 1), np.where(np.arange(16) < 6, 0, 1)[None].repeat(9, axis=0))
