"""Test VOC's average precision against a plain one written from the devkit's description, and on known cases."""

from __future__ import annotations

import math
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from detector.annotations import read_voc
from detector.evaluation import precision_recall, voc_ap
from detector.evaluation.voc import THRESHOLDS, average_precision
from detector.structures import Detections, GroundTruth
from tests.evaluation.cases import found, random_case, truth

NAMES = ("cat", "dog")


def plain_iou(a: list[float], b: list[float]) -> Fraction:
    """Return the IoU of 1-based inclusive boxes of whole pixels, exactly, with the devkit's + 1."""
    (ax, ay, ar, ab), (bx, by, br, bb) = ([int(v) for v in box] for box in (a, b))
    width, height = min(ar, br) - max(ax, bx) + 1, min(ab, bb) - max(ay, by) + 1
    if width <= 0 or height <= 0:
        return Fraction(0)
    union = (ar - ax + 1) * (ab - ay + 1) + (br - bx + 1) * (bb - by + 1) - width * height
    return Fraction(width * height, union)


def inclusive(box: list[float]) -> list[float]:
    return [box[0] + 1, box[1] + 1, box[2], box[3]]


def plain_marks(detections: list[Detections], truths: list[GroundTruth], label: int, iou: Fraction) -> tuple[str, int]:
    """Walk through the detections of a class as the devkit does: `h`it, `f`alse, `-` neither; and count objects."""
    rows = []
    for image, item in enumerate(detections):
        for box, score, of in zip(item.boxes.tolist(), item.scores.tolist(), item.labels.tolist(), strict=True):
            if of == label:
                rows.append((-score, len(rows), image, inclusive(box)))
    objects = [
        [
            (inclusive(box), hard)
            for box, of, hard in zip(t.boxes.tolist(), t.labels.tolist(), t.difficult.tolist(), strict=True)
            if of == label
        ]
        for t in truths
    ]
    reached, marks = set(), ""
    for _, _, image, box in sorted(rows):
        best, index = Fraction(-1), -1
        for j, (other, _) in enumerate(objects[image]):
            if plain_iou(box, other) > best:
                best, index = plain_iou(box, other), j
        if best < iou:
            marks += "f"
        elif objects[image][index][1]:
            marks += "-"
        else:
            marks += "f" if (image, index) in reached else "h"
            reached.add((image, index))
    return marks, sum(not hard for image in objects for _, hard in image)


def plain_ap(marks: str, objects: int, metric: str) -> float:
    """Return the average precision from the marks, by the definition."""
    if objects == 0:
        return math.nan
    points, hits, counted = [], 0, 0
    for mark in marks:
        if mark == "-":
            continue
        hits, counted = hits + (mark == "h"), counted + 1
        points.append((hits / objects, hits / counted))
    if metric == "voc07":
        highest = (max([p for r, p in points if r >= 0.1 * t], default=0.0) for t in range(11))
        return sum(highest) / 11
    area, last = 0.0, 0.0
    for i, (r, _) in enumerate(points):
        area += (r - last) * max(p for _, p in points[i:])
        last = r
    return area


@pytest.mark.parametrize("iou", [Fraction(1, 2), Fraction(3, 4)])
def test_random_cases_equal_the_plain_evaluator(iou: Fraction) -> None:
    generator = np.random.default_rng(7)
    kinds: dict[str, int] = dict.fromkeys("hf-", 0)
    empty = exact = 0
    for _ in range(200):
        classes = int(generator.integers(1, 4))
        detections, truths, names = random_case(generator, int(generator.integers(1, 7)), classes)
        for metric in ("voc07", "voc10"):
            result = voc_ap(detections, truths, names, metric, float(iou))
            expected = []
            for label, name in enumerate(names):
                marks, objects = plain_marks(detections, truths, label, iou)
                expected.append(plain_ap(marks, objects, metric))
                assert result.per_class[name] == pytest.approx(expected[-1], abs=1e-12, nan_ok=True)
                for mark in marks:
                    kinds[mark] += 1
            present = [ap for ap in expected if not math.isnan(ap)]
            empty += len(present) < len(expected)
            mean = sum(present) / len(present) if present else math.nan
            assert result.map == pytest.approx(mean, abs=1e-12, nan_ok=True)
            assert result.metric == metric
        exact += any(
            plain_iou(inclusive(a), inclusive(b)) == iou
            for d, t in zip(detections, truths, strict=True)
            for a in d.boxes.tolist()
            for b in t.boxes.tolist()
        )
    assert min(kinds.values()) > 100
    assert empty > 20
    assert exact > 100


def test_a_detection_at_exactly_half_is_a_hit() -> None:
    truths = [truth([[0, 0, 10, 10]], [0])]
    for box, ap in (([0, 0, 10, 5], 1.0), ([0, 0, 10, 4.99], 0.0)):
        assert voc_ap([found([box], [0.9], [0], NAMES)], truths, NAMES, "voc10").per_class["cat"] == ap


