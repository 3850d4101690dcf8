"""Measure detections against ground truth: VOC's average precision, COCO's, and how far they may be trusted."""

from __future__ import annotations

from collections.abc import Sequence

from ..structures import Detections, GroundTruth
from .bootstrap import bootstrap_map
from .coco import PROGRAMS, coco_ap, coco_file_ap
from .errors import ErrorReport, Mistake, Rules, find_errors
from .misses import Candidates
from .results import COCO_STATS, Result, format_table, result_name, to_json
from .voc import precision_recall, voc_ap

METRICS = ("voc07", "voc10", "coco")

__all__ = [
    "COCO_STATS",
    "METRICS",
    "PROGRAMS",
    "Candidates",
    "ErrorReport",
    "Mistake",
    "Result",
    "Rules",
    "bootstrap_map",
    "check_metrics",
    "coco_ap",
    "coco_file_ap",
    "evaluate",
    "find_errors",
    "format_table",
    "precision_recall",
    "result_name",
    "to_json",
    "voc_ap",
]


def check_metrics(names: Sequence[str]) -> list[str]:
    """Return the metrics, each once; raises ValueError if there is none or one is unknown."""
    unknown = [name for name in names if name not in METRICS]
    if unknown or not names:
        raise ValueError(f"expected metrics among {', '.join(METRICS)}, got {', '.join(map(repr, unknown)) or 'none'}")
    return list(dict.fromkeys(names))


def evaluate(
    detections: Sequence[Detections],
    truths: Sequence[GroundTruth],
    class_names: Sequence[str],
    metrics: Sequence[str],
    ious: Sequence[float] = (0.5,),
    strict: bool = False,
) -> dict[str, Result]:
    """Measure the detections of each image, in the order of `truths`, by each of the metrics.

    ious: the IoUs of a hit for voc07 and voc10, each measured by itself; another than 0.5 is told in the result's name
    (`result_name`). strict: whether it must be exceeded. coco has thresholds of its own.
    Raises ValueError for an unknown metric, and if the lists differ in length or speak of other classes.
    """
    results = {}
    for metric in check_metrics(metrics):
        if metric == "coco":
            results[metric] = coco_ap(detections, truths, class_names)
            continue
        for iou in ious:
            results[result_name(metric, iou)] = voc_ap(detections, truths, class_names, metric, iou, strict)
    return results
