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
    per_class = {"cat": 1.0, "diningtable": None}
    assert report["voc07"] == {
        "map": 1.0,
        "per_class": per_class,
        "recall": {"mean": 1.0, "per_class": per_class},
        "sizes": {"small": 1.0, "medium": None, "large": None},
    }
    assert report["coco"]["recall"] == {
        "mean": pytest.approx(1),
        "per_class": {"cat": pytest.approx(1), "diningtable": None},
    }
    assert report["coco"]["program"].startswith("pycocotools ")
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
        "mean recall  100.00  100.00",
        "mean, small  100.00  100.00",
    ]


def test_each_iou_is_measured_by_itself() -> None:
    """One box of three quarters of a cat, in all of which it lies: IoU 0.75."""
    detections, truths = [found([[0, 0, 15, 10]], [0.9], [0], NAMES)], [truth([[0, 0, 20, 10]], [0])]
    results = evaluate(detections, truths, NAMES, ["voc07", "voc10"], (0.75, 0.5, 0.8))
    assert list(results) == ["voc07@0.75", "voc07", "voc07@0.8", "voc10@0.75", "voc10", "voc10@0.8"]
    assert [result.map for result in results.values()] == [1, 1, 0, 1, 1, 0]
    assert evaluate(detections, truths, NAMES, ["voc07"], (0.75,), strict=True)["voc07@0.75"].map == 0
    with pytest.raises(ValueError, match=r"expected an IoU above 0 and at most 1, got 1\.5"):
        evaluate(detections, truths, NAMES, ["voc07"], (1.5,))


def test_means_by_size_leave_out_what_is_of_another_size() -> None:
    """A small and a large cat, each found, and a small false alarm of the best score: the large ones' mean is 1."""
    boxes = [[0, 0, 10, 10], [100, 0, 110, 10], [0, 100, 200, 200]]
    result = evaluate([found(boxes, [0.9, 0.8, 0.7], [0] * 3, NAMES)], [truth(boxes[1:], [0, 0])], NAMES, ["voc10"])
    sizes = result["voc10"].sizes
    assert (sizes["small"], sizes["large"]) == (pytest.approx(0.5), pytest.approx(1))
    assert math.isnan(sizes["medium"])
    assert result["voc10"].recall == {"cat": 1.0, "diningtable": pytest.approx(math.nan, nan_ok=True)}


def test_json_without_ground_truth() -> None:
    results = evaluate([], [], NAMES, ["voc10"])
    assert math.isnan(results["voc10"].map)
    nothing = {"cat": None, "diningtable": None}
    recall, sizes = {"mean": None, "per_class": nothing}, dict.fromkeys(("small", "medium", "large"))
    assert to_json(results) == {"voc10": {"map": None, "per_class": nothing, "recall": recall, "sizes": sizes}}
    assert format_table(results).splitlines()[-1].split() == ["mean", "-"]
