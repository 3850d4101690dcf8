"""Compare the groups of edges with a plain definition of section 3.1 of the EdgeBoxes paper."""

from __future__ import annotations

import math
from collections import defaultdict

import cv2
import numpy as np
import pytest
from skimage import data

from proposals import edgegroups
from proposals.edgegroups import EdgeGroups, group_edges, trace_groups
from proposals.edges import find_edges


@pytest.fixture(scope="module")
def maps() -> tuple[np.ndarray, np.ndarray]:
    """Return strengths and directions of the edges of a small photo."""
    return find_edges(np.asarray(cv2.resize(data.chelsea(), (120, 80), interpolation=cv2.INTER_AREA)))


@pytest.fixture(scope="module")
def small(maps: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, EdgeGroups]:
    """Return the strengths and the groups."""
    return maps[0], group_edges(*maps)


def test_groups_are_connected_and_hold_every_edge_that_is_strong_enough(small: tuple[np.ndarray, EdgeGroups]) -> None:
    strength, groups = small
    inner = np.zeros(strength.shape, bool)
    inner[1:-1, 1:-1] = strength[1:-1, 1:-1] > edgegroups.MIN_STRENGTH
    assert not (groups.labels > 0)[~inner].any()
    count = len(groups.strengths) - 1
    assert np.unique(groups.labels).tolist() == list(range(count + 1))
    for group in range(1, count + 1):
        pixels = groups.labels == group
        assert cv2.connectedComponents(pixels.astype(np.uint8), connectivity=8)[0] == 2, "a group is one piece"
        assert groups.strengths[group] == pytest.approx(strength[pixels].sum(), rel=1e-4)
        assert groups.strengths[group] > edgegroups.MIN_GROUP
        assert groups.labels[tuple(groups.places[group])] == group
    # what is left without group touches none: it is too weak together and has no neighbour
    left = inner & (groups.labels == 0)
    touched = cv2.dilate((groups.labels > 0).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    assert not (left & touched).any()


def test_affinities_are_those_of_equation_1(
    maps: tuple[np.ndarray, np.ndarray], small: tuple[np.ndarray, EdgeGroups]
) -> None:
    (strength, direction), (_, groups) = maps, small
    means = {}
    for group in range(1, len(groups.strengths)):
        y, x = np.nonzero(groups.labels == group)
        weight = strength[y, x].astype(np.float64)
        double = 2 * direction[y, x].astype(np.float64)
        tangent = math.atan2((weight * np.sin(double)).sum(), (weight * np.cos(double)).sum()) / 2 + math.pi / 2
        means[group] = (weight @ y / weight.sum(), weight @ x / weight.sum(), tangent)
    near = defaultdict(set)
    ys, xs = np.nonzero(groups.labels)
    for y, x in zip(ys.tolist(), xs.tolist(), strict=True):
        around = groups.labels[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3]
        near[int(groups.labels[y, x])] |= set(around.ravel().tolist()) - {0, int(groups.labels[y, x])}
    for group, (y, x, tangent) in means.items():
        span = slice(groups.starts[group], groups.starts[group + 1])
        assert sorted(groups.neighbours[span].tolist()) == sorted(near[group])
        assert (np.diff(groups.affinities[span]) <= 0).all(), "the most alike first"
        for other, got in zip(groups.neighbours[span].tolist(), groups.affinities[span].tolist(), strict=True):
            v, u, turned = means[other]
            line = math.atan2(y - v, x - u)
            assert got == pytest.approx(abs(math.cos(tangent - line) * math.cos(turned - line)) ** 2, abs=1e-3)


def plain_turn(a: np.float32, b: np.float32) -> float:
    """Return the angle between two directions, in half turns."""
    v = abs(float(a - b)) / math.pi
    return min(v, 1 - v)


def plain_groups(strength: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Return (H, W) labels by the words of section 3.1: grow groups of least turn, then give the weak ones away."""
    height, width = strength.shape
    inner = [(y, x) for x in range(1, width - 1) for y in range(1, height - 1)]  # column by column
    edges = [place for place in inner if strength[place] > edgegroups.MIN_STRENGTH]
    free, groups = set(edges), []

    def around(y: int, x: int) -> list[tuple[int, int]]:
        return [(v, u) for u in (x - 1, x, x + 1) for v in (y - 1, y, y + 1) if (v, u) != (y, x)]

    for start in edges:
        if start not in free:
            continue
        members, seen, turned, place = [], {}, 0.0, start
        while turned < edgegroups.MAX_TURN:
            members.append(place)
            free.remove(place)
            for near in around(*place):
                if near in free and near not in seen:
                    seen[near] = plain_turn(direction[near], direction[place])
            waiting = [near for near in seen if near in free]
            if not waiting:
                break
            place = min(waiting, key=seen.__getitem__)
            turned += seen[place]
        groups.append(members)
    strong = [members for members in groups if sum(float(strength[p]) for p in members) > edgegroups.MIN_GROUP]
    owner = {place: number for number, members in enumerate(strong, 1) for place in members}
    left = [place for place in edges if place not in owner]
    while left:
        for place in left:
            near = [other for other in around(*place) if other in owner]
            if near:
                owner[place] = owner[min(near, key=lambda other: plain_turn(direction[other], direction[place]))]
        if all(place not in owner for place in left):
            break
        left = [place for place in left if place not in owner]
    labels = np.zeros(strength.shape, np.int32)
    for place, number in owner.items():
        labels[place] = number
    return labels


@pytest.mark.parametrize("seed", range(12))
def test_groups_are_those_of_the_definition(seed: int) -> None:
    generator = np.random.default_rng(seed)
    strength = generator.random((17, 26), np.float32) * (generator.random((17, 26)) < 0.1 + 0.06 * seed)
    direction = (generator.random((17, 26)) * (math.pi if seed % 2 else 0.6)).astype(np.float32)
    groups = group_edges(strength, direction)
    assert groups.labels.max() > 3
    assert np.array_equal(groups.labels, plain_groups(strength, direction))


def test_groups_of_a_photo_are_those_of_the_definition(maps: tuple[np.ndarray, np.ndarray]) -> None:
    assert np.array_equal(group_edges(*maps).labels, plain_groups(*maps))


def test_a_group_ends_where_it_has_turned_too_much() -> None:
    """A line that turns by 0.3 half turns twice is cut at the second place, where the sum is beyond 0.5."""
    strength, direction = np.zeros((20, 60), np.float32), np.zeros((20, 60), np.float32)
    strength[9, 5:50] = 1
    direction[9, 20:35], direction[9, 35:50] = 0.3 * math.pi, 0.6 * math.pi
    labels, count = trace_groups(strength, direction)
    assert count == 3
    assert labels[9].tolist() == [0] * 5 + [1] * 30 + [2] * 15 + [0] * 10
    assert labels[:9].max() == labels[10:].max() == 0
