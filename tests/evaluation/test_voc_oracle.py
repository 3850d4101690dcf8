"""Compare VOC's average precision with an evaluator that walks through the devkit's steps, one detection at a time."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from detector.evaluation import voc_ap
from detector.structures import Detections, GroundTruth
from tests.evaluation.cases import SIZE, random_boxes

Box = list[float]
CASES = 1000


def inclusive_iou(a: Box, b: Box) -> float:
    """Return the IoU of [x1, y1, x2, y2) boxes in the devkit's way: pixels from 1, the last one included."""
    one, other = [[x1 + 1, y1 + 1, x2, y2] for x1, y1, x2, y2 in (a, b)]
    width = min(one[2], other[2]) - max(one[0], other[0]) + 1
    height = min(one[3], other[3]) - max(one[1], other[1]) + 1
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (one, other)]
    return width * height / (areas[0] + areas[1] - width * height)


def devkit_ap(
    lines: list[tuple[int, float, Box]],
    objects: dict[int, list[tuple[Box, bool]]],
    rule: tuple[str, float, bool],
) -> float:
    """Return AP as VOCevaldet.m and VOCap.m do. lines: image, confidence and box of each, in the order of the file."""
    metric, threshold, strict = rule
    positives = sum(not difficult for listed in objects.values() for _, difficult in listed)
    if positives == 0:
        return math.nan
    taken: set[tuple[int, int]] = set()
    hits, false = [], []
    for image, _, box in sorted(lines, key=lambda line: -line[1]):  # Python's sort is stable, as MATLAB's
        best, place = -math.inf, -1
        for number, (other, _) in enumerate(objects.get(image, [])):
            overlap = inclusive_iou(box, other)
            if overlap > best:
                best, place = overlap, number
        hit = miss = 0
        if best > threshold or (best == threshold and not strict):
            if not objects[image][place][1]:
                hit = int((image, place) not in taken)
                miss = 1 - hit
                taken.add((image, place))
        else:
            miss = 1
        hits.append(hit)
        false.append(miss)
    return average(list(np.cumsum(hits)), list(np.cumsum(false)), positives, metric)


def average(hits: list[int], false: list[int], positives: int, metric: str) -> float:
    """Return VOCap.m's average. Detections on difficult objects move neither sum."""
    points = [(h / positives, h / (h + f) if h + f else 0.0) for h, f in zip(hits, false, strict=True)]
    if metric == "voc07":
        thresholds = [step * 0.1 for step in range(11)]
        return sum(max([p for r, p in points if r >= t], default=0.0) for t in thresholds) / 11
    recalls = [0.0, *(r for r, _ in points), 1.0]
    precisions = [0.0, *(p for _, p in points), 0.0]
    for i in reversed(range(len(precisions) - 1)):
        precisions[i] = max(precisions[i], precisions[i + 1])
    return sum((recalls[i] - recalls[i - 1]) * precisions[i] for i in range(1, len(recalls)))


