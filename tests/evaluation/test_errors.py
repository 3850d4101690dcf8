"""Check causes and costs on scenes that can be worked out by hand, and against repairs of the detections themselves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from detector.evaluation import Candidates, Rules, find_errors, voc_ap
from detector.evaluation.confusion import confusion
from detector.evaluation.errors import ALL_FALSE, ALL_MISSED, FALSE
from detector.structures import Detections, GroundTruth
from tests.evaluation.cases import found, random_case, truth

NAMES = ("cat", "dog")
OBJECT = [10, 10, 30, 20]  # 20 x 10 pixels


def explain(boxes: list[list[int]], labels: list[int], objects: GroundTruth, **more: object) -> object:
    scores = np.linspace(0.9, 0.5, len(boxes))
    return find_errors([found(boxes, scores, labels, NAMES)], [objects], NAMES, **more)


@pytest.mark.parametrize(
    ("box", "label", "cause", "overlap", "gain"),
    [
        ([10, 10, 18, 20], 0, "localisation", 0.4, 1.0),
        ([10, 10, 30, 20], 1, "class", 1.0, 1.0),
        ([40, 10, 60, 20], 0, "background", 0.0, 0.0),
        ([10, 10, 18, 20], 1, "class and localisation", 0.4, 0.0),
        ([29, 10, 49, 20], 0, "background", 1 / 39, 0.0),
    ],
)
def test_the_cause_of_one_false_detection(box: list[int], label: int, cause: str, overlap: float, gain: float) -> None:
    """One cat, one detection: AP is 0; repaired it is 1, if the repair finds the cat, which is else missed."""
    report = explain([box], [label], truth([OBJECT], [0]))
    first = report.mistakes[0]
    assert (first.cause, first.label, first.image, first.box) == (cause, label, 0, tuple(map(float, box)))
    assert first.overlap == pytest.approx(overlap)
    assert first.score == pytest.approx(0.9)
    assert report.baseline == 0
    assert report.costs[cause] == pytest.approx(gain)
    assert report.counts["missed"] == (0 if gain else 1)
    assert [m.cause for m in report.mistakes] == [cause] + ([] if gain else ["missed"])


def test_a_duplicate_costs_what_it_lowers() -> None:
    """Found, found again, then another cat: precision 1, 1/2, 2/3. Without the duplicate all is 1."""
    objects = truth([OBJECT, [40, 10, 60, 20]], [0, 0])
    report = explain([OBJECT, [11, 10, 30, 20], [40, 10, 60, 20]], [0, 0, 0], objects)
    assert report.counts == dict.fromkeys(FALSE, 0) | {"duplicate": 1, "missed": 0}
    assert report.mistakes[0].object == 0
    lowered = (6 + 5 * 2 / 3) / 11  # 11 points: the first six at recall 1/2 or less
    assert report.baseline == pytest.approx(lowered)
    assert report.costs["duplicate"] == report.costs[ALL_FALSE] == pytest.approx(1 - lowered)
    assert report.costs[ALL_MISSED] == 0


def test_only_the_best_of_two_repairs_finds_an_object() -> None:
    """Two poor boxes of one cat: the better becomes a hit, the other is left out, so that AP is 1."""
    report = explain([[10, 10, 17, 20], [10, 10, 18, 20]], [0, 0], truth([OBJECT], [0]))
    assert report.counts["localisation"] == 2
    assert report.costs["localisation"] == pytest.approx(1)


def test_difficult_objects_cause_no_mistakes() -> None:
    report = explain([OBJECT], [0], truth([OBJECT, [40, 10, 60, 20]], [0, 1], [True, True]))
    assert report.mistakes == ()
    assert np.isnan(report.baseline)


def candidates(boxes: list[list[int]], scores: list[float], refined: list[list[int]]) -> Candidates:
    """Return regions of which only the class cat has a score; the dog's boxes lie elsewhere."""
    corners = np.array(boxes, float).reshape(-1, 4)
    moved = np.stack([np.array(refined, float).reshape(-1, 4), np.zeros_like(corners)], axis=1)
    table = np.stack([np.array(scores), np.zeros(len(scores))], axis=1)
    return Candidates(corners, table, moved, 0.05)


AWAY = [40, 10, 60, 20]


@pytest.mark.parametrize(
    ("cause", "boxes", "scores", "refined"),
    [
        ("no proposal", [], [], []),
        ("no proposal", [AWAY], [0.9], [AWAY]),
        ("low score", [OBJECT], [0.04], [OBJECT]),
        ("low score", [OBJECT, AWAY], [0.04, 0.9], [OBJECT, AWAY]),
        ("regression", [OBJECT], [0.9], [AWAY]),
        ("suppressed", [OBJECT], [0.05], [OBJECT]),
        ("suppressed", [OBJECT, [10, 10, 19, 20]], [0.04, 0.5], [OBJECT, OBJECT]),
    ],
)
def test_the_cause_of_a_miss(cause: str, boxes: list[list[int]], scores: list[float], refined: list[list[int]]) -> None:
    """One of two cats is found: AP is 6/11, and 1 if the other is not counted."""
    asked = []

    def give(image: int) -> Candidates:
        asked.append(image)
        return candidates(boxes, scores, refined)

    first, second = truth([[0, 0, 9, 9]], [0]), truth([OBJECT], [0])
    cats = [found([[0, 0, 9, 9]], [0.9], [0], NAMES), found([], [], [], NAMES)]
    report = find_errors(cats, [first, second], NAMES, candidates=give)
    assert asked == [1]
    assert [(m.cause, m.image, m.object, m.score) for m in report.mistakes] == [(cause, 1, 0, None)]
    assert report.baseline == pytest.approx(6 / 11)
    assert report.costs[cause] == report.costs[ALL_MISSED] == pytest.approx(5 / 11)
    assert "missed" not in report.costs


