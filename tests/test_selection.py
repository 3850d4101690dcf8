"""Check the choice of detections against suppression and voting written as plain loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from detector.boxes import encode
from detector.config import Config
from detector.selection import select, vote, weigh_by_rank

SIZE = (200, 320)
PLAIN = Config(nms=0.3, vote=1.0, min_score=0.05, max_detections=1000)
Row = tuple[float, int, list[float]]  # score, label, box


def iou(a: list[float], b: list[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def suppress(rows: list[Row], limit: float) -> list[Row]:
    """Keep a row unless a better row of its class, or an equal one before it, that is kept overlaps it by more."""
    kept: list[Row] = []
    for row in sorted(rows, key=lambda r: -r[0]):
        if all(row[1] != other[1] or iou(row[2], other[2]) <= limit for other in kept):
            kept.append(row)
    return kept


def whole_boxes(count: int, generator: torch.Generator) -> Tensor:
    """Return boxes of whole pixels that partly crowd together."""
    low = torch.randint(0, 160, (count, 2), generator=generator)
    return torch.cat([low, low + torch.randint(8, 60, (count, 2), generator=generator)], dim=1).float()


def scene(count: int, classes: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return boxes and probabilities, many of them equal."""
    weights = torch.randint(0, 6, (count, classes + 1), generator=generator) + 0.25
    return whole_boxes(count, generator), weights / weights.sum(dim=1, keepdim=True)


def rows_above(boxes: Tensor, probabilities: Tensor, score: float) -> list[Row]:
    """List regions and classes in the order of the regions, boxes clipped to the image."""
    rows = []
    for box, row in zip(boxes.tolist(), probabilities[:, :-1].tolist(), strict=True):
        clipped = [min(max(v, 0.0), float(SIZE[1 - i % 2])) for i, v in enumerate(box)]
        rows += [(p, label, clipped) for label, p in enumerate(row) if p >= score]
    return rows


def as_rows(boxes: Tensor, scores: Tensor, labels: Tensor) -> list[Row]:
    return list(zip(scores.tolist(), labels.tolist(), boxes.tolist(), strict=True))


@given(st.integers(0, 2**31), st.integers(0, 40), st.integers(1, 4))
def test_selection_equals_suppression_in_a_loop(seed: int, count: int, classes: int) -> None:
    boxes, probabilities = scene(count, classes, torch.Generator().manual_seed(seed))
    found = select(boxes, probabilities, torch.zeros(count, classes, 4), SIZE, PLAIN)
    assert as_rows(*found) == suppress(rows_above(boxes, probabilities, 0.05), 0.3)


def test_many_regions_are_selected_like_few(generator: torch.Generator) -> None:
    """Take so many that torchvision suppresses class by class instead of all classes at once."""
    boxes, probabilities = scene(700, 5, generator)
    rows = rows_above(boxes, probabilities, 0.05)
    assert len(rows) > 1500
    assert as_rows(*select(boxes, probabilities, torch.zeros(700, 5, 4), SIZE, PLAIN)) == suppress(rows, 0.3)


def test_equal_scores_stay_in_the_order_of_the_regions() -> None:
    boxes = torch.tensor([[100.0, 10, 120, 30], [10, 10, 30, 30], [200, 10, 220, 30], [11, 10, 31, 30]])
    probabilities = torch.tensor([[0.5, 0.5]] * 4)
    found, scores, _ = select(boxes, probabilities, torch.zeros(4, 1, 4), SIZE, PLAIN)
    assert torch.equal(found, boxes[:3])
    assert scores.tolist() == [0.5] * 3


def test_classes_do_not_suppress_each_other() -> None:
    boxes = torch.tensor([[10.0, 10, 60, 40], [10, 10, 60, 40]])
    probabilities = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1]])
    _, scores, labels = select(boxes, probabilities, torch.zeros(2, 2, 4), SIZE, PLAIN)
    assert labels.tolist() == [1, 0]
    assert scores.tolist() == pytest.approx([0.7, 0.6])


def test_background_is_never_detected() -> None:
    found = select(
        torch.tensor([[10.0, 10, 60, 40]]), torch.tensor([[0.01, 0.01, 0.98]]), torch.zeros(1, 2, 4), SIZE, PLAIN
    )
    assert [tuple(part.shape) for part in found] == [(0, 4), (0,), (0,)]


def test_a_score_equal_to_the_limit_is_kept() -> None:
    boxes = torch.tensor([[10.0, 10, 60, 40], [110, 10, 160, 40], [210, 10, 260, 40]])
    probabilities = torch.tensor([[0.25, 0.75], [0.2499, 0.7501], [0.5, 0.5]])
    _, scores, _ = select(boxes, probabilities, torch.zeros(3, 1, 4), SIZE, Config(min_score=0.25))
    assert scores.tolist() == [0.5, 0.25]


