"""Measure detections for `sppnet evaluate`, and write what was found."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from detector.datasets import Dataset
    from detector.evaluation import ErrorReport, Result, Rules
    from detector.evaluation_report import Picture
    from detector.structures import Detections


@dataclass(frozen=True, slots=True)
class Measures:
    """Hold what is asked for. ious, strict: of voc07 and voc10. program: what computes coco."""

    metrics: tuple[str, ...]
    ious: tuple[float, ...]
    strict: bool
    program: str
    interval: bool

    @property
    def rules(self) -> Rules:
        """Return the rules by which errors are explained: the first VOC metric and IoU, else voc07."""
        from detector.evaluation import Rules

        voc = [name for name in self.metrics if name != "coco"]
        return Rules(voc[0] if voc else "voc07", self.ious[0], self.strict)


def parse_measures(metric: str, iou: str, strict: bool, program: str, interval: bool) -> Measures:
    """Read the options. Raises ValueError for an unknown metric and click.UsageError for an IoU that is none."""
    from detector.evaluation import check_metrics

    ious = []
    for word in iou.split(","):
        try:
            ious.append(float(word))
        except ValueError:
            ious.append(math.nan)
        if not 0 < ious[-1] <= 1:
            raise click.UsageError(f"--iou: expected numbers above 0 and at most 1 with commas, got {word.strip()!r}")
    metrics = check_metrics([name.strip() for name in metric.split(",")])
    return Measures(tuple(metrics), tuple(dict.fromkeys(ious)), strict, program, interval)


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """Hold what was measured. results and intervals by the name of the metric; errors and pictures if asked for."""

    detections: Sequence[Detections]
    results: Mapping[str, Result]
    intervals: Mapping[str, tuple[float, float]]
    errors: ErrorReport | None = None
    pictures: Sequence[Picture] = ()


def measure(
    detections: Sequence[Detections], dataset: Dataset, asked: Measures, rows: Sequence[dict[str, Any]] | None = None
) -> Measured:
    """Measure, and print the table. rows: the detections as a COCO file gave them, for COCO's own program."""
    from detector.evaluation import bootstrap_map, evaluate, format_table

    truths, names = dataset.truths, dataset.class_names
    voc = [name for name in asked.metrics if name != "coco"]
    results = {}
    for metric in asked.metrics:
        if metric == "coco":
            results[metric] = _coco(detections, dataset, asked.program, rows)
        else:
            results |= evaluate(detections, truths, names, [metric], asked.ious, asked.strict)
    click.echo(format_table(results))
    if "coco" in results:
        click.echo(f"coco: measured by {results['coco'].program}")
    intervals = {}
    for name in voc if asked.interval and 0.5 in asked.ious and not asked.strict else ():
        low, high = bootstrap_map(detections, truths, names, name)
        if math.isfinite(low):
            intervals[name] = (low, high)
            click.echo(f"{name}: 95 % bootstrap interval of the mean over images {100 * low:.2f} to {100 * high:.2f}")
    return Measured(detections, results, intervals)


def _coco(
    detections: Sequence[Detections], dataset: Dataset, program: str, rows: Sequence[dict[str, Any]] | None
) -> Result:
    """Give COCO's program the file itself if all is from one, else what was read of the files."""
    from detector.evaluation import coco_ap, coco_file_ap

    if dataset.coco_file is None or dataset.category_ids is None:
        return coco_ap(detections, dataset.truths, dataset.class_names, program=program)
    categories: dict[int | str, str] = dict(zip(dataset.category_ids, dataset.class_names, strict=True))
    images = [sample.source_id for sample in dataset if sample.source_id is not None]
    found = coco_rows(detections, dataset) if rows is None else rows
    return coco_file_ap(dataset.coco_file, found, categories, images, program=program)


def coco_rows(detections: Sequence[Detections], dataset: Dataset) -> list[dict[str, Any]]:
    """Return COCO results, with the ids of the data set's COCO file if it has them."""
    rows = []
    for sample, found in zip(dataset, detections, strict=True):
        own = None if dataset.category_ids is None else sample.source_id
        rows += found.to_coco(sample.image_id if own is None else own, dataset.category_ids)
    return rows


def write_measured(measured: Measured, dataset: Dataset, facts: Sequence[tuple[str, str]], out: Path) -> list[str]:
    """Write metrics.json, detections.json, report.html, its plots and, if they were explained, errors.json.

    facts: what the report says of the data and the detector. Returns the files' names.
    """
    from dataclasses import asdict

    from detector.evaluation import to_json
    from detector.evaluation_report import save_plots, write_evaluation_report
    from detector.files import write_json, write_text

    report = to_json(measured.results)
    for name, interval in measured.intervals.items():
        report[name]["interval"] = list(interval)
    write_text(out / "detections.json", json.dumps(coco_rows(measured.detections, dataset)) + "\n")
    names = ["detections.json"]
    findings = _findings(measured, dataset, facts)
    names += [path.name for path in save_plots(findings, out).values()]
    write_evaluation_report(findings, out / "report.html")
    names.append("report.html")
    if measured.errors is not None:
        told = asdict(measured.errors)
        for mistake in told["mistakes"]:
            mistake["image"] = dataset[mistake["image"]].image_id
            mistake["label"] = dataset.class_names[mistake["label"]]
            mistake["overlap"] = mistake["overlap"] if math.isfinite(mistake["overlap"]) else None
        write_text(out / "errors.json", json.dumps(told) + "\n")  # it may hold 100,000 mistakes
        names.append("errors.json")
    write_json(out / "metrics.json", report)
    return ["metrics.json", *names]


def _findings(measured: Measured, dataset: Dataset, facts: Sequence[tuple[str, str]]) -> Any:
    from detector.evaluation.confusion import confusion
    from detector.evaluation.voc import curve, match_all
    from detector.evaluation_report import Findings

    truths, names = dataset.truths, dataset.class_names
    matches = match_all(measured.detections, truths, names)
    curves = {name: curve(m) for name, m in zip(names, matches, strict=True) if m.objects.any()}
    objects = {name: int(m.objects.sum()) for name, m in zip(names, matches, strict=True)}
    programs = {result.program for result in measured.results.values() if result.program}
    more = [("COCO metrics by", ", ".join(sorted(programs)))] if programs else []
    return Findings(
        title="sppnet: evaluation",
        facts=[*facts, *more],
        results=measured.results,
        class_names=names,
        intervals=measured.intervals,
        objects=objects,
        curves=curves,
        confusion=confusion(measured.detections, truths, names),
        errors=measured.errors,
        pictures=measured.pictures,
    )
