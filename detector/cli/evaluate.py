"""Measure a detector, a classifier, or detections made elsewhere: `sppnet evaluate --data voc:ROOT:SPLIT`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .folders import check_writable
from .measuring import Measured, Measures, measure, parse_measures, write_measured
from .models import detect_photos, load_models, open_source, prepare_proposers, single_model

if TYPE_CHECKING:
    from detector.datasets import Dataset

_FOLDER = click.Path(file_okay=False, path_type=Path)
_UNFINISHED = "unfinished.jsonl"


@click.command()
@click.option(
    "--task", type=click.Choice(["detect", "classify"]), default="detect", show_default=True, help="What to measure."
)
@click.option(
    "--model",
    multiple=True,
    default=("voc-lite0",),
    show_default=True,
    metavar="NAME|FILE",
    help="A shipped model or a file; several are combined.",
)
@click.option("--data", multiple=True, required=True, metavar="DATA", help="Annotated photos; may be repeated.")
@click.option(
    "--detections",
    type=click.Path(exists=True, path_type=Path),
    metavar="FILE|FOLDER",
    help="Measure these in place of a model's.",
)
@click.option("--metric", default="voc07", show_default=True, help="voc07, voc10, coco; several with commas.")
@click.option("--iou", default="0.5", show_default=True, help="IoU of a hit for voc07, voc10; several with commas.")
@click.option("--strict", is_flag=True, help="A hit must exceed the IoU, as in the devkit's Python port.")
@click.option(
    "--coco-program",
    type=click.Choice(["pycocotools", "faster-coco-eval"]),
    default="pycocotools",
    show_default=True,
    help="What computes the metric coco.",
)
@click.option("--errors", is_flag=True, help="Say why detections failed, and what each cause costs.")
@click.option("--views", help="With --task classify: see `sppnet classify` [default: as the model was trained].")
@click.option("--side", type=click.IntRange(1), help="With --task classify: pixels of a view's side.")
@click.option("--proposals", metavar="NAME", help="How regions are proposed [default: as the model was trained].")
@click.option("--out", type=_FOLDER, help="Folder for numbers, detections and a report [default: print only].")
@click.option(
    "--export", type=click.Choice(["comp3", "comp4"]), help="Write VOC's files into this folder of --out, too."
)
@click.option("--cache", type=_FOLDER, help="Folder where proposals are kept for other evaluations [default: none].")
@click.option("--interval/--no-interval", default=True, help="Print how far voc07 and voc10 may be trusted.")
@click.option(
    "--engine", default="auto", show_default=True, help="How it computes: eager, onednn, ... [detector.engines]"
)
@click.option("--device", default="cpu", show_default=True, help="Where the layers run: cpu, cuda, cuda:1, ...")
@click.option("--threads", type=click.IntRange(1), help="Processor cores to use [default: all].")
@click.pass_context
def evaluate(
    context: click.Context,
    task: str,
    model: tuple[str, ...],
    data: tuple[str, ...],
    detections: Path | None,
    metric: str,
    iou: str,
    strict: bool,
    coco_program: str,
    errors: bool,
    views: str | None,
    side: int | None,
    proposals: str | None,
    out: Path | None,
    export: str | None,
    cache: Path | None,
    interval: bool,
    engine: str,
    device: str,
    threads: int | None,
) -> None:
    """Detect objects in annotated photos, or read detections made elsewhere, and measure average precision.

    DATA is voc:ROOT:SPLIT, where ROOT holds JPEGImages, Annotations and ImageSets/Main/SPLIT.txt, or
    coco:JSON:IMAGES. Several are evaluated as one list of photos. Classes are matched by name (airplane is
    aeroplane), and objects of classes that the model does not have are ignored.

    Several --model that know the same classes work together: each scores all proposals, and suppression chooses among
    what all of them found, by the settings of the first. They are given the same proposals, or each its own kind if
    they were trained with different ones.

    --detections is a COCO results JSON, a folder of VOC's compN_det_SPLIT_CLASS.txt, or a detections.json of this
    program. The classes are then those of DATA, or those of --model if it is named, and the photos need not be there.

    voc07 is the 11-point average precision at IoU 0.5, voc10 the area under the whole curve, both exactly as the VOC
    devkit; coco the mean over IoU 0.50 to 0.95 by COCO's own program, which gets the file itself if DATA is one COCO
    file. The interval is where 95 % of the means lie if photos are drawn again at random.

    --errors puts every false or missed detection down to one cause (no proposal, low score, regression, suppressed;
    localisation, class, duplicate, background) and says how much mean average precision each cause costs.

    --out gets metrics.json, {METRIC: {"map": number, "per_class": {class: number}, ...}}, report.html with its
    plots, errors.json with --errors, and detections.json, a list in COCO's results format. If DATA is one COCO file
    that lists every class, image_id and category_id are that file's own, so pycocotools can load them with it. Else
    image_id is the folder and file name of the photo, and category_id counts the classes from 1. Earlier results there
    are replaced when all is measured. An evaluation with --out that was stopped is continued by the same command.

    --task classify measures what a classifier says of whole photos, by default voc-lite0-classifier: voc07 and voc10 if
    photos show several classes (VOC's classification task), else top1 and top5. DATA is as for `sppnet train --task
    classify`; --out gets metrics.json and scores.json.

    \b
    sppnet evaluate --data voc:VOC2007:test --errors --out runs/test
    sppnet evaluate --model runs/toy/model.safetensors --data voc:data/toy:test --metric voc07,coco --out runs/toy/test
    sppnet evaluate --detections results/VOC2007/Main --data voc:VOC2007:test --metric voc07 --iou 0.5,0.75
    """
    from .evaluate_classifier import check_task
    from .options import check_device, use_threads

    check_task(context, task)
    named = context.get_parameter_source("model") == click.core.ParameterSource.COMMANDLINE
    if task == "classify":
        chosen = context.get_parameter_source("metric") == click.core.ParameterSource.COMMANDLINE
        asked_for = (data, metric if chosen else None, (views, side), out, interval)
        one = single_model(model, "with --task classify") if named else None
        _classify(one, (check_device(device), engine), threads, asked_for)
        return
    asked = parse_measures(metric, iou, strict, coco_program, interval)
    if export and out is None:
        raise click.UsageError("--export: expected --out, the folder to write into, got none")
    check_device(device)
    for folder, option in ((out, "--out"), (cache, "--cache")):
        if folder is not None:
            check_writable(folder, option)
    cores = use_threads(threads)
    if detections is not None:
        one = single_model(model, "with --detections") if named else None
        measured, dataset = _measure_file(detections, data, one, asked, errors)
        facts = [("Detections", str(detections)), ("Data", ", ".join(data))]
    else:
        measured, dataset = _measure_model(
            _Run(model, engine, device, cores, proposals), data, asked, errors, (cache, out)
        )
        facts = [("Model" if len(model) == 1 else "Models", ", ".join(model)), ("Data", ", ".join(data))]
    if out is not None:
        facts += [("Photos", str(len(dataset))), ("Objects", str(sum(map(len, dataset.truths))))]
        _write(measured, dataset, facts, out, export)


def _classify(model: str | None, where: tuple[str, str], threads: int | None, asked: Any) -> None:
    """Measure a classifier. where: device and engine. asked: the other arguments of `evaluate_classifier`."""
    from detector.classifier_files import load_classifier

    from .classify import DEFAULT
    from .evaluate_classifier import evaluate_classifier
    from .options import use_threads

    if asked[3] is not None:
        check_writable(asked[3], "--out")
    use_threads(threads)
    evaluate_classifier(load_classifier(model or DEFAULT, *where), *asked)


@dataclass(frozen=True, slots=True)
class _Run:
    """Hold how models are run."""

    models: tuple[str, ...]
    engine: str
    device: str
    cores: int
    proposals: str | None


def _open(data: Sequence[str], class_names: tuple[str, ...] | None, photos: bool = True) -> Dataset:
    from detector.datasets import open_datasets

    dataset = open_datasets(data, class_names, exact=True, photos=photos)
    ignored = f" ({dataset.ignored} of other classes are ignored)" if dataset.ignored else ""
    click.echo(f"{len(dataset)} images, {sum(map(len, dataset.truths))} objects{ignored}", err=True)
    return dataset


def _measure_file(
    path: Path, data: Sequence[str], model: str | None, asked: Measures, errors: bool
) -> tuple[Measured, Dataset]:
    """Measure detections that a file or a folder holds."""
    from detector.checkpoints import load_detector
    from detector.detection_files import read_coco_rows, read_detections

    from .failing import explain

    dataset = _open(data, load_detector(model).class_names if model else None, photos=False)
    found = read_detections(path, dataset)
    own_ids = dataset.coco_file is not None and dataset.category_ids is not None
    rows = read_coco_rows(path) if own_ids and path.is_file() and "coco" in asked.metrics else None
    measured = measure(found, dataset, asked, rows)
    if errors:
        report, pictures = explain(found, dataset, asked.rules, None)
        measured = replace(measured, errors=report, pictures=pictures)
    return measured, dataset


def _measure_model(
    run: _Run, data: Sequence[str], asked: Measures, errors: bool, folders: tuple[Path | None, Path | None]
) -> tuple[Measured, Dataset]:
    """Detect and measure. folders: where proposals are kept and where results go."""
    from .failing import explain

    cache, out = folders
    net = load_models(run.models, run.device, run.engine)
    proposer = prepare_proposers(net, run.proposals, run.cores)
    dataset = _open(data, net.class_names)
    source = open_source(proposer, cache, dataset.samples)
    try:
        found = detect_photos(net, dataset.samples, proposer, source, out / _UNFINISHED if out else None)
        measured = measure(found, dataset, asked)
        if errors:
            report, pictures = explain(found, dataset, asked.rules, (net, source))
            measured = replace(measured, errors=report, pictures=pictures)
    except KeyboardInterrupt:
        click.echo("stopped; the same command continues" if out else "stopped; with --out it could continue", err=True)
        raise
    return measured, dataset


def _write(
    measured: Measured, dataset: Dataset, facts: Sequence[tuple[str, str]], out: Path, export: str | None
) -> None:
    """Write all results; metrics.json, the last, says that the evaluation is whole."""
    if export:
        from detector.detection_files import write_voc_results

        write_voc_results(measured.detections, dataset, out / export, export)
    names = write_measured(measured, dataset, facts, out)
    (out / _UNFINISHED).unlink(missing_ok=True)
    click.echo(f"written: {', '.join(str(out / name) for name in [*names, *([export] if export else [])])}")
