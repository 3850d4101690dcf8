"""Compare grouping with a search through all pairs at every step, on histograms counted with numpy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from proposals.grouping import Hierarchy, count_bins, find_neighbours, group, measure_regions
from tests.proposals.scenes import cross_diagonals, draw_labels

ONE = 2**20  # parts that a histogram is divided into
SPLIT, COLUMNS = 6, 14
STRATEGIES = ((1, 1, 1, 1), (0, 1, 1, 1), (0, 0, 1, 1), (1, 0, 0, 0), (0.5, 0, 0, 2))

Pixels = frozenset[tuple[int, int]]


def random_bins(generator: np.random.Generator, labels: np.ndarray) -> np.ndarray:
    """Return (H, W, 3) bins: two columns of colour and one of texture per pixel, alike within a region."""
    height, width = labels.shape
    base = generator.integers(0, 6, (labels.max() + 1, 3))
    noise = generator.integers(0, 3, (height, width, 3))
    values = base[labels] + noise
    return np.stack([values[..., 0] % 3, 3 + values[..., 1] % 3, SPLIT + values[..., 2]], axis=-1).astype(np.uint16)


def neighbours(a: Pixels, b: Pixels) -> bool:
    return any((y + dy, x + dx) in b for y, x in a for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0)))


def histogram(bins: np.ndarray, pixels: Pixels) -> list[int]:
    counts = [0] * COLUMNS
    for y, x in pixels:
        for column in bins[y, x].tolist():
            counts[column] += 1
    return counts


def box(pixels: Pixels) -> tuple[int, int, int, int]:
    ys, xs = zip(*pixels, strict=True)
    return min(xs), min(ys), max(xs) + 1, max(ys) + 1


def common(a: list[int], b: list[int]) -> float:
    """Return the intersection of two histograms whose values are first rounded down to parts of 2 ** 20."""
    a, b = ([value * ONE // max(sum(counts), 1) for value in counts] for counts in (a, b))
    return sum(map(min, a, b)) / ONE


def similarity(bins: np.ndarray, a: Pixels, b: Pixels, strategy: tuple[float, ...]) -> float:
    """Return equation 6 of the paper: colour, texture, size and fill, each weighed."""
    whole = bins.shape[0] * bins.shape[1]
    first, second = histogram(bins, a), histogram(bins, b)
    x1, y1, x2, y2 = box(a | b)
    parts = (
        common(first[:SPLIT], second[:SPLIT]),
        common(first[SPLIT:], second[SPLIT:]),
        1 - (len(a) + len(b)) / whole,
        1 - ((x2 - x1) * (y2 - y1) - len(a) - len(b)) / whole,
    )
    return sum(weight * part for weight, part in zip(strategy, parts, strict=True))


def plain_groups(labels: np.ndarray, bins: np.ndarray, strategy: tuple[float, ...]) -> list[tuple[int, int, Pixels]]:
    """Return the merges as (first, second, pixels of both): always the most alike pair, then the smallest numbers."""
    regions = {n: frozenset(map(tuple, np.argwhere(labels == n).tolist())) for n in range(labels.max() + 1)}
    merges, total = [], len(regions)
    while len(regions) > 1:
        pairs = [p for p in itertools.combinations(sorted(regions), 2) if neighbours(regions[p[0]], regions[p[1]])]
        # rounded, since sums of the same numbers in another order differ in the last digit
        scores = {(a, b): round(similarity(bins, regions[a], regions[b], strategy), 12) for a, b in pairs}
        a, b = min(pairs, key=lambda pair: (-scores[pair], pair))
        both = regions.pop(a) | regions.pop(b)
        merges.append((a, b, both))
        regions[total + len(merges) - 1] = both
    return merges


def run(labels: np.ndarray, bins: np.ndarray, strategy: tuple[float, ...]) -> Hierarchy:
    regions, counts = measure_regions(labels), count_bins(labels, bins, COLUMNS)
    return group(regions, counts, find_neighbours(labels), SPLIT, np.array(strategy, np.float64))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("shape", [(7, 12), (13, 6), (1, 20), (9, 1)])
def test_it_merges_what_a_plain_search_merges(shape: tuple[int, int], strategy: tuple[float, ...]) -> None:
    for seed in range(3):
        generator = np.random.default_rng(seed)
        labels = draw_labels(generator, *shape, seeds=12)
        bins = random_bins(generator, labels)
        tree, expected = run(labels, bins, strategy), plain_groups(labels, bins, strategy)
        assert tree.merges.tolist() == [[a, b] for a, b, _ in expected]
        n = labels.max() + 1
        assert tree.regions[n:].tolist() == [[*box(pixels), len(pixels)] for _, _, pixels in expected]
        assert tree.counts[n:].tolist() == [histogram(bins, pixels) for _, _, pixels in expected]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_similarities_are_those_of_the_paper(strategy: tuple[float, ...]) -> None:
    generator = np.random.default_rng(11)
    labels = draw_labels(generator, 8, 11, seeds=9)
    bins = random_bins(generator, labels)
    tree = run(labels, bins, strategy)
    pixels = [frozenset(map(tuple, np.argwhere(labels == n).tolist())) for n in range(labels.max() + 1)]
    for (a, b), alike in zip(tree.merges.tolist(), tree.alike.tolist(), strict=True):
        first, second = histogram(bins, pixels[a]), histogram(bins, pixels[b])
        colour, texture = common(first[:SPLIT], second[:SPLIT]), common(first[SPLIT:], second[SPLIT:])
        assert alike == pytest.approx([similarity(bins, pixels[a], pixels[b], strategy), colour, texture], abs=1e-12)
        pixels.append(pixels[a] | pixels[b])


def test_a_large_hierarchy_adds_up() -> None:
    generator = np.random.default_rng(4)
    labels = draw_labels(generator, 90, 140, seeds=300)
    bins = random_bins(generator, labels)
    tree = run(labels, bins, STRATEGIES[0])
    n = labels.max() + 1
    assert len(tree.regions) == len(tree.counts) == 2 * n - 1
    assert sorted(tree.merges.ravel().tolist()) == list(range(2 * n - 2)), "each region but the last is merged once"
    assert (tree.merges < np.arange(n, 2 * n - 1)[:, None]).all()
    assert np.array_equal(tree.counts[n:], tree.counts[tree.merges[:, 0]] + tree.counts[tree.merges[:, 1]])
    assert tree.regions[-1].tolist() == [0, 0, 140, 90, 140 * 90]
    masks = [labels == number for number in range(n)]
    for number, (x1, y1, x2, y2, size) in enumerate(tree.regions.tolist()):
        if number >= n:
            masks.append(masks[tree.merges[number - n, 0]] | masks[tree.merges[number - n, 1]])
        rows, columns = np.flatnonzero(masks[number].any(axis=1)), np.flatnonzero(masks[number].any(axis=0))
        assert (x1, y1, x2, y2) == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        assert size == masks[number].sum()


def test_histograms_count_the_pixels_of_each_region() -> None:
    generator = np.random.default_rng(8)
    labels = draw_labels(generator, 21, 34, seeds=15)
    bins = random_bins(generator, labels)
    expected = [np.bincount(bins[labels == n].ravel(), minlength=COLUMNS) for n in range(labels.max() + 1)]
    assert np.array_equal(count_bins(labels, bins, COLUMNS), expected)


def plain_neighbours(labels: np.ndarray) -> set[tuple[int, int]]:
    sides = [*zip(labels[:, :-1].ravel(), labels[:, 1:].ravel(), strict=True)]
    sides += [*zip(labels[:-1].ravel(), labels[1:].ravel(), strict=True)]
    return {(int(min(a, b)), int(max(a, b))) for a, b in sides if a != b}


@pytest.mark.parametrize(("shape", "seeds"), [((1, 1), 1), ((1, 30), 9), ((30, 1), 9), ((40, 71), 200), ((12, 9), 400)])
def test_neighbours_share_a_side(shape: tuple[int, int], seeds: int) -> None:
    labels = draw_labels(np.random.default_rng(6), *shape, seeds=seeds)
    pairs = [tuple(pair) for pair in find_neighbours(labels).tolist()]
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == plain_neighbours(labels)


def test_there_is_room_for_neighbours_that_no_plane_has() -> None:
    """Lines that cross at corners share a side with all others: far more pairs than three to a region."""
    labels = cross_diagonals(60, 90)
    expected = plain_neighbours(labels)
    assert len(expected) > 10 * (labels.max() + 1)
    assert {tuple(pair) for pair in find_neighbours(labels).tolist()} == expected
    tree = run(labels, random_bins(np.random.default_rng(1), labels), STRATEGIES[0])
    assert tree.regions[-1].tolist() == [0, 0, 90, 60, 5400]


def test_one_region_is_a_hierarchy_without_merges() -> None:
    labels = np.zeros((3, 5), np.int32)
    tree = run(labels, np.full((3, 5, 3), 2, np.uint16), STRATEGIES[0])
    assert tree.merges.shape == (0, 2)
    assert tree.alike.shape == (0, 3)
    assert tree.regions.tolist() == [[0, 0, 5, 3, 15]]
