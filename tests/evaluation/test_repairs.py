"""Check causes and costs on random cases: by exact IoUs, plain loops and repaired detections, and by TIDE's program."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import pytest
import torch

from detector.evaluation import voc_ap
from detector.evaluation.errors import ALL_FALSE, ALL_MISSED, FALSE, MISSED, Rules, find_errors
from detector.structures import Detections, GroundTruth
from tests.evaluation.cases import found, random_case, truth

Case = tuple[list[Detections], list[GroundTruth], tuple[str, ...]]
Object = tuple[int, int]  # image, number in its image


@dataclass
class Guess:
    """Hold what is known of one detection; `state` is a cause, or hit, or ignored."""

    image: int
    box: list[float]
    score: float
    label: int
    state: str = ""
    target: Object | None = None


def iou(a: list[float], b: list[float]) -> Fraction:
    (a1, a2, a3, a4), (b1, b2, b3, b4) = (map(int, a)), (map(int, b))
    shared = max(0, min(a3, b3) - max(a1, b1)) * max(0, min(a4, b4) - max(a2, b2))
    return Fraction(shared, (a3 - a1) * (a4 - a2) + (b3 - b1) * (b4 - b2) - shared)


def judge(case: Case) -> tuple[list[Guess], set[Object]]:
    """Return all detections, image by image, with state and target, and the objects that are hit."""
    detections, truths, _ = case
    guesses = [
        Guess(i, box, score, label)
        for i, rows in enumerate(detections)
        for box, score, label in zip(rows.boxes.tolist(), rows.scores.tolist(), rows.labels.tolist(), strict=True)
    ]
    hit: set[Object] = set()
    for guess in sorted(guesses, key=lambda g: -g.score):  # stable
        objects = truths[guess.image]
        rows = list(zip(objects.boxes.tolist(), objects.labels.tolist(), objects.difficult.tolist(), strict=True))
        own = [(iou(guess.box, box), -n, hard) for n, (box, label, hard) in enumerate(rows) if label == guess.label]
        best, number, hard = max(own, default=(Fraction(0), 0, False), key=lambda row: row[:2])
        if best >= Fraction(1, 2) and hard:
            guess.state = "ignored"
        elif best >= Fraction(1, 2) and (guess.image, -number) not in hit:
            guess.state = "hit"
            hit.add((guess.image, -number))
        else:
            explain(guess, [(iou(guess.box, box), -n, label) for n, (box, label, hard) in enumerate(rows) if not hard])
    wanted: set[Object] = set()
    for guess in sorted(guesses, key=lambda g: (-g.score, g.label)):
        if guess.target in hit or guess.target in wanted:
            guess.target = None
        elif guess.target is not None:
            wanted.add(guess.target)
    return guesses, hit


def explain(guess: Guess, overlaps: list[tuple[Fraction, int, int]]) -> None:
    """Give a false detection its cause and its target, by the (IoU, minus number, label) of the objects."""
    none = (Fraction(0), 0, -1)
    own = max((row for row in overlaps if row[2] == guess.label), default=none)
    other = max((row for row in overlaps if row[2] != guess.label), default=none)
    if Fraction(1, 10) <= own[0] < Fraction(1, 2):
        guess.state, guess.target = "localisation", (guess.image, -own[1])
    elif other[0] >= Fraction(1, 2):
        guess.state, guess.target = "class", (guess.image, -other[1])
    elif own[0] >= Fraction(1, 2):
        guess.state = "duplicate"
    else:
        near = max(own[0], other[0]) > Fraction(1, 10)
        guess.state = "class and localisation" if near else "background"


def measure(case: Case, guesses: list[Guess], gone: set[Object], metric: str) -> float:
    """Return the mAP of other detections, without some objects; a class of which none is left has an AP of 0."""
    _, truths, names = case
    left = []
    for i, t in enumerate(truths):
        keep = torch.tensor([(i, n) not in gone for n in range(len(t))], dtype=torch.bool)
        left.append(GroundTruth(t.boxes[keep], t.labels[keep], t.difficult[keep], t.size))
    rows = [[g for g in guesses if g.image == i] for i in range(len(truths))]
    made = [found([g.box for g in r], [g.score for g in r], [g.label for g in r], names) for r in rows]
    aps = voc_ap(made, left, names, metric).per_class
    counted = {int(label) for t in truths for label in t.labels[~t.difficult]}
    return sum(np.nan_to_num(aps[names[label]]) for label in counted) / len(counted) if counted else np.nan


def repaired(case: Case, guesses: list[Guess], cause: str) -> list[Guess]:
    """Move the detections of a cause onto their targets, with the target's class, and drop those without."""
    moved = []
    for guess in guesses:
        if guess.state != cause:
            moved.append(guess)
        elif guess.target is not None:
            image, n = guess.target
            t = case[1][image]
            moved.append(replace(guess, box=t.boxes[n].tolist(), label=int(t.labels[n])))
    return moved


def distinct(case: Case) -> Case:
    """Leave out objects that have the box of one before: repaired, a detection could not tell them apart."""
    truths = []
    for t in case[1]:
        rows = t.boxes.tolist()
        keep = torch.tensor([row not in rows[:n] for n, row in enumerate(rows)], dtype=torch.bool)
        truths.append(GroundTruth(t.boxes[keep], t.labels[keep], t.difficult[keep], t.size))
    return case[0], truths, case[2]


