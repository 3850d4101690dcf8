"""Measure proposals on boxes whose overlaps are known by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from proposals.recall import (
    average_best_overlap,
    best_overlaps,
    measure_coverage,
    overlaps_by_count,
    recall_at,
    recall_by_count,
    spread_counts,
)
from proposals.structures import Proposals


def boxes(*rows: tuple[float, float, float, float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


# Image 1: objects of 10 x 20 and 8 x 5. Image 2: one object that nothing overlaps. Image 3: no object.
TRUTHS = [boxes((0, 0, 10, 20), (50, 10, 58, 15)), boxes((5, 5, 9, 9)), boxes()]
PROPOSALS = [
    Proposals(
        boxes(
            (0, 0, 10, 10),  # half of the first object: 100 / 200
            (50, 10, 54, 15),  # half of the second: 20 / 40
            (0, 5, 10, 20),  # three quarters of the first: 150 / 200
            (49, 10, 59, 15),  # the second and a column on each side: 40 / 50
            (0, 0, 1, 1),  # 1 / 200
        )
    ),
    Proposals(boxes((20, 20, 30, 35))),
    Proposals(boxes((0, 0, 4, 3))),
]


def test_overlaps_are_intersection_over_union() -> None:
    assert best_overlaps(PROPOSALS, TRUTHS).tolist() == [0.75, 0.8, 0.0]


def test_recall_counts_overlaps_of_at_least_the_threshold() -> None:
    overlaps = best_overlaps(PROPOSALS, TRUTHS)
    assert recall_at(overlaps, [0.5, 0.75, 0.76, 0.8, 0.81]) == [2 / 3, 2 / 3, 1 / 3, 1 / 3, 0]
    assert recall_at(overlaps, [0.0]) == [1]
    assert recall_at(overlaps, []) == []


def test_average_best_overlap_is_a_mean_over_objects() -> None:
    assert average_best_overlap(best_overlaps(PROPOSALS, TRUTHS)) == pytest.approx((0.75 + 0.8) / 3, abs=1e-15)


def test_recall_by_count_looks_at_the_first_boxes_of_each_image() -> None:
    assert overlaps_by_count(PROPOSALS, TRUTHS, [1, 2, 3, 4, 100]).tolist() == [
        [0.5, 0.0, 0.0],
        [0.5, 0.5, 0.0],
        [0.75, 0.5, 0.0],
        [0.75, 0.8, 0.0],
        [0.75, 0.8, 0.0],
    ]
    assert recall_by_count(PROPOSALS, TRUTHS, [1, 2, 3, 4, 100]) == [1 / 3, 2 / 3, 2 / 3, 2 / 3, 2 / 3]
    assert recall_by_count(PROPOSALS, TRUTHS, [4, 3, 2], threshold=0.7) == [2 / 3, 1 / 3, 0]


def test_an_image_without_proposals_finds_nothing() -> None:
    overlaps = best_overlaps([Proposals(boxes())], [boxes((0, 0, 5, 4), (1, 1, 2, 2))])
    assert overlaps.tolist() == [0, 0]
    assert recall_at(overlaps, [0.5]) == [0]


def test_overlaps_at_a_threshold_are_not_lost_to_rounding() -> None:
    """7 of 10 columns are an overlap of 0.7, which single precision holds as less."""
    overlaps = best_overlaps([Proposals(boxes((0, 0, 7, 3)))], [boxes((0, 0, 10, 3))])
    assert recall_at(overlaps, [0.7]) == [1]


def test_the_order_of_objects_and_images_does_not_matter() -> None:
    turned = best_overlaps(PROPOSALS[::-1], [truth.flip(0) for truth in TRUTHS[::-1]])
    assert turned.tolist() == best_overlaps(PROPOSALS, TRUTHS).flip(0).tolist()


def test_nothing_to_measure_is_refused() -> None:
    nothing = best_overlaps(PROPOSALS[2:], TRUTHS[2:])
    assert nothing.shape == (0,)
    for measure in (lambda: recall_at(nothing, [0.5]), lambda: average_best_overlap(nothing)):
        with pytest.raises(ValueError, match="expected at least one object to measure recall, got none"):
            measure()
    assert best_overlaps([], []).shape == (0,)


def test_lists_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match="expected the objects of 3 images, got those of 2"):
        best_overlaps(PROPOSALS, TRUTHS[:2])
    with pytest.raises(ValueError, match=r"expected counts of at least 1, got \[5, 0\]"):
        recall_by_count(PROPOSALS, TRUTHS, [5, 0])


def test_coverage_is_counted_by_hand() -> None:
    """Best overlaps are 0.75 (class 0), 0.8 (class 2) and 0 (class 2); nobody is of class 1."""
    labels = [torch.tensor([0, 2]), torch.tensor([2]), torch.zeros(0, dtype=torch.int64)]
    found = measure_coverage(PROPOSALS, TRUTHS, labels, ("a", "b", "c"), (1, 2, 5))
    assert found.boxes == 7 / 3
    assert (found.recall[0.5], found.recall[0.75], found.recall[0.775], found.recall[0.9]) == (2 / 3, 2 / 3, 1 / 3, 0)
    assert (min(found.recall), max(found.recall)) == (0.5, 1)
    assert found.abo == pytest.approx(1.55 / 3)
    assert found.abo_per_class == pytest.approx({"a": 0.75, "c": 0.4})
    assert found.mabo == pytest.approx(0.575)
    assert found.recall_by_count == {1: 1 / 3, 2: 2 / 3, 5: 2 / 3}
    assert found.recall_shuffled[5] == pytest.approx(2 / 3)
    assert 0 <= found.recall_shuffled[1] < 2 / 3
    again = measure_coverage(PROPOSALS, TRUTHS, labels, ("a", "b", "c"), (1, 2, 5))
    assert again.to_dict() == found.to_dict()


def test_counts_reach_the_largest_number_of_boxes() -> None:
    assert spread_counts(12) == [1, 2, 3, 5, 7, 10, 12, 100, 300, 1000, 2000]
    assert spread_counts(0) == [1, 100, 300, 1000, 2000]
    assert spread_counts(4321)[-3:] == [2000, 3000, 4321]
    labels = [torch.zeros(len(truth)).long() for truth in TRUTHS]
    found = measure_coverage(PROPOSALS, TRUTHS, labels, ("a",))
    assert found.most_boxes == 5
    assert found.curve == {1: 1 / 3, 2: 2 / 3, 3: 2 / 3, 5: 2 / 3}
    assert found.recall_by_count[2000] == found.curve[5] == found.recall[0.5]


def test_labels_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match="expected one label for every object of every image"):
        measure_coverage(PROPOSALS, TRUTHS, [torch.zeros(1).long()] * 3, ("a",))


def test_random_orders_find_what_chance_says() -> None:
    """Of 100 boxes one covers the object: 20 in random order have it in a fifth of the images."""
    rows = torch.cat([boxes((0, 0, 10, 10)), boxes((20, 20, 30, 30)).repeat(99, 1)])
    count = 300
    found = measure_coverage(
        [Proposals(rows)] * count, [boxes((0, 0, 10, 10))] * count, [torch.zeros(1).long()] * count, ("a",), (20, 100)
    )
    assert found.recall_by_count == {20: 1, 100: 1}
    assert found.recall_shuffled[20] == pytest.approx(0.2, abs=4 * (0.2 * 0.8 / (5 * count)) ** 0.5)
    assert found.recall_shuffled[100] == 1
