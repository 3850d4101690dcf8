"""Compare EdgeBoxes with plain definitions of the paper's equations, and with OpenCV's where it is there."""

from __future__ import annotations

import hashlib
import heapq
from pathlib import Path

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
    EdgeSums,
    find_runs,
    make_scratch,
    refine_boxes,
    score_box,
    score_boxes,
    sum_edges,
)
from proposals.edgeboxes import EdgeBoxes, make_windows
from proposals.edgegroups import EdgeGroups, group_edges
from proposals.edges import find_edges
from proposals.ranking import thin_out
from proposals.registry import make_proposer
from proposals.store import settings_key
from tests.contracts import check_proposer
from tests.proposals.forest import write_forest

has_edge_boxes = hasattr(getattr(cv2, "ximgproc", None), "createEdgeBoxes")
has_forests = hasattr(getattr(cv2, "ximgproc", None), "createStructuredEdgeDetection")


OBJECT = torch.tensor([[80.0, 50.0, 241.0, 171.0]])


def drawn_object() -> torch.Tensor:
    """Return a (3, 240, 330) image of an ellipse, whose box is OBJECT, on plain ground."""
    image = np.full((240, 330, 3), (90, 120, 60), np.uint8)
    cv2.ellipse(image, (160, 110), (80, 60), 0, 0, 360, (210, 40, 40), -1)
    return torch.from_numpy(image).permute(2, 0, 1)


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
    h, w = (y2 - 1 - y1) // 2, (x2 - 1 - x1) // 2
    y, x = y1 + h // 2, x1 + w // 2
    middle = strength[y : y + h + 1, x : x + w + 1]
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
    refined, after = windows.copy(), before.copy()
    refine_boxes(groups, sums, refined, after, 0.2)
    assert (after >= before).all()
    assert (after > before).sum() > 20
    assert np.array_equal(refined[before == 0], windows[before == 0])
    assert after == pytest.approx(score_boxes(groups, sums, refined), abs=1e-12)
    assert ((refined >= 0) & (refined <= [*strength.shape, *strength.shape])).all()


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
    assert box_iou(EdgeBoxes()(drawn_object()).boxes[:5], OBJECT).max() > 0.8


def test_settings_name_what_shapes_the_boxes() -> None:
    assert settings_key(EdgeBoxes(threads=1).settings) == settings_key(EdgeBoxes(threads=2).settings)
    assert settings_key(EdgeBoxes(max_boxes=10).settings) != settings_key(EdgeBoxes().settings)
    for most, threads in ((0, 1), (5, 0)):
        with pytest.raises(ValueError, match=f"expected at least 1 box and 1 thread, got {most} and {threads}"):
            EdgeBoxes(max_boxes=most, threads=threads)


def test_kernels_are_on_disk_after_a_run() -> None:
    EdgeBoxes()(torch.from_numpy(photo(60)).permute(2, 0, 1))
    assert edgeboxes.is_compiled()


def search_opencv(side: int, beta: float, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (N, 4) boxes, y1, x1, y2, x2, and (N,) scores that OpenCV finds with our edges of a photo.

    Its boxes count from 1, and their sides end at the last pixel.
    """
    search = cv2.ximgproc.createEdgeBoxes(beta=beta, maxBoxes=most)
    rects, scores = search.getBoundingBoxes(*find_edges(photo(side)))
    x, y, w, h = np.asarray(rects, np.int32).reshape(-1, 4).T
    return np.stack([y - 1, x - 1, y + h, x + w], axis=1), np.asarray(scores, np.float64).ravel()


def refine_all(groups: EdgeGroups, sums: EdgeSums) -> np.ndarray:
    """Return all windows that score, moved, best first."""
    windows = make_windows(groups.labels.shape)
    scores = score_boxes(groups, sums, windows)
    windows, scores = windows[scores > 0], scores[scores > 0]
    refine_boxes(groups, sums, windows, scores, (1 - edgeboxes.ALPHA) / (1 + edgeboxes.ALPHA))
    return windows[np.argsort(-scores, kind="stable")]


@pytest.mark.skipif(not has_edge_boxes, reason="needs a contrib build of OpenCV: no ximgproc in this")
@pytest.mark.parametrize("side", [120, 200])
def test_scores_and_boxes_are_those_of_opencv(side: int) -> None:
    """OpenCV adds up in single precision: scores differ by that, and where moves are nearly as good, boxes."""
    boxes, expected = search_opencv(side, beta=1, most=10**6)  # a beta of 1 leaves none out
    strength, direction = find_edges(photo(side))
    groups = group_edges(strength, direction)
    sums = sum_edges(groups, strength)
    assert len(boxes) > 500
    assert score_boxes(groups, sums, boxes) == pytest.approx(expected, abs=1e-4)
    ours, theirs = (set(map(tuple, each.tolist())) for each in (refine_all(groups, sums), boxes))
    assert len(ours) == pytest.approx(len(theirs), abs=3)
    assert len(ours & theirs) > 0.95 * len(theirs)


@pytest.mark.skipif(not has_edge_boxes, reason="needs a contrib build of OpenCV: no ximgproc in this")
def test_the_boxes_that_are_kept_are_those_of_opencv() -> None:
    """OpenCV takes the overlap of boxes whose sides end at the last pixel."""
    boxes, _ = search_opencv(200, beta=edgeboxes.BETA, most=200)
    strength, direction = find_edges(photo(200))
    groups = group_edges(strength, direction)
    ours = refine_all(groups, sum_edges(groups, strength))
    kept = ours[thin_out(ours - np.array([0, 0, 1, 1], np.int32), edgeboxes.BETA, 200)]
    assert len(kept) == len(boxes) == 200
    assert np.array_equal(kept[:20], boxes[:20])
    assert len(set(map(tuple, kept.tolist())) & set(map(tuple, boxes.tolist()))) > 190


@pytest.mark.skipif(not has_forests, reason="needs a contrib build of OpenCV: no ximgproc in this")
def test_it_keeps_the_contract_with_a_model(tmp_path: Path) -> None:
    model = write_forest(tmp_path / "model.yml.gz")
    proposer = make_proposer(f"edgeboxes:{model}")
    assert proposer.settings["model"] == hashlib.sha256(model.read_bytes()).hexdigest()
    check_proposer(proposer, [torch.from_numpy(photo(200)).permute(2, 0, 1)])
    boxes = proposer(drawn_object()).boxes
    assert box_iou(boxes[:5], OBJECT).max() > 0.8
    assert not torch.equal(boxes[:5], EdgeBoxes()(drawn_object()).boxes[:5]), "edges come from the model"