def confused(case: Case, generator: np.random.Generator) -> Case:
    """Give a third of the detections a class at random, so that wrong classes are not rare."""
    made = []
    for rows in case[0]:
        other = torch.from_numpy(generator.integers(0, len(case[2]), len(rows)))
        change = torch.from_numpy(generator.random(len(rows)) < 1 / 3)
        made.append(replace(rows, labels=torch.where(change, other, rows.labels)))
    return made, case[1], case[2]


@pytest.mark.parametrize("metric", ["voc07", "voc10"])
def test_costs_are_what_repaired_detections_gain(metric: str) -> None:
    """Scores tie often, boxes lie at IoUs of exactly 1/2, objects are difficult or absent."""
    generator = np.random.default_rng(1406)
    seen: Counter[str] = Counter()
    for _ in range(50):
        case = confused(distinct(random_case(generator, images=int(generator.integers(1, 6)), classes=3)), generator)
        guesses, hit = judge(case)
        wanted = {g.target for g in guesses}
        lost = {
            (i, n) for i, t in enumerate(case[1]) for n in range(len(t)) if not t.difficult[n] and (i, n) not in hit
        }
        report = find_errors(*case, Rules(metric))
        expected = {cause: measure(case, repaired(case, guesses, cause), set(), metric) for cause in FALSE}
        expected[MISSED] = measure(case, guesses, lost - wanted, metric)
        expected[ALL_FALSE] = measure(case, [g for g in guesses if g.state in ("hit", "ignored")], set(), metric)
        expected[ALL_MISSED] = measure(case, guesses, lost, metric)
        baseline = measure(case, guesses, set(), metric)
        counts = Counter(g.state for g in guesses)
        assert report.counts == {cause: counts[cause] for cause in FALSE} | {MISSED: len(lost - wanted)}
        np.testing.assert_allclose(report.baseline, baseline, rtol=0, atol=1e-12)
        assert report.costs.keys() == expected.keys()
        for cause, value in expected.items():
            np.testing.assert_allclose(report.costs[cause], value - baseline, rtol=0, atol=1e-12, err_msg=cause)
        seen.update(report.counts)
    assert min(seen.values()) > 20


def test_order_of_the_images_does_not_matter_without_ties() -> None:
    generator = np.random.default_rng(7)
    for _ in range(10):
        detections, truths, names = tie_free(generator)
        forth = find_errors(detections, truths, names)
        back = find_errors(detections[::-1], truths[::-1], names)
        assert back.counts == forth.counts
        assert back.costs == pytest.approx(forth.costs, abs=1e-12)


def tie_free(generator: np.random.Generator, images: int = 5) -> Case:
    """Return a case of distinct scores, no IoU near a border, and no detection that reaches two objects of a class."""
    names, detections, truths = ("cat", "dog", "cow"), [], []
    for _ in range(images):
        count = int(generator.integers(0, 5))
        corners = generator.uniform(0, 30, (count, 2))
        boxes = np.concatenate([corners, corners + generator.uniform(5, 25, (count, 2))], axis=1)
        labels = generator.permutation(4)[:count] % 3  # at most two of a class
        near = boxes[generator.integers(0, count, 12)] if count else np.empty((0, 4))
        near = np.concatenate([near + generator.uniform(-5, 5, near.shape), [[2, 3, 9, 7], [40, 20, 60, 45]]])
        near = near[(near[:, 2] > near[:, 0] + 1) & (near[:, 3] > near[:, 1] + 1)]
        guesses = generator.integers(0, 3, len(near))
        scores = np.sort(generator.permutation(10_000)[: len(near)] / 10_000)[::-1].copy()
        same = guesses[:, None] == labels[None]
        floats = np.array([[overlap(a, b) for b in boxes] for a in near]).reshape(len(near), count)
        clear = ((floats * same) >= 0.5).sum(axis=1) < 2
        truths.append(truth(boxes, labels))
        detections.append(found(near[clear], scores[clear], guesses[clear], names))
    return detections, truths, names


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    sides = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0)
    return float(sides.prod() / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - sides.prod()))


@pytest.fixture
def tide_counts() -> Callable[[Case], dict[str, int]]:
    """Return a function that asks TIDE's own program how many mistakes have each cause."""
    tide = pytest.importorskip("tidecv", reason="compares with tidecv, which is not installed")

    def count(case: Case) -> dict[str, int]:
        true, guessed = tide.Data("truth"), tide.Data("detections")
        for image, (rows, objects) in enumerate(zip(case[0], case[1], strict=True)):
            for box, label in zip(objects.boxes.double().tolist(), objects.labels.tolist(), strict=True):
                true.add_ground_truth(image, label, [box[0], box[1], box[2] - box[0], box[3] - box[1]])
            true.add_image(image, str(image))
            for d in zip(rows.boxes.double().tolist(), rows.labels.tolist(), rows.scores.tolist(), strict=True):
                box = d[0]
                guessed.add_detection(image, d[1], d[2], [box[0], box[1], box[2] - box[0], box[3] - box[1]])
        run = tide.TIDE().evaluate(true, guessed)
        return {error.short_name: number for error, number in run.count_errors().items()}

    return count


def test_counts_are_those_of_tide(tide_counts: Callable[[Case], dict[str, int]]) -> None:
    names = dict(zip(("Loc", "Cls", "Dupe", "Bkg", "Both", "Miss"), (*FALSE, MISSED), strict=True))
    generator = np.random.default_rng(2020)
    seen: Counter[str] = Counter()
    for _ in range(30):
        case = tie_free(generator)
        expected = {names[name]: number for name, number in tide_counts(case).items()}
        assert find_errors(*case).counts == expected
        seen.update(expected)
    assert min(seen.values()) > 10
