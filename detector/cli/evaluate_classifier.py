"""Measure a classifier: `sppnet evaluate --task classify --data voc:ROOT:SPLIT`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .interrupts import held_back
from .progress import progress_bar

if TYPE_CHECKING:
    from torch import Tensor

    from detector.classification import Classifier
    from detector.labels import LabelSet

_UNFINISHED = "unfinished-classification.jsonl"
_OF_DETECTING = ("detections", "iou", "strict", "coco_program", "errors", "proposals", "export", "cache")
_OF_CLASSIFYING = ("views", "side")
Look = tuple[str | None, int | None]


def check_task(context: click.Context, task: str) -> None:
    """Raise click.UsageError for options of `sppnet evaluate` that the other task alone has."""
    for name in _OF_CLASSIFYING if task == "detect" else _OF_DETECTING:
        if context.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{name.replace('_', '-')}: expected it without --task {task}, got both")


def metrics_for(dataset: LabelSet) -> tuple[str, ...]:
    """Return the metrics that are usual: average precision of several classes, else accuracy."""
    return ("voc07", "voc10") if dataset.multi_label else ("top1", "top5")


def evaluate_classifier(
    model: Classifier, data: Sequence[str], metric: str | None, look: Look, out: Path | None, interval: bool
) -> None:
    """Classify the images of data sets, and measure. look: views and their side, None as the model was trained.

    metric: names with commas; None for the usual ones. out: gets metrics.json and scores.json.
    """
    import torch

    from detector.evaluation.classification import evaluate_classification, format_classification
    from detector.files import write_json
    from detector.labels import open_labels

    dataset = open_labels(data, model.class_names)
    click.echo(f"{len(dataset)} images", err=True)
    metrics = metrics_for(dataset) if metric is None else tuple(name.strip() for name in metric.split(","))
    labels = dataset.matrix
    # Metrics that do not fit are told before the long work.
    evaluate_classification(torch.zeros(labels.shape), labels, dataset.class_names, metrics, samples=0)
    try:
        scores = score_images(model, dataset, out, look)
    except KeyboardInterrupt:
        click.echo("stopped; the same command continues" if out else "stopped; with --out it could continue", err=True)
        raise
    samples = 1000 if interval else 0
    result = evaluate_classification(scores, labels, dataset.class_names, metrics, samples)
    click.echo(format_classification(result))
    if out is None:
        return
    rows = {s.image_id: [round(v, 6) for v in row] for s, row in zip(dataset, scores.tolist(), strict=True)}
    write_json(out / "scores.json", {"class_names": list(dataset.class_names), "scores": rows})
    write_json(out / "metrics.json", result.to_dict())
    (out / _UNFINISHED).unlink(missing_ok=True)
    click.echo(f"written: {out / 'scores.json'}, {out / 'metrics.json'}")


def score_images(model: Classifier, dataset: LabelSet, out: Path | None, look: Look) -> Tensor:
    """Classify every image: (N, K) scores. With a folder for results, go on where a stopped evaluation was."""
    import torch

    from detector.features import settings_key
    from detector.images import read_image
    from detector.journal import Journal

    work = {"model": model.fingerprint(), "settings": model.settings, "engine": model.engine.name, "look": look}
    journal = Journal(out / _UNFINISHED, settings_key(work)) if out else None
    known = journal.items if journal else {}
    rows = []
    done = sum(str(sample.path) in known for sample in dataset)
    with progress_bar(len(dataset), "classifying", "image", done) as bar, held_back() as check:
        for sample in dataset:
            check()
            row = known.get(str(sample.path))
            if row is None:
                row = model.predict(read_image(sample.path), *look).scores.tolist()
                if journal:
                    journal.add(str(sample.path), row)
                bar.update(1)
            rows.append(row)
    return torch.tensor(rows)
