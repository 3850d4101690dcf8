"""Test that COCO's numbers are those of COCO's program."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from detector.annotations import read_coco
from detector.evaluation import coco_ap
from detector.structures import Detections, GroundTruth
from tests.evaluation.cases import found, random_case, truth

NAMES = ("cat", "dog")
# printed by the COCO API's own demonstration for these files
OFFICIAL = (
    *(0.5045806987, 0.6969727247, 0.5729816670, 0.5856257209, 0.5193996948, 0.5013978986),
    *(0.3868127796, 0.5936795763, 0.5953529829, 0.6398109626, 0.5664205979, 0.5642905983),
)


def load_fake100(
    folder: Path,
) -> tuple[list[Detections], list[GroundTruth], tuple[str, ...], list[torch.Tensor]]:
    file = folder / "instances_val2014_100.json"
    tables = json.loads(file.read_text())
    names = tuple(row["name"] for row in tables["categories"])
    label = {row["id"]: k for k, row in enumerate(tables["categories"])}
    rows: dict[int, list[dict[str, object]]] = {row["id"]: [] for row in tables["images"]}
    for row in json.loads((folder / "instances_val2014_fakebbox100_results.json").read_text()):
        if row["image_id"] in rows:
            rows[row["image_id"]].append(row)
    detections, truths, areas = [], [], []
    for image_id, annotation in zip(sorted(rows), read_coco(file), strict=True):
        objects = annotation.objects
        labels = [names.index(item.name) for item in objects]
        truths.append(truth([item.box for item in objects], labels, [item.difficult for item in objects]))
        areas.append(torch.tensor([item.area for item in objects], dtype=torch.float64))
        mine = rows[image_id]
        boxes = [[x, y, x + w, y + h] for x, y, w, h in (row["bbox"] for row in mine)]  # type: ignore[misc]
        scores, kinds = [row["score"] for row in mine], [label[row["category_id"]] for row in mine]  # type: ignore[index]
        detections.append(found(boxes, scores, kinds, names))
    return detections, truths, names, areas


def test_the_sample_of_the_coco_api(shared_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shared_data / "evalcases" / "cocoapi_fake100"
    if not folder.is_dir():
        pytest.skip(f"needs the evaluators' cases in {folder}")
    detections, truths, names, areas = load_fake100(folder)
    result = coco_ap(detections, truths, names, areas)
    assert result.stats == pytest.approx(OFFICIAL, abs=1e-9)
    assert result.map == result.stats[0]
    present = [ap for ap in result.per_class.values() if not math.isnan(ap)]
    assert np.mean(present) == pytest.approx(result.map, abs=1e-12)
    by_boxes = coco_ap(detections, truths, names)
    for index in (0, 1, 2, 6, 7, 8):  # those that do not go by size
        assert by_boxes.stats[index] == pytest.approx(OFFICIAL[index], abs=1e-9)
    assert capsys.readouterr().out == ""


def test_perfect_detections_and_classes_without_objects() -> None:
    boxes = [[0, 0, 20, 30], [30, 5, 60, 40]]
    result = coco_ap([found(boxes, [0.9, 0.8], [0, 0], NAMES)], [truth(boxes, [0, 0])], NAMES)
    assert result.per_class["cat"] == result.map == pytest.approx(1)
    assert math.isnan(result.per_class["dog"])
    assert result.metric == "coco"
    assert len(result.stats) == 12
    assert result.stats[3] == pytest.approx(1)  # the first box is small, less than 32 * 32 pixels
    assert math.isnan(result.stats[5])  # none is large


def test_average_over_thresholds() -> None:
    """A box of IoU 0.72 counts at 0.50, 0.55, 0.60, 0.65 and 0.70: five of ten thresholds."""
    result = coco_ap([found([[0, 0, 10, 7.2]], [0.9], [0], NAMES)], [truth([[0, 0, 10, 10]], [0])], NAMES)
    assert result.per_class["cat"] == pytest.approx(0.5)


def test_difficult_objects_are_crowds() -> None:
    """A crowd is neither to be found nor a false positive, however often it is hit."""
    truths = [truth([[0, 0, 20, 20], [30, 0, 60, 40]], [0, 0], [False, True])]
    boxes = [[30, 0, 50, 20], [35, 10, 55, 30], [0, 0, 20, 20]]
    detections = [found(boxes, [0.9, 0.8, 0.7], [0] * 3, NAMES)]
    assert coco_ap(detections, truths, NAMES).map == pytest.approx(1)
    plain = [truth([[0, 0, 20, 20]], [0])]
    assert coco_ap(detections, plain, NAMES).map == pytest.approx(1 / 3, abs=0.01)


def test_empty_inputs() -> None:
    nothing = found([], [], [], NAMES)
    assert math.isnan(coco_ap([], [], NAMES).map)
    assert math.isnan(coco_ap([nothing], [truth([], [])], NAMES).map)
    assert coco_ap([nothing], [truth([[0, 0, 9, 9]], [0])], NAMES).map == 0
    with pytest.raises(ValueError, match="expected detections of 1 images"):
        coco_ap([], [truth([], [])], NAMES)


def test_the_order_of_images_does_not_matter() -> None:
    detections, truths, names = random_case(np.random.default_rng(3), 12, 3)
    # unlike scores: among equals, pycocotools goes by the order of the images
    detections = [
        found(d.boxes.numpy(), np.linspace(0.9, 0.1, len(d)) - 0.001 * i, d.labels.numpy(), names)
        for i, d in enumerate(detections)
    ]
    forth, back = coco_ap(detections, truths, names), coco_ap(detections[::-1], truths[::-1], names)
    assert forth.stats == pytest.approx(back.stats, nan_ok=True)