def near(generator: np.random.Generator, box: list[int]) -> list[int]:
    """Return a box that overlaps a box by exactly 1, 3/4, 1/2 or 1/4 of it."""
    x1, y1, x2, y2 = box
    part = int(generator.integers(1, 5))
    if generator.random() < 0.5:
        return [x1, y1, x2, y1 + (y2 - y1) * part // 4]
    return [x1, y1, x1 + (x2 - x1) * part // 4, y2]


def scene(seed: int) -> tuple[list[Detections], list[GroundTruth], tuple[str, ...]]:
    """Return a few images: scores that tie, IoUs that tie, difficult objects, classes without objects or detections.

    Half of the cases know the places of their detections in a file, in which the images are shuffled.
    """
    generator = np.random.default_rng(seed)
    names = tuple(f"class{k}" for k in range(int(generator.integers(1, 4))))
    found, truths = [], []
    for _ in range(int(generator.integers(1, 6))):
        boxes = random_boxes(generator, int(generator.integers(0, 5)))
        labels = generator.integers(0, len(names), len(boxes))
        difficult = generator.random(len(boxes)) < 0.3
        truths.append(truth(boxes, labels, difficult))
        rows = [near(generator, box) for box in boxes.tolist() for _ in range(int(generator.integers(0, 3)))]
        rows += random_boxes(generator, int(generator.integers(0, 3))).tolist()
        scores = generator.integers(0, 5, len(rows)) / 4
        own = torch.tensor(generator.integers(0, len(names), len(rows)))
        corners = torch.tensor(rows, dtype=torch.float64).reshape(-1, 4)
        found.append(Detections(corners, torch.tensor(scores, dtype=torch.float64), own, SIZE, names))
    if seed % 2:
        places = torch.tensor(generator.permutation(sum(map(len, found))))
        found = [
            replace(d, order=part)
            for d, part in zip(found, places.split([len(d) for d in found]), strict=True)
        ]  # fmt: skip
    return found, truths, names


def truth(boxes: np.ndarray, labels: np.ndarray, difficult: np.ndarray) -> GroundTruth:
    corners = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4)
    return GroundTruth(corners, torch.tensor(labels, dtype=torch.int64), torch.tensor(difficult), SIZE)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("iou", [0.5, 0.75])
def test_random_cases_are_those_of_the_devkit(iou: float, strict: bool) -> None:
    """Half an IoU is reached in one case in a few, so that `>` and `>=` differ."""
    differ = 0
    for seed in range(CASES):
        found, truths, names = scene(seed)
        for metric in ("voc07", "voc10"):
            ours = voc_ap(found, truths, names, metric, iou, strict)
            for label, name in enumerate(names):
                lines = []
                for image, d in enumerate(found):
                    order = d.order if d.order is not None else torch.arange(len(d)) + 1000 * image
                    rows = zip(order.tolist(), d.scores.tolist(), d.boxes.tolist(), d.labels.tolist(), strict=True)
                    lines += [(place, (image, score, box)) for place, score, box, k in rows if k == label]
                objects = {
                    image: [
                        (box, flag)
                        for box, k, flag in zip(t.boxes.tolist(), t.labels.tolist(), t.difficult.tolist(), strict=True)
                        if k == label
                    ]
                    for image, t in enumerate(truths)
                }
                ordered = [line for _, line in sorted(lines, key=lambda line: line[0])]
                expected = devkit_ap(ordered, objects, (metric, iou, strict))
                assert ours.per_class[name] == pytest.approx(expected, abs=1e-12, nan_ok=True), (seed, metric, name)
                other = devkit_ap(ordered, objects, (metric, iou, not strict))
                differ += expected != other and not math.isnan(expected)
    assert differ > 50


def test_the_published_case(shared_data: Path) -> None:
    """Read the files by hand: 10 photos, cats; the coordinates of both are those of VOC, which count from 1."""
    folder = shared_data / "evalcases" / "toyexample"
    found, truths = [], []
    for path in sorted((folder / "gts_vocpascal_format").glob("*.xml")):
        cats = [o for o in ElementTree.parse(path).getroot().iter("object") if o.findtext("name") == "cat"]
        corners = [
            [float(o.findtext(f"bndbox/{key}") or "nan") for key in ("xmin", "ymin", "xmax", "ymax")] for o in cats
        ]
        flags = [o.findtext("difficult") == "1" for o in cats]
        truths.append(
            truth(np.array(corners).reshape(-1, 4) - [1, 1, 0, 0], np.zeros(len(cats)), np.array(flags, bool))
        )
        text = (folder / "dets_classname_abs_xyx2y2" / f"{path.stem}.txt").read_text()
        rows = [list(map(float, line.split()[1:])) for line in text.splitlines() if line.startswith("cat ")]
        table = torch.tensor(rows, dtype=torch.float64).reshape(-1, 5)
        boxes = table[:, 1:] - torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64)
        found.append(Detections(boxes, table[:, 0], torch.zeros(len(rows), dtype=torch.int64), SIZE, ("cat",)))
    printed = {0.5: ("88.64", "89.58"), 0.75: ("49.24", "50.97")}
    for iou, (eleven, area) in printed.items():
        assert f"{100 * voc_ap(found, truths, ('cat',), 'voc07', iou).map:.2f}" == eleven
        assert f"{100 * voc_ap(found, truths, ('cat',), 'voc10', iou).map:.2f}" == area