def test_thresholds_round_as_in_the_devkit() -> None:
    """Three hits of ten objects are a recall of 0.3, less than 3 * 0.1: only thresholds 0, 0.1 and 0.2 are reached."""
    assert THRESHOLDS[3] == 0.30000000000000004
    assert THRESHOLDS[10] == 1.0
    boxes = [[10 * i, 0, 10 * i + 10, 10] for i in range(10)]
    detections = [found(boxes[:3], [0.9, 0.8, 0.7], [0] * 3, NAMES)]
    assert voc_ap(detections, [truth(boxes, [0] * 10)], NAMES).per_class["cat"] == pytest.approx(3 / 11)


def test_an_object_is_found_once_and_difficult_ones_never() -> None:
    truths = [truth([[0, 0, 10, 10], [20, 0, 30, 10]], [0, 0], [False, True])]
    boxes = [[20, 0, 30, 10], [20, 0, 30, 10], [0, 0, 10, 10], [0, 0, 10, 9]]
    detections = [found(boxes, [0.9, 0.8, 0.7, 0.6], [0] * 4, NAMES)]
    recall, precision, scores = precision_recall(detections, truths, NAMES, "cat")
    assert recall.tolist() == [1, 1]
    assert precision.tolist() == [1, 0.5]
    assert scores.tolist() == pytest.approx([0.7, 0.6])
    result = voc_ap(detections, truths, NAMES)
    assert result.per_class["cat"] == 1
    assert math.isnan(result.per_class["dog"])
    assert result.map == 1


def test_empty_inputs() -> None:
    nothing = found([], [], [], NAMES)
    assert math.isnan(voc_ap([], [], NAMES).map)
    assert math.isnan(voc_ap([nothing], [truth([], [])], NAMES).map)
    assert voc_ap([nothing], [truth([[0, 0, 4, 5]], [1])], NAMES).per_class["dog"] == 0
    false = found([[0, 0, 4, 5]], [0.5], [0], NAMES)
    assert math.isnan(voc_ap([false], [truth([], [])], NAMES).map)
    assert math.isnan(voc_ap([false], [truth([[0, 0, 4, 5]], [0], [True])], NAMES).map)
    assert average_precision(np.empty(0), np.empty(0), "voc10") == 0


def test_wrong_inputs_are_refused() -> None:
    item, objects = found([], [], [], NAMES), truth([], [])
    with pytest.raises(ValueError, match="expected detections of 2 images, one per ground truth, got 1"):
        voc_ap([item], [objects, objects], NAMES)
    with pytest.raises(ValueError, match="expected detections of the classes dog, cat, got cat, dog"):
        voc_ap([item], [objects], ("dog", "cat"))
    with pytest.raises(ValueError, match=r"expected ground truth labels in \[0, 2\), got \[2\]"):
        voc_ap([item], [truth([[0, 0, 1, 1]], [2])], NAMES)
    with pytest.raises(ValueError, match="expected one of the metrics voc07, voc10, got voc12"):
        voc_ap([item], [truth([[0, 0, 1, 1]], [1])], NAMES, "voc12")
    with pytest.raises(ValueError, match="expected one of the classes cat, dog, got cow"):
        precision_recall([item], [objects], NAMES, "cow")


def load_toyexample(folder: Path) -> tuple[list[Detections], list[GroundTruth], tuple[str, ...]]:
    names = ("cat",)
    detections, truths = [], []
    for path in sorted((folder / "gts_vocpascal_format").glob("*.xml")):
        objects = read_voc(path).objects
        cats = [item for item in objects if item.name == "cat"]
        truths.append(truth([item.box for item in cats], [0] * len(cats), [item.difficult for item in cats]))
        lines = (folder / "dets_classname_abs_xyx2y2" / f"{path.stem}.txt").read_text().splitlines()
        rows = sorted(([float(v) for v in line.split()[1:]] for line in lines if line), key=lambda row: -row[0])
        boxes = [[x1 - 1, y1 - 1, x2, y2] for _, x1, y1, x2, y2 in rows]
        detections.append(found(boxes, [row[0] for row in rows], [0] * len(rows), names))
    return detections, truths, names


@pytest.mark.parametrize(
    ("iou", "metric", "percent"),
    [(0.5, "voc07", 88.64), (0.5, "voc10", 89.58), (0.75, "voc07", 49.24), (0.75, "voc10", 50.97)],
)
def test_the_example_of_ten_photos(shared_data: Path, iou: float, metric: str, percent: float) -> None:
    folder = shared_data / "evalcases" / "toyexample"
    if not folder.is_dir():
        pytest.skip(f"needs the evaluators' cases in {folder}")
    assert round(100 * voc_ap(*load_toyexample(folder), metric, iou).map, 2) == percent


def test_a_large_set_takes_seconds() -> None:
    generator = np.random.default_rng(0)
    names = tuple(f"class{k}" for k in range(20))
    detections, truths = [], []
    for _ in range(2000):
        labels, corners = generator.integers(0, 20, 30), generator.uniform(0, 400, (30, 2))
        boxes = np.concatenate([corners, corners + generator.uniform(10, 100, (30, 2))], axis=1)
        truths.append(truth(boxes[:3] + 2, labels[:3]))
        detections.append(found(boxes, np.sort(generator.random(30))[::-1].copy(), labels, names))
    start = time.perf_counter()
    assert 0 < voc_ap(detections, truths, names).map < 1
    assert time.perf_counter() - start < 10
