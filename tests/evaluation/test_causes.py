"""Check causes, costs and confusions in scenes small enough to be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from detector.evaluation.confusion import confusion
from detector.evaluation.errors import ALL_FALSE, ALL_MISSED, FALSE, MISSED, ErrorReport, Rules, find_errors
from detector.structures import GroundTruth
from tests.evaluation.cases import found, random_case, truth

NAMES = ("cat", "dog")
A, B, C = [0, 0, 20, 10], [30, 20, 50, 30], [0, 30, 20, 40]  # two cats and a dog
VOC10 = Rules("voc10")


def scene(*rows: tuple[list[int], float, int], rules: Rules = VOC10, dog: bool = True) -> ErrorReport:
    """Explain detections of A, B and, if there is a dog, C."""
    objects = truth([A, B, C][: 2 + dog], [0, 0, 1][: 2 + dog])
    ranked = sorted(rows, key=lambda row: -row[1])
    boxes, scores, labels = ([row[i] for row in ranked] for i in range(3))
    return find_errors([found(boxes, scores, labels, NAMES)], [objects], NAMES, rules)


def causes(report: ErrorReport) -> dict[str, int]:
    assert sum(report.counts.values()) == len(report.mistakes)
    return {cause: count for cause, count in report.counts.items() if count}


HIT_A, HIT_C = (A, 0.5, 0), (C, 0.75, 1)


def test_without_mistakes_nothing_can_be_gained() -> None:
    report = scene(HIT_A, HIT_C, (B, 0.25, 0))
    assert (report.baseline, causes(report), report.mistakes) == (1.0, {}, ())
    assert set(report.costs.values()) == {0.0}
    assert set(report.costs) == {*FALSE, MISSED, ALL_FALSE, ALL_MISSED}


def test_localisation() -> None:
    """The cats' AP is half (precision) of half (recall); repaired, both are found first and at once."""
    report = scene(HIT_A, HIT_C, ([30, 20, 50, 24], 1.0, 0))
    assert (report.baseline, causes(report)) == (0.625, {"localisation": 1})
    assert report.costs["localisation"] == pytest.approx(0.375, abs=1e-12)
    assert report.costs[MISSED] == 0
    assert report.costs[ALL_FALSE] == pytest.approx(0.125, abs=1e-12)
    assert report.costs[ALL_MISSED] == pytest.approx(0.125, abs=1e-12)
    (mistake,) = report.mistakes
    assert (mistake.image, mistake.label, mistake.score, mistake.object) == (0, 0, 1.0, 1)
    assert (mistake.box, mistake.overlap) == ((30, 20, 50, 24), pytest.approx(0.4))


def test_two_poor_boxes_of_one_object_are_repaired_once() -> None:
    """A miss is not counted for B; the worse of its two boxes is left out, so that the cats' AP becomes 1."""
    report = scene(HIT_A, HIT_C, ([30, 20, 50, 24], 1.0, 0), ([30, 20, 50, 23], 0.875, 0))
    assert causes(report) == {"localisation": 2}
    assert report.baseline == pytest.approx((1 / 3 / 2 + 1) / 2, abs=1e-12)
    assert report.costs["localisation"] == pytest.approx(1 - report.baseline, abs=1e-12)


def test_wrong_class_of_an_object_that_is_found_otherwise() -> None:
    """Corrected it would be a duplicate, so it is left out: the cats' AP rises from 1/4 to 1/2."""
    report = scene(HIT_A, HIT_C, (C, 1.0, 0))
    assert (report.baseline, causes(report)) == (0.625, {"class": 1, MISSED: 1})
    assert report.costs["class"] == pytest.approx(0.125, abs=1e-12)
    assert report.costs[MISSED] == pytest.approx(0.125, abs=1e-12)
    assert [(m.cause, m.label, m.object) for m in report.mistakes] == [("class", 0, 2), (MISSED, 0, 1)]


def test_wrong_class_of_an_object_that_is_not_found() -> None:
    """Corrected, the dogs' AP rises from 0 to 1 and that of the cats from 1/4 to 1/2; the dog is not missed."""
    report = scene(HIT_A, (C, 1.0, 0))
    assert (report.baseline, causes(report)) == (0.125, {"class": 1, MISSED: 1})
    assert report.costs["class"] == pytest.approx(0.625, abs=1e-12)


def test_duplicate() -> None:
    """The cats' AP is 1/2 + 1/2 * 2/3."""
    report = scene((A, 1.0, 0), ([0, 0, 20, 9], 0.75, 0), (B, 0.5, 0), HIT_C)
    assert causes(report) == {"duplicate": 1}
    assert report.baseline == pytest.approx(11 / 12, abs=1e-12)
    assert report.costs["duplicate"] == pytest.approx(1 / 12, abs=1e-12)