def repaired(
    cause: str, report: object, detections: list[Detections], truths: list[GroundTruth]
) -> tuple[list[Detections], list[GroundTruth]]:
    """Return what the detections and the objects would be: by changing them one by one, best score first."""
    taken = {(m.image, m.object) for m in report.mistakes if m.score is None}
    hits = {
        (image, number)
        for image, t in enumerate(truths)
        for number in range(len(t))
        if (image, number) not in taken
    }  # fmt: skip
    explained = {(m.image, m.object) for m in report.mistakes if m.cause in FALSE[:2]}
    rows = {
        image: list(zip(d.boxes.tolist(), d.scores.tolist(), d.labels.tolist(), strict=True))
        for image, d in enumerate(detections)
    }
    free = {key for key in explained if key in hits and not _is_hit(key, report, detections, truths)}
    competing = [m for m in report.mistakes if m.cause in FALSE[:2]]
    winners = {}
    for m in competing:  # best score first
        if (m.image, m.object) in free:
            winners.setdefault((m.image, m.object), m)
    for m in report.mistakes:
        if m.cause != cause or m.score is None:
            continue
        row = next(r for r in rows[m.image] if tuple(r[0]) == m.box and r[1] == m.score and r[2] == m.label)
        rows[m.image].remove(row)
        if winners.get((m.image, m.object)) is m:
            t = truths[m.image]
            rows[m.image].append((t.boxes[m.object].tolist(), m.score, int(t.labels[m.object])))
    names = detections[0].class_names
    after = []
    for image, t in enumerate(truths):
        kept = sorted(rows[image], key=lambda row: -row[1])
        after.append(found([r[0] for r in kept], [r[1] for r in kept], [r[2] for r in kept], names))
        assert len(t.size) == 2
    left = [
        replace(
            t,
            **{
                name: getattr(t, name)[[n for n in range(len(t)) if not (cause == "missed" and (i, n) in taken)]]
                for name in ("boxes", "labels", "difficult")
            },
        )
        for i, t in enumerate(truths)
    ]
    return after, left


def _is_hit(key: tuple[int, int], report: object, detections: list[Detections], truths: list[GroundTruth]) -> bool:
    """Tell whether some detection of the object's class that is no mistake has it as its best object."""
    image, number = key
    d, t = detections[image], truths[image]
    mistakes = [(m.box, m.score, m.label) for m in report.mistakes if m.image == image and m.score is not None]
    for box, score, label in zip(d.boxes.tolist(), d.scores.tolist(), d.labels.tolist(), strict=True):
        mistaken = (tuple(box), score, label)
        if mistaken in mistakes:
            mistakes.remove(mistaken)
            continue
        same = [n for n in range(len(t)) if int(t.labels[n]) == label]
        overlaps = {n: _iou(box, t.boxes[n].tolist()) for n in same}
        if overlaps and max(overlaps, key=overlaps.__getitem__) == number and overlaps[number] >= 0.5:
            return True
    return False


def _iou(a: list[float], b: list[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height)


@pytest.mark.parametrize("metric", ["voc07", "voc10"])
def test_costs_are_those_of_repaired_detections(metric: str) -> None:
    """Repair the detections themselves and measure them again: the same for every cause, on random scenes."""
    seen = dict.fromkeys((*FALSE, "missed"), 0)
    for seed in range(60):
        detections, truths, names = random_case(np.random.default_rng(seed), 4, 3)
        truths = [replace(t, difficult=torch.zeros_like(t.difficult)) for t in truths]
        detections = [distinct(d, seed) for d in detections]
        report = find_errors(detections, truths, names, Rules(metric))
        before = voc_ap(detections, truths, names, metric).map
        assert report.baseline == pytest.approx(before, abs=1e-12, nan_ok=True)
        classes = [{int(k) for t in truths for k in t.labels}]
        for cause in report.counts:
            after, left = repaired(cause, report, detections, truths)
            if {int(k) for t in left for k in t.labels} != classes[0]:
                continue  # a class that loses its last object is measured as it was
            gain = voc_ap(after, left, names, metric).map - before
            assert report.costs[cause] == pytest.approx(gain, abs=1e-12, nan_ok=True), (seed, cause)
            seen[cause] += report.counts[cause] > 0
    assert min(seen.values()) >= 5, seen


def distinct(d: Detections, seed: int) -> Detections:
    """Give every detection a score of its own, so that moving one cannot change its place among equals."""
    generator = np.random.default_rng(seed + len(d))
    scores = np.sort(generator.random(len(d)))[::-1].copy()
    return replace(d, scores=torch.tensor(scores, dtype=torch.float32))


def test_confusion_counts_every_object_and_detection_once() -> None:
    """A cat found, a dog taken for a cat, a dog missed, a cat where nothing is, one below the score, one difficult."""
    objects = truth([OBJECT, AWAY, [10, 30, 30, 40], [40, 30, 60, 40]], [0, 1, 1, 0], [False, False, False, True])
    boxes = [OBJECT, AWAY, [0, 41, 5, 46], [10, 30, 30, 40], [40, 30, 60, 40]]
    detections = found(boxes, [0.9, 0.8, 0.7, 0.4, 0.9], [0, 0, 0, 1, 0], NAMES)
    assert confusion([detections], [objects], NAMES).tolist() == [[1, 0, 0], [1, 0, 1], [1, 0, 0]]