@pytest.mark.parametrize("most", [1, 3, 1000])
def test_the_best_are_kept_where_there_are_too_many(most: int, generator: torch.Generator) -> None:
    boxes, probabilities = scene(60, 3, generator)
    config = Config(nms=0.3, vote=1.0, min_score=0.05, max_detections=most)
    wanted = suppress(rows_above(boxes, probabilities, 0.05), 0.3)
    assert len(wanted) > 3
    assert as_rows(*select(boxes, probabilities, torch.zeros(60, 3, 4), SIZE, config)) == wanted[:most]


def test_boxes_are_clipped_to_height_and_width_and_dropped_outside() -> None:
    boxes = torch.tensor([[-20.0, -10, 30, 40], [300, 180, 400, 260], [400, 20, 420, 60], [20, 250, 60, 280]])
    probabilities = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
    found, scores, _ = select(boxes, probabilities, torch.zeros(4, 1, 4), SIZE, PLAIN)
    assert found.tolist() == [[0, 0, 30, 40], [300, 180, 320, 200]]
    assert scores.tolist() == pytest.approx([0.9, 0.8])


def test_every_class_moves_the_box_by_its_own_deltas() -> None:
    box = torch.tensor([[50.0, 50, 100, 90]])
    targets = torch.tensor([[60.0, 55, 120, 100], [40.0, 30, 90, 88]])
    deltas = encode(box.expand(2, 4), targets)[None]
    found, _, labels = select(box, torch.tensor([[0.3, 0.5, 0.2]]), deltas, SIZE, PLAIN)
    assert labels.tolist() == [1, 0]
    torch.testing.assert_close(found, targets.flip(0))


def vote_in_a_loop(row: Row, rows: list[Row], limit: float) -> list[float]:
    """Average the boxes of a class that overlap one, weighted by score (Gidaris and Komodakis 2015, section 5)."""
    near = [other for other in rows if other[1] == row[1] and iou(row[2], other[2]) >= limit]
    total = sum(score for score, _, _ in near)
    return [sum(score * box[i] for score, _, box in near) / total for i in range(4)]


@given(st.integers(0, 2**31), st.integers(1, 60), st.sampled_from([0.3, 0.5, 0.8]))
def test_voting_equals_a_loop(seed: int, count: int, limit: float) -> None:
    boxes, probabilities = scene(count, 2, torch.Generator().manual_seed(seed))
    config = Config(nms=0.3, vote=limit, min_score=0.05, max_detections=20)
    found, scores, labels = select(boxes, probabilities, torch.zeros(count, 2, 4), SIZE, config)
    rows = rows_above(boxes, probabilities, 0.05)
    kept = suppress(rows, 0.3)[:20]
    assert list(zip(scores.tolist(), labels.tolist(), strict=True)) == [row[:2] for row in kept]
    expected = torch.tensor([vote_in_a_loop(row, rows, limit) for row in kept])
    torch.testing.assert_close(found, expected.view(-1, 4), rtol=1e-5, atol=1e-3)


def test_a_box_without_company_keeps_its_place() -> None:
    boxes, labels = torch.tensor([[10.0, 10, 60, 40]]), torch.tensor([1])
    others = torch.tensor([[10.0, 10, 60, 40], [12.0, 10, 62, 40]]), torch.tensor([0.5, 0.9]), torch.tensor([1, 0])
    torch.testing.assert_close(vote(boxes, labels, others, 0.5), boxes)


@pytest.mark.parametrize("limit", [0.5, 1.0])
def test_no_regions(limit: float) -> None:
    found = select(torch.zeros(0, 4), torch.zeros(0, 4), torch.zeros(0, 3, 4), SIZE, Config(vote=limit))
    assert [tuple(part.shape) for part in found] == [(0, 4), (0,), (0,)]


def test_late_proposals_count_less_and_background_is_left_alone() -> None:
    probabilities = torch.rand(1500, 4)
    weighed = weigh_by_rank(probabilities, 0.4)
    for row in (0, 1, 750, 1499):
        expected = [value / (1 + 0.4 * row / 1000) for value in probabilities[row, :3].tolist()]
        assert weighed[row].tolist() == pytest.approx([*expected, float(probabilities[row, 3])], rel=1e-6)
    assert torch.equal(weigh_by_rank(probabilities, 0.0), probabilities)
    assert weigh_by_rank(torch.zeros(0, 4), 0.4).shape == (0, 4)