@pytest.mark.parametrize(
    ("box", "cause", "number"),
    [([40, 0, 50, 10], "background", None), ([0, 30, 20, 34], "class and localisation", 2)],
)
def test_detections_that_are_left_out(box: list[int], cause: str, number: int | None) -> None:
    report = scene(HIT_A, HIT_C, (box, 1.0, 0))
    assert (report.baseline, causes(report)) == (0.625, {cause: 1, MISSED: 1})
    assert report.costs[cause] == pytest.approx(0.125, abs=1e-12)
    assert report.mistakes[0].object == number


def test_missed_object_has_no_score() -> None:
    """Without B the cats' AP is 1."""
    report = scene(HIT_A, HIT_C)
    assert (report.baseline, report.costs[MISSED]) == (0.75, 0.25)
    (miss,) = report.mistakes
    assert (miss.cause, miss.score, miss.box, miss.object) == (MISSED, None, tuple(B), 1)
    assert np.isnan(miss.overlap)


@pytest.mark.parametrize(
    ("box", "label", "cause"),
    [
        ([0, 0, 2, 10], 0, "localisation"),  # an IoU of exactly 0.1 with an object of its class
        ([0, 30, 2, 40], 0, "background"),  # and with one of another class
        ([0, 30, 10, 40], 0, "class"),  # exactly 0.5
    ],
)
def test_borders_of_the_causes(box: list[int], label: int, cause: str) -> None:
    assert scene((box, 1.0, label)).mistakes[0].cause == cause


def test_strict_asks_for_more_than_the_iou() -> None:
    rows = ([0, 0, 20, 5], 1.0, 0)
    assert causes(scene(rows, dog=False)) == {MISSED: 1}
    assert causes(scene(rows, dog=False, rules=Rules(strict=True))) == {"localisation": 1, MISSED: 1}


def test_difficult_objects_are_nobodys_mistake() -> None:
    objects = truth([A, B, C], [0, 0, 1], [False, True, True])
    rows = found([B, A], [1.0, 0.5], [0, 0], NAMES)
    report = find_errors([rows], [objects], NAMES)
    assert (report.baseline, causes(report)) == (1.0, {})


def test_no_images_and_no_objects() -> None:
    empty = find_errors([], [], NAMES)
    assert np.isnan(empty.baseline)
    assert (empty.mistakes, causes(empty)) == ((), {})
    report = find_errors([found([A], [0.5], [0], NAMES)], [truth([], [])], NAMES)
    assert causes(report) == {"background": 1}


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="expected detections of 1 images"):
        find_errors([], [truth([], [])], NAMES)
    with pytest.raises(ValueError, match="expected an IoU above 0"):
        find_errors([], [], NAMES, Rules(iou=0))
    with pytest.raises(ValueError, match="expected one of the metrics"):
        find_errors([found([A], [0.5], [0], NAMES)], [truth([A], [0])], NAMES, Rules("coco"))


def test_confusion_by_hand() -> None:
    """B is taken for a dog, C is missed, one cat is imagined, a second detection of A is too, one scores too low."""
    rows = [(A, 1.0, 0), (B, 0.9, 1), ([0, 0, 20, 9], 0.8, 0), ([40, 0, 50, 10], 0.7, 0), (C, 0.4, 1)]
    boxes, scores, labels = ([row[i] for row in rows] for i in range(3))
    counts = confusion([found(boxes, scores, labels, NAMES)], [truth([A, B, C], [0, 0, 1])], NAMES)
    assert counts.tolist() == [[1, 1, 0], [0, 0, 1], [2, 0, 0]]  # cat, dog, background; columns are what was detected


def test_confusion_takes_the_best_score_first_whatever_the_order() -> None:
    rows = found([A, A], [0.5, 1.0], [0, 1], NAMES)
    assert confusion([rows], [truth([A], [0])], NAMES).tolist() == [[0, 1, 0], [0, 0, 0], [1, 0, 0]]


def test_confusion_leaves_difficult_objects_out() -> None:
    rows = found([A, B, C], [1.0, 0.9, 0.8], [0, 1, 1], NAMES)
    objects = truth([A, B, C, [40, 0, 60, 9]], [0, 0, 1, 1], [True, True, False, True])
    assert confusion([rows], [objects], NAMES).tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]


def test_confusion_counts_every_object_and_every_detection_once() -> None:
    generator = np.random.default_rng(5)
    for _ in range(20):
        detections, truths, names = random_case(generator, images=4, classes=3)
        truths = [GroundTruth(t.boxes, t.labels, torch.zeros_like(t.difficult), t.size) for t in truths]
        counts = confusion(detections, truths, names, score=0.25)
        objects = np.bincount(np.concatenate([t.labels.numpy() for t in truths]), minlength=3)
        guesses = np.bincount(np.concatenate([d.above(0.25).labels.numpy() for d in detections]), minlength=3)
        assert counts[:3].sum(axis=1).tolist() == objects.tolist()
        assert counts[:, :3].sum(axis=0).tolist() == guesses.tolist()
        assert counts[3, 3] == 0
