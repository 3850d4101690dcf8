"""Check that value types refuse what breaks their promises, and what they turn into."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from detector.structures import BoxScores, Detections, FeatureMap, GroundTruth, Seconds, check_boxes
from proposals.structures import Proposals, Proposer, check_image

BOXES = torch.tensor([[1, 2, 30.126, 40], [5, 6, 7, 8], [0, 0, 100, 60]], dtype=torch.float32)
SCORES = torch.tensor([0.9, 0.5, 0.123456])
LABELS = torch.tensor([1, 0, 1])
NAMES = ("cat", "dog")


def found(**changes: Any) -> Detections:
    values = {"boxes": BOXES, "scores": SCORES, "labels": LABELS, "size": (60, 100), "class_names": NAMES}
    return Detections(**{**values, **changes})


def truth(**changes: Any) -> GroundTruth:
    difficult = torch.zeros(3, dtype=torch.bool)
    return GroundTruth(**{"boxes": BOXES, "labels": LABELS, "difficult": difficult, "size": (60, 100), **changes})


BAD_BOXES = [
    torch.zeros(4),
    torch.zeros(3, 5),
    torch.zeros(3, 4, dtype=torch.float16),
    torch.zeros(3, 4, dtype=torch.int64),
    torch.full((3, 4), float("nan")),
    torch.full((3, 4), float("inf")),
]


@pytest.mark.parametrize("boxes", BAD_BOXES, ids=lambda boxes: f"{tuple(boxes.shape)} {boxes.dtype}")
@pytest.mark.parametrize("make", [check_boxes, Proposals, lambda b: found(boxes=b), lambda b: truth(boxes=b)])
def test_bad_boxes_are_refused(make: Callable[[Tensor], Any], boxes: Tensor) -> None:
    with pytest.raises(ValueError, match=r"^expected .*, got "):
        make(boxes)


def test_only_what_files_say_may_be_float64() -> None:
    exact = torch.zeros(3, 4, dtype=torch.float64)
    assert found(boxes=exact).boxes.dtype == truth(boxes=exact).boxes.dtype == torch.float64
    for make in (check_boxes, Proposals):
        with pytest.raises(ValueError, match="type float32, got"):
            make(exact)
    with pytest.raises(ValueError, match=r"expected 3 places in the file, got \(2,\)"):
        found(boxes=exact, order=torch.arange(2))
    kept = found(boxes=exact, order=torch.tensor([7, 2, 9])).above(float(SCORES[1]))
    assert kept.order is not None
    assert kept.order.tolist() == [7, 2, 9][: len(kept)]


@pytest.mark.parametrize(
    "make",
    [
        lambda: found(scores=SCORES[:2]),
        lambda: found(labels=LABELS[:2]),
        lambda: found(labels=torch.tensor([0, 1, 2])),
        lambda: found(labels=torch.tensor([0, 1, -1])),
        lambda: truth(labels=LABELS[:2]),
        lambda: truth(labels=LABELS.int()),
        lambda: truth(difficult=torch.zeros(2, dtype=torch.bool)),
        lambda: truth(difficult=torch.zeros(3)),
        lambda: FeatureMap(torch.zeros(3, 4), 16, 0.0, (1.0, 1.0)),
        lambda: FeatureMap(torch.zeros(1, 3, 4), 0, 0.0, (1.0, 1.0)),
        lambda: FeatureMap(torch.zeros(1, 3, 4), 16, 0.0, (1.0, 0.0)),
        lambda: check_image(torch.zeros(3, 4, 5)),
        lambda: check_image(torch.zeros(4, 5, 3, dtype=torch.uint8)),
        lambda: check_image(torch.zeros(3, 0, 5, dtype=torch.uint8)),
        lambda: check_image(torch.zeros(1, 3, 4, 5, dtype=torch.uint8)),
    ],
)
def test_what_does_not_fit_together_is_refused(make: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=r"^expected .*, got "):
        make()


def test_good_values_are_taken() -> None:
    assert len(found()) == len(truth()) == len(Proposals(BOXES)) == 3
    check_image(torch.zeros(3, 1, 1, dtype=torch.uint8))
    assert FeatureMap(torch.zeros(1, 3, 4), 16, -7.5, (0.5, 2.0)).stride == 16


def test_values_are_frozen_and_compare_by_identity() -> None:
    first = found()
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.size = (1, 1)  # type: ignore[misc]
    assert first == first
    assert first != found()
    assert len({first, found()}) == 2


def test_above_keeps_the_score_itself() -> None:
    image = torch.zeros(3, 60, 100, dtype=torch.uint8)
    kept = found(image=image).above(0.5)
    assert kept.scores.tolist() == pytest.approx([0.9, 0.5])
    assert torch.equal(kept.boxes, BOXES[:2])
    assert kept.labels.tolist() == [1, 0]
    assert (kept.size, kept.class_names, kept.image is image) == ((60, 100), NAMES, True)
    assert len(found().above(0.95)) == 0


def test_detections_as_dicts_are_json() -> None:
    rows = found().to_dicts()
    assert rows[0] == {"label": "dog", "score": 0.9, "box": [1.0, 2.0, 30.13, 40.0]}
    assert rows[2] == {"label": "dog", "score": 0.12346, "box": [0.0, 0.0, 100.0, 60.0]}
    assert json.loads(json.dumps(rows)) == rows


def test_empty_values_are_values() -> None:
    none = found(boxes=BOXES[:0], scores=SCORES[:0], labels=LABELS[:0])
    assert (len(none), none.to_dicts(), none.to_coco(1), len(none.above(0))) == (0, [], [], 0)
    assert len(truth(boxes=BOXES[:0], labels=LABELS[:0], difficult=torch.zeros(0, dtype=torch.bool))) == 0
    scores = BoxScores(BOXES[:0], torch.zeros(0, 3), BOXES[:0], NAMES)
    assert (len(scores), scores.to_dicts()) == (0, [])


def test_box_scores_name_the_best_class_even_where_background_wins() -> None:
    probabilities = torch.tensor([[0.25, 0.5, 0.25], [0.25, 0.125, 0.625]])
    scores = BoxScores(BOXES[:2], probabilities, BOXES[:2] + 1, NAMES)
    first, second = scores.to_dicts()
    assert first == {
        "label": "dog",
        "score": 0.5,
        "box": [1.0, 2.0, 30.13, 40.0],
        "refined": [2.0, 3.0, 31.13, 41.0],
        "probabilities": {"cat": 0.25, "dog": 0.5, "background": 0.25},
    }
    assert (second["label"], second["score"]) == ("cat", 0.25)
    assert json.loads(json.dumps([first, second])) == [first, second]


def test_seconds_add_up() -> None:
    seconds = Seconds()
    seconds.add("conv", 0.5)
    seconds.add("fc", 0.25)
    seconds.add("conv", 1.0)
    assert seconds.stages == {"conv": 1.5, "fc": 0.25}
    assert Seconds().stages == {}


def test_top_keeps_the_first() -> None:
    assert torch.equal(Proposals(BOXES).top(2).boxes, BOXES[:2])
    assert len(Proposals(BOXES).top(9)) == 3


def test_a_proposer_is_recognised_by_what_it_has() -> None:
    class Whole:
        name = "whole"
        settings: dict[str, Any] = {}  # noqa: RUF012

        def __call__(self, image: Tensor, path: Path | None = None) -> Proposals:
            return Proposals(torch.tensor([[0.0, 0.0, image.shape[2], image.shape[1]]]))

    assert isinstance(Whole(), Proposer)
    assert not isinstance(len, Proposer)
