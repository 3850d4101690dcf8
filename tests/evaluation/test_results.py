"""Test the common entrance of the evaluators, the JSON and the table."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from detector.evaluation import COCO_STATS, METRICS, check_metrics, coco_ap, evaluate, format_table, to_json, voc_ap
from tests.evaluation.cases import found, random_case, truth

NAMES = ("cat", "diningtable")


def test_evaluate_measures_by_every_metric() -> None:
    detections, truths, names = random_case(np.random.default_rng(1), 20, 3)
    results = evaluate(detections, truths, names, ["coco", "voc07", "voc10", "voc07"])
    assert list(results) == ["coco", "voc07", "voc10"]
    assert results["voc10"] == voc_ap(detections, truths, names, "voc10")
    assert results["coco"].stats == pytest.approx(coco_ap(detections, truths, names).stats, nan_ok=True)
    assert check_metrics(list(METRICS)) == list(METRICS)


@pytest.mark.parametrize(("metrics", "got"), [(["voc07", "voc12"], "'voc12'"), ([], "none"), ([""], "''")])
def test_unknown_metrics_are_refused(metrics: list[str], got: str) -> None:
    with pytest.raises(ValueError, match=f"expected metrics among voc07, voc10, coco, got {got}"):
        evaluate([], [], NAMES, metrics)


def test_json_and_table_of_a_known_case() -> None:
    box = [[0, 0, 10, 20]]
    results = evaluate([found(box, [0.9], [0], NAMES)], [truth(box, [0])], NAMES, ["voc07", "coco"])
    report = json.loads(json.dumps(to_json(results), allow_nan=False))
    assert report["voc07"] == {"map": 1.0, "per_class": {"cat": 1.0, "diningtable": None}}
    assert list(report["coco"]["stats"]) == list(COCO_STATS)
    assert report["coco"]["stats"]["APl"] is None
    assert report["coco"]["map"] == report["coco"]["stats"]["AP"] == pytest.approx(1)
    assert format_table(results).splitlines() == [
        "class         voc07    coco",
        "---------------------------",
        "cat          100.00  100.00",
        "diningtable       -       -",
        "---------------------------",
        "mean         100.00  100.00",
    ]


def test_json_without_ground_truth() -> None:
    results = evaluate([], [], NAMES, ["voc10"])
    assert math.isnan(results["voc10"].map)
    assert to_json(results) == {"voc10": {"map": None, "per_class": {"cat": None, "diningtable": None}}}
    assert format_table(results).splitlines()[-1].split() == ["mean", "-"]
