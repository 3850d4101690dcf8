"""Compare EdgeBoxes with plain definitions of the paper's equations, and with OpenCV's where it is there."""

from __future__ import annotations

import heapq
import math
from collections import defaultdict

import cv2
import numpy as np
import pytest
import torch
from skimage import data
from torchvision.ops import box_iou

from proposals import boxscores, edgeboxes, edgegroups
from proposals.boxscores import (
    KAPPA,
    MIN_SCORE,
    find_runs,
    make_scratch,
    refine_boxes,
    score_box,
    score_boxes,
    sum_edges,
)
from proposals.edgeboxes import EdgeBoxes, find_boxes, make_windows
from proposals.edgegroups import EdgeGroups, group_edges, trace_groups
from proposals.edges import find_edges
from proposals.store import settings_key
from tests.contracts import check_proposer

has_edge_boxes = hasattr(getattr(cv2, "ximgproc", None), "createEdgeBoxes")


def photo(side: int) -> np.ndarray:
    """Return a photo of a cat, as wide as `side` and two thirds as high."""
    return np.asarray(cv2.resize(data.chelsea(), (side, side * 2 // 3), interpolation=cv2.INTER_AREA))


@pytest.fixture(scope="module")
def small() -> tuple[np.ndarray, EdgeGroups]:
    """Return edge strengths of a small photo and its groups."""
    strength, direction = find_edges(photo(120))
    return strength, group_edges(strength, direction)


def plain_score(strength: np.ndarray, groups: EdgeGroups, box: np.ndarray) -> float:
    """Return a box's score by equations 2 to 4: Dijkstra over all paths of groups, sums over all pixels."""
    y1, x1, y2, x2 = box.tolist()
    labels = groups.labels

    def inside(group: int) -> bool:
        y, x = groups.places[group].tolist()
        return y1 <= y < y2 and x1 <= x < x2

    border = np.concatenate([labels[y1, x1:x2], labels[y2 - 1, x1:x2], labels[y1:y2, x1], labels[y1:y2, x2 - 1]])
    best = {int(group): 1.0 for group in np.unique(border) if group > 0}
    queue = [(-1.0, group) for group in best]
    while queue:
        weight, group = heapq.heappop(queue)
        if -weight < best[group]:
            continue
        for k in range(groups.starts[group], groups.starts[group + 1]):
            other, reached = int(groups.neighbours[k]), -weight * float(groups.affinities[k])
            if reached >= boxscores.FAINT and reached > best.get(other, 0) and (other in best or inside(other)):
                best[other] = reached
                heapq.heappush(queue, (-reached, other))
    total = sum(
        float(groups.strengths[group]) * (1 - best.get(group, 0))
        for group in range(1, len(groups.strengths))
        if inside(group)
    )
    h, w = (y2 - y1) // 2, (x2 - x1) // 2
    y, x = y1 + h // 2, x1 + w // 2
    middle = strength[y : y + h, x : x + w]
    total -= float(middle[middle > edgegroups.MIN_STRENGTH].sum(dtype=np.float64))
    score = total / max(h + w, 1) ** KAPPA
    return score if score > MIN_SCORE else 0.0


def test_scores_are_those_of_the_definition(small: tuple[np.ndarray, EdgeGroups]) -> None:
    strength, groups = small
    windows = make_windows(strength.shape)
    assert len(windows) > 500
    scores = score_boxes(groups, sum_edges(groups, strength), windows)
    expected = np.array([plain_score(strength, groups, box) for box in windows])
    assert (expected > 0).sum() > 50
    assert scores == pytest.approx(expected, abs=1e-5)


def test_a_box_that_does_not_beat_the_floor_scores_nothing(small: tuple[np.ndarray, EdgeGroups]) -> None:
    strength, groups = small
    sums, scratch, windows = sum_edges(groups, strength), make_scratch(groups), make_windows(strength.shape)
    scores = score_boxes(groups, sums, windows)
    for box, score in zip(windows[scores > 0], scores[scores > 0], strict=True):
        assert score_box(groups, sums, box, scratch, score * 0.999) == score
        assert score_box(groups, sums, box, scratch, score) == 0


def test_refined_boxes_score_better_and_no_small_move_improves_them(small: tuple[np.ndarray, EdgeGroups]) -> None:
    strength, groups = small
    sums, windows = sum_edges(groups, strength), make_windows(strength.shape)
    before = score_boxes(groups, sums, windows)
    refined = windows.copy()
    after = refine_boxes(groups, sums, refined, 0.2)
    assert (after >= before).all()
    assert (after > before).sum() > 20
    assert np.array_equal(refined[before == 0], windows[before == 0])
    assert after == pytest.approx(score_boxes(groups, sums, refined), abs=1e-12)
    assert ((refined >= 0) & (refined <= [*strength.shape, *strength.shape])).all()


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


def test_affinities_are_those_of_equation_1(small: tuple[np.ndarray, EdgeGroups]) -> None:
    strength, groups = small
    _, direction = find_edges(photo(120))
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
        for other, got in zip(groups.neighbours[span].tolist(), groups.affinities[span].tolist(), strict=True):
            v, u, turned = means[other]
            line = math.atan2(y - v, x - u)
            assert got == pytest.approx(abs(math.cos(tangent - line) * math.cos(turned - line)) ** 2, abs=1e-3)


def test_a_group_ends_where_it_has_turned_too_much() -> None:
    """A line that turns by 0.3 half turns twice is cut at the second place, where the sum is beyond 0.5."""
    strength, direction = np.zeros((20, 60), np.float32), np.zeros((20, 60), np.float32)
    strength[9, 5:50] = 1
    direction[9, 20:35], direction[9, 35:50] = 0.3 * math.pi, 0.6 * math.pi
    labels, count = trace_groups(strength, direction)
    assert count == 3
    assert labels[9].tolist() == [0] * 5 + [1] * 30 + [2] * 15 + [0] * 10
    assert labels[:9].max() == labels[10:].max() == 0


def test_runs_are_the_groups_along_a_row() -> None:
    labels = np.random.default_rng(2).integers(0, 4, (9, 14)).astype(np.int32)
    runs, index = find_runs(labels)
    assert np.array_equal(runs[index], labels)
    for y in range(9):
        assert len(np.unique(index[y])) == 1 + (np.diff(labels[y]) != 0).sum()
    assert len(runs) == index.max() + 1


def test_windows_next_to_each_other_overlap_by_alpha() -> None:
    windows = make_windows((300, 420))
    sizes, counts = np.unique(windows[:, 2:] - windows[:, :2], axis=0, return_counts=True)
    assert len(sizes) > 30
    large = sizes[counts.argsort()[::-1]]
    for h, w in large[:6].tolist():
        kind = windows[(windows[:, 2] - windows[:, 0] == h) & (windows[:, 3] - windows[:, 1] == w)]
        row = torch.from_numpy(np.sort(np.unique(kind[:, 1])))
        step = int((row[1:] - row[:-1]).min())
        assert (w - step) / (w + step) == pytest.approx(edgeboxes.ALPHA, abs=0.06)
    assert windows.min() >= 0
    assert (windows[:, 2] <= 300).all()
    assert (windows[:, 3] <= 420).all()


def test_it_keeps_the_contract() -> None:
    check_proposer(EdgeBoxes(), [torch.from_numpy(photo(200)).permute(2, 0, 1)])


def test_boxes_do_not_depend_on_threads_and_are_cut_from_the_end() -> None:
    image = torch.from_numpy(photo(400)).permute(2, 0, 1)
    first = EdgeBoxes(max_boxes=300, threads=1)(image).boxes
    for threads in (1, 2, 3):
        assert torch.equal(EdgeBoxes(max_boxes=300, threads=threads)(image).boxes, first)
    overlaps = box_iou(first, first).fill_diagonal_(0)
    assert overlaps.max() <= edgeboxes.BETA + 1e-5


def test_a_drawn_object_is_among_the_first() -> None:
    image = np.full((240, 330, 3), (90, 120, 60), np.uint8)
    cv2.ellipse(image, (160, 110), (80, 60), 0, 0, 360, (210, 40, 40), -1)
    boxes = EdgeBoxes()(torch.from_numpy(image).permute(2, 0, 1)).boxes
    assert box_iou(boxes[:5], torch.tensor([[80.0, 50.0, 241.0, 171.0]])).max() > 0.8


def test_settings_name_what_shapes_the_boxes() -> None:
    assert settings_key(EdgeBoxes(threads=1).settings) == settings_key(EdgeBoxes(threads=2).settings)
    assert settings_key(EdgeBoxes(max_boxes=10).settings) != settings_key(EdgeBoxes().settings)
    for most, threads in ((0, 1), (5, 0)):
        with pytest.raises(ValueError, match=f"expected at least 1 box and 1 thread, got {most} and {threads}"):
            EdgeBoxes(max_boxes=most, threads=threads)


def test_kernels_are_on_disk_after_a_run() -> None:
    EdgeBoxes()(torch.from_numpy(photo(60)).permute(2, 0, 1))
    assert edgeboxes.is_compiled()


@pytest.mark.skipif(not has_edge_boxes, reason="needs a contrib build of OpenCV: no ximgproc in this")
def test_boxes_are_much_like_those_of_opencv() -> None:
    """It groups edges column by column, so groups differ a little, and it moves all boxes, not only the best.

    Its boxes lie a pixel to the lower right, since it was made for counting from 1.
    """
    strength, direction = find_edges(photo(300))
    ours = torch.from_numpy(find_boxes(strength, direction, 200).astype(np.float32))
    search = cv2.ximgproc.createEdgeBoxes()
    search.setMaxBoxes(200)
    found = search.getBoundingBoxes(strength, direction)
    rects = np.asarray(found[0] if isinstance(found, tuple) else found, np.float32)
    theirs = torch.from_numpy(np.concatenate([rects[:, :2] - 1, rects[:, :2] + rects[:, 2:]], axis=1))
    best = box_iou(theirs, ours).max(dim=1).values
    assert len(theirs) > 100
    assert (best > 0.7).double().mean() > 0.9
    assert best[:20].mean() > 0.85
