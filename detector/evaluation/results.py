"""Hold what an evaluator found, and write it as JSON and as a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..structures import Detections, GroundTruth

COCO_STATS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


@dataclass(frozen=True, slots=True)
class Result:
    """Hold the average precision of one metric, in [0, 1].

    map: the mean over the classes that have ground truth, NaN if none has. per_class: AP by class name, NaN without
    ground truth. stats: COCO's twelve numbers in the order of COCO_STATS, NaN where COCO prints -1; else empty.
    recall: by class name, of all detections (COCO: mean over IoUs, 100 detections an image). sizes: the mean for
    `small`, `medium` and `large` objects (up to 32 x 32 pixels, up to 96 x 96, others). iou: the threshold, None where
    there are several. program: what computed it, with its version, if it was not this package.
    """

    map: float
    per_class: dict[str, float]
    metric: str
    stats: tuple[float, ...] = ()
    recall: dict[str, float] = field(default_factory=dict)
    sizes: dict[str, float] = field(default_factory=dict)
    iou: float | None = None
    program: str = ""


def result_name(metric: str, iou: float = 0.5) -> str:
    """Return how a metric at an IoU is called in files and tables: `voc07`, or `voc07@0.75` if it is not 0.5."""
    return metric if iou == 0.5 else f"{metric}@{iou:g}"


def check_lists(detections: Sequence[Detections], truths: Sequence[GroundTruth], class_names: Sequence[str]) -> None:
    """Raise ValueError unless there is one GroundTruth per Detections and all speak of the same classes."""
    if len(detections) != len(truths):
        raise ValueError(f"expected detections of {len(truths)} images, one per ground truth, got {len(detections)}")
    names = tuple(class_names)
    for found in detections:
        if tuple(found.class_names) != names:
            wanted, got = ", ".join(names), ", ".join(found.class_names)
            raise ValueError(f"expected detections of the classes {wanted}, got {got}")
    for truth in truths:
        if len(truth) and not 0 <= int(truth.labels.min()) <= int(truth.labels.max()) < len(names):
            raise ValueError(f"expected ground truth labels in [0, {len(names)}), got {truth.labels.tolist()}")


def to_json(results: Mapping[str, Result]) -> dict[str, Any]:
    """Return `{METRIC: {"map": number, "per_class": {name: AP}, ...}}`, ready for JSON: NaN becomes None.

    `"recall": {"mean": number, "per_class": {name: recall}}` and `"sizes": {"small": mean AP, ...}` follow where they
    are known, and for COCO `"program"` and `"stats": {"AP": number, "AP50": number, ...}`.
    """
    report: dict[str, Any] = {}
    for metric, result in results.items():
        report[metric] = {"map": _number(result.map), "per_class": _numbers(result.per_class)}
        if result.recall:
            report[metric]["recall"] = {"mean": _number(mean(result.recall)), "per_class": _numbers(result.recall)}
        if result.sizes:
            report[metric]["sizes"] = _numbers(result.sizes)
        if result.program:
            report[metric]["program"] = result.program
        if result.stats:
            report[metric]["stats"] = {k: _number(v) for k, v in zip(COCO_STATS, result.stats, strict=True)}
    return report


def format_table(results: Mapping[str, Result]) -> str:
    """Return a plain table: a row per class, a column per metric, AP in per cent, `-` for NaN.

    Below the mean AP stand what is known of the mean recall and of the mean AP by size of the objects.
    """
    names = list(dict.fromkeys(name for result in results.values() for name in result.per_class))
    rows = [(name, [result.per_class.get(name, math.nan) for result in results.values()]) for name in names]
    more = [("mean recall", [mean(result.recall) for result in results.values()])]
    for size in ("small", "medium", "large"):
        more.append((f"mean, {size}", [result.sizes.get(size, math.nan) for result in results.values()]))
    known = [row for row in more if any(math.isfinite(value) for value in row[1])]
    last = [("mean", [result.map for result in results.values()]), *known]
    width = max(len(name) for name, _ in [("class", []), *rows, *last])
    columns = [max(6, len(metric)) for metric in results]
    head = "  ".join([f"{'class':<{width}}", *(f"{name:>{w}}" for name, w in zip(results, columns, strict=True))])
    rule = "-" * len(head)

    def line(row: tuple[str, list[float]]) -> str:
        cells = (f"{_percent(value):>{w}}" for value, w in zip(row[1], columns, strict=True))
        return "  ".join([f"{row[0]:<{width}}", *cells])

    return "\n".join([head, rule, *map(line, rows), rule, *map(line, last)])


def mean(values: Mapping[str, float]) -> float:
    """Return the mean without NaN, NaN if nothing is left."""
    known = [value for value in values.values() if math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan


def _numbers(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: _number(value) for name, value in values.items()}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _percent(value: float) -> str:
    return f"{100 * value:.2f}" if math.isfinite(value) else "-"
