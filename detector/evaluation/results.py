"""Hold what an evaluator found, and write it as JSON and as a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..structures import Detections, GroundTruth

COCO_STATS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


@dataclass(frozen=True, slots=True)
class Result:
    """Hold the average precision of one metric, in [0, 1].

    map: the mean over the classes that have ground truth, NaN if none has. per_class: AP by class name, NaN without
    ground truth. stats: COCO's twelve numbers in the order of COCO_STATS, NaN where COCO prints -1; else empty.
    """

    map: float
    per_class: dict[str, float]
    metric: str
    stats: tuple[float, ...] = ()


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
    """Return `{METRIC: {"map": number, "per_class": {name: AP}}}`, ready for JSON: NaN becomes None.

    Results of COCO carry `"stats": {"AP": number, "AP50": number, ...}` too.
    """
    report: dict[str, Any] = {}
    for metric, result in results.items():
        per_class = {name: _number(ap) for name, ap in result.per_class.items()}
        report[metric] = {"map": _number(result.map), "per_class": per_class}
        if result.stats:
            report[metric]["stats"] = {k: _number(v) for k, v in zip(COCO_STATS, result.stats, strict=True)}
    return report


def format_table(results: Mapping[str, Result]) -> str:
    """Return a plain table: a row per class, the mean last, a column per metric, AP in per cent, `-` for NaN."""
    names = list(dict.fromkeys(name for result in results.values() for name in result.per_class))
    width = max(len(name) for name in ("class", "mean", *names))
    columns = [(metric, max(6, len(metric)), result) for metric, result in results.items()]
    head = "  ".join([f"{'class':<{width}}", *(f"{metric:>{w}}" for metric, w, _ in columns)])
    rule = "-" * len(head)
    rows = [
        "  ".join([f"{name:<{width}}", *(f"{_percent(r.per_class.get(name, math.nan)):>{w}}" for _, w, r in columns)])
        for name in names
    ]
    mean = "  ".join([f"{'mean':<{width}}", *(f"{_percent(result.map):>{w}}" for _, w, result in columns)])
    return "\n".join([head, rule, *rows, rule, mean])


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _percent(value: float) -> str:
    return f"{100 * value:.2f}" if math.isfinite(value) else "-"
