"""Measure a detector: `sppnet evaluate --data voc:ROOT:SPLIT`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .folders import check_images, check_writable
from .interrupts import held_back
from .progress import prepare_proposer, progress_bar

if TYPE_CHECKING:
    from detector.datasets import Dataset, Sample
    from detector.regions import RegionDetector
    from detector.structures import Detections
    from proposals.store import ProposalStore
    from proposals.structures import Proposer

_FOLDER = click.Path(file_okay=False, path_type=Path)
_UNFINISHED = "unfinished.jsonl"


@click.command()
@click.option("--model", default="voc-lite0", show_default=True, metavar="NAME|FILE", help="A shipped model or a file.")
@click.option("--data", multiple=True, required=True, metavar="DATA", help="Annotated photos; may be repeated.")
@click.option("--metric", default="voc07", show_default=True, help="voc07, voc10, coco; several with commas.")
@click.option("--proposals", metavar="NAME", help="How regions are proposed [default: as the model was trained].")
@click.option("--out", type=_FOLDER, help="Folder for metrics.json and detections.json [default: print only].")
@click.option("--cache", type=_FOLDER, help="Folder where proposals are kept for other evaluations [default: none].")
@click.option("--interval/--no-interval", default=True, help="Print how far voc07 and voc10 may be trusted.")
@click.option(
    "--engine", default="auto", show_default=True, help="How it computes: eager, onednn, ... [detector.engines]"
)
@click.option("--device", default="cpu", show_default=True, help="Where the layers run: cpu, cuda, cuda:1, ...")
@click.option("--threads", type=click.IntRange(1), help="Processor cores to use [default: all].")
def evaluate(
    model: str,
    data: tuple[str, ...],
    metric: str,
    proposals: str | None,
    out: Path | None,
    cache: Path | None,
    interval: bool,
    engine: str,
    device: str,
    threads: int | None,
) -> None:
    """Detect objects in annotated photos and measure average precision.

    DATA is voc:ROOT:SPLIT, where ROOT holds JPEGImages, Annotations and ImageSets/Main/SPLIT.txt, or
    coco:JSON:IMAGES. Several are evaluated as one list of photos. Classes are matched by name (airplane is
    aeroplane), and objects of classes that the model does not have are ignored.

    voc07 is the 11-point average precision at IoU 0.5, voc10 the area under the whole curve, coco the mean over IoU
    0.50 to 0.95 by pycocotools. The interval is where 95 % of the means lie if photos are drawn again at random.

    --out gets metrics.json, {METRIC: {"map": number, "per_class": {class: number}}}, and detections.json, a list in
    COCO's results format. If DATA is one COCO file that lists every class of the model, image_id and category_id are
    that file's own, so pycocotools can load them with it. Else image_id is the folder and file name of the photo, and
    category_id counts the model's classes from 1. Earlier results there are replaced when all is measured. An
    evaluation with --out that was stopped is continued by the same command.

    \b
    sppnet evaluate --data voc:VOC2007:test
    sppnet evaluate --model runs/toy/model.safetensors --data voc:data/toy:test --metric voc07,coco --out runs/toy/test
    """
    from detector.checkpoints import load_detector
    from detector.datasets import open_datasets
    from detector.evaluation import check_metrics

    from .options import check_device, use_threads

    metrics = check_metrics([name.strip() for name in metric.split(",")])
    check_device(device)
    for folder, option in ((out, "--out"), (cache, "--cache")):
        if folder is not None:
            check_writable(folder, option)
    cores = use_threads(threads)
    net = load_detector(model, device, engine)
    dataset = open_datasets(data, net.class_names)
    proposer = prepare_proposer(proposals or net.config.proposals, cores)
    ignored = f" ({dataset.ignored} of other classes are ignored)" if dataset.ignored else ""
    click.echo(f"{len(dataset)} images, {sum(map(len, dataset.truths))} objects{ignored}", err=True)
    try:
        detections = _detect(net, dataset.samples, proposer, cache, out)
    except KeyboardInterrupt:
        click.echo("stopped; the same command continues" if out else "stopped; with --out it could continue", err=True)
        raise
    report = _measure(detections, dataset, metrics, interval)
    if out is not None:
        _write(report, detections, dataset, out)


def _detect(
    net: RegionDetector, samples: Sequence[Sample], proposer: Proposer, cache: Path | None, out: Path | None
) -> list[Detections]:
    """Detect in every photo; with a folder for results, go on where a stopped evaluation was."""
    from detector.features import settings_key
    from detector.journal import Journal
    from proposals.store import ProposalStore

    store = None
    if cache is not None:
        check_images(cache, samples)
        store = ProposalStore(cache / "proposals", proposer)
    work = {
        "model": net.fingerprint(),
        "settings": net.settings,
        "engine": net.engine.name,
        "proposals": dict(proposer.settings),
    }
    journal = Journal(out / _UNFINISHED, settings_key(work)) if out else None
    done = sum(str(sample.path) in journal.items for sample in samples) if journal else 0
    found = []
    with progress_bar(len(samples), "detecting", "image", done) as bar, held_back() as check:
        for sample in samples:
            check()
            row = journal.items.get(str(sample.path)) if journal else None
            if row is None:
                row = _freeze(_detect_in(net, sample, store or proposer))
                if journal:
                    journal.add(str(sample.path), row)
                bar.update(1)
            found.append(_thaw(row, net.class_names))
    return found


def _detect_in(net: RegionDetector, sample: Sample, source: ProposalStore | Proposer) -> Detections:
    """Detect in one photo. Raises ValueError that names the file if it is damaged."""
    from detector.images import read_image
    from proposals.store import ProposalStore

    image = read_image(sample.path)
    if isinstance(source, ProposalStore):
        proposals = source.get(sample.image_id, image, sample.path)
    else:
        proposals = source(image, sample.path)
    return net.predict(image, proposals)


def _freeze(found: Detections) -> list[Any]:
    """Return detections as plain numbers; every float32 survives exactly."""
    return [found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), list(found.size)]


def _thaw(row: list[Any], class_names: tuple[str, ...]) -> Detections:
    import torch

    from detector.structures import Detections

    boxes = torch.tensor(row[0], dtype=torch.float32).reshape(-1, 4)
    scores, labels = torch.tensor(row[1], dtype=torch.float32), torch.tensor(row[2], dtype=torch.int64)
    return Detections(boxes, scores, labels, (row[3][0], row[3][1]), class_names)


def _measure(detections: list[Detections], dataset: Dataset, metrics: list[str], interval: bool) -> dict[str, Any]:
    """Print the table, and return it as JSON types."""
    from detector.evaluation import bootstrap_map, format_table, to_json
    from detector.evaluation import evaluate as measure

    results = measure(detections, dataset.truths, dataset.class_names, metrics)
    report = to_json(results)
    click.echo(format_table(results))
    for name in metrics:
        if not interval or name == "coco":
            continue
        low, high = bootstrap_map(detections, dataset.truths, dataset.class_names, name)
        if math.isfinite(low):
            report[name]["interval"] = [low, high]
            click.echo(f"{name}: 95 % bootstrap interval of the mean over images {100 * low:.2f} to {100 * high:.2f}")
    return report


def _write(report: dict[str, Any], detections: list[Detections], dataset: Dataset, out: Path) -> None:
    """Write metrics.json and detections.json, with the ids of the data set's COCO file if it has them."""
    from detector.files import write_json, write_text

    rows = []
    for sample, found in zip(dataset, detections, strict=True):
        own = None if dataset.category_ids is None else sample.source_id
        rows += found.to_coco(sample.image_id if own is None else own, dataset.category_ids)
    write_text(out / "detections.json", json.dumps(rows) + "\n")
    write_json(out / "metrics.json", report)
    (out / _UNFINISHED).unlink(missing_ok=True)
    click.echo(f"written: {out / 'metrics.json'}, {out / 'detections.json'}")
