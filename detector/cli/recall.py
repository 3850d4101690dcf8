"""Measure proposals side by side: `sppnet recall --data voc:ROOT:SPLIT --proposals a,b,c`."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .folders import check_writable
from .interrupts import held_back
from .progress import compile_kernels, prepare_proposer, progress_bar

if TYPE_CHECKING:
    from torch import Tensor

    from detector.datasets import Dataset, Sample
    from detector.journal import Journal
    from proposals.recall import Coverage
    from proposals.store import ProposalStore
    from proposals.structures import Proposer

_UNFINISHED = "unfinished"
_SHOWN = (0.5, 0.7, 0.9)


@click.command()
@click.option("--data", multiple=True, required=True, metavar="DATA", help="Annotated photos; may be repeated.")
@click.option("--proposals", default="fast", show_default=True, metavar="NAMES", help="Proposers, with commas.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder for recall.json and plots.")
@click.option("--threads", type=click.IntRange(1), help="Processor cores to use [default: all].")
def recall(data: tuple[str, ...], proposals: str, out: Path | None, threads: int | None) -> None:
    """Measure how many annotated objects proposals cover, and how long they take.

    DATA is voc:ROOT:SPLIT or coco:JSON:IMAGES; NAMES are those of `sppnet propose`. Every photo is given to each of
    them in turn, so that all run under the same conditions; one call before the first is not counted. Objects marked
    difficult are left out.

    The first table says for each how many boxes an image has in the mean, the median of seconds per image without
    reading the file, recall in percent at IoU 0.5, 0.7 and 0.9 with all boxes, the average best overlap (ABO) and its
    mean over classes (MABO). The second has recall at IoU 0.5 with the first 100, 300, 1000 and 2000 boxes, and with
    as many of the same boxes in random order: the mean of five orders, which shows what the ranking is worth. The
    third has ABO of each class.

    --out gets recall.json with all of this and the curves, recall_iou.png and recall_boxes.png. With --out, the same
    command continues what was stopped or killed.

    \b
    sppnet recall --data voc:VOC2007:test
    sppnet recall --data voc:VOC2007:test --proposals fast,edgeboxes,selectivesearch,windows --out runs/recall
    """
    from detector.datasets import open_datasets

    from .options import use_threads

    names = [name.strip() for name in proposals.split(",")]
    if len(set(names)) < len(names):
        raise click.UsageError(f"--proposals: expected every name once, got {proposals}")
    if out is not None:
        check_writable(out, "--out")
    cores = use_threads(threads)
    proposers = {name: prepare_proposer(name, cores, pyramid=False) for name in names}
    dataset = open_datasets(data)
    if not any(bool((~truth.difficult).any()) for truth in dataset.truths):
        raise click.UsageError(f"{' '.join(data)}: expected objects that are not difficult, got none")
    objects = sum(int((~truth.difficult).sum()) for truth in dataset.truths)
    click.echo(f"{len(dataset)} images, {objects} objects that are not difficult", err=True)
    for proposer in proposers.values():
        compile_kernels(proposer)
    with tempfile.TemporaryDirectory(prefix="sppnet-recall-") as beside:
        folder = Path(beside) if out is None else out / _UNFINISHED
        try:
            race = _race(proposers, dataset.samples, folder)
        except KeyboardInterrupt:
            what = "the same command continues" if out else "with --out it could continue"
            click.echo(f"stopped; {what}", err=True)
            raise
        found = {name: _measure(race, name, dataset) for name in names}
        click.echo(_tables(found, race.seconds))
        if out is not None:
            _write(found, race.seconds, out)


@dataclass(frozen=True, slots=True, eq=False)
class _Race:
    """Hold the boxes of every proposer on disk, and its seconds for every image."""

    stores: Mapping[str, ProposalStore]
    seconds: dict[str, list[float]]


def _race(proposers: Mapping[str, Proposer], samples: Sequence[Sample], folder: Path) -> _Race:
    """Give every image to each proposer in turn, beginning with another one each time; continue a stopped race."""
    from detector.features import settings_key
    from detector.images import read_image
    from detector.journal import Journal
    from proposals.store import ProposalStore

    work = {"proposers": {name: dict(p.settings) for name, p in proposers.items()}, "images": _sizes(samples)}
    journal = Journal(folder / "seconds.jsonl", settings_key(work))
    race = _Race({name: ProposalStore(folder / "proposals", p) for name, p in proposers.items()}, {})
    race.seconds.update({name: [] for name in proposers})
    names, warm = list(proposers), False
    with progress_bar(len(samples), "proposing", "image") as bar, held_back() as check:
        for number, sample in enumerate(samples):
            turn = names[number % len(names) :] + names[: number % len(names)]
            missing = [name for name in turn if not _is_done(race.stores[name], journal, (name, sample))]
            if missing:
                image = read_image(sample.path)
                for name in () if warm else names:
                    proposers[name](image, sample.path)
                warm = True
                for name in missing:
                    check()
                    _propose(race.stores[name], journal, (name, sample), image)
            for name in names:
                race.seconds[name].append(journal.items[f"{name} {sample.image_id}"])
            bar.update(1)
    return race


def _is_done(store: ProposalStore, journal: Journal, work: tuple[str, Sample]) -> bool:
    """Tell whether an image was measured before and its boxes are there: a power cut may have lost them."""
    name, sample = work
    return f"{name} {sample.image_id}" in journal.items and store.load(sample.image_id) is not None


def _propose(store: ProposalStore, journal: Journal, work: tuple[str, Sample], image: Tensor) -> None:
    """Propose regions of one image and write down boxes, then seconds."""
    from proposals.store import save_proposals

    name, sample = work
    start = time.perf_counter()
    found = store.proposer(image, sample.path)
    seconds = time.perf_counter() - start
    save_proposals(store.path(sample.image_id), found)
    journal.add(f"{name} {sample.image_id}", seconds)


def _sizes(samples: Sequence[Sample]) -> list[list[Any]]:
    """Return what tells the images of two runs apart."""
    return [[sample.image_id, str(sample.path), sample.path.stat().st_size] for sample in samples]


def _measure(race: _Race, name: str, dataset: Dataset) -> Coverage:
    """Measure the boxes of one proposer without difficult objects."""
    from proposals.recall import measure_coverage

    found = [race.stores[name].load(sample.image_id) for sample in dataset]
    if any(one is None for one in found):
        raise ValueError(f"{race.stores[name].folder}: expected boxes of every image, got a damaged file; remove it")
    easy = [~truth.difficult for truth in dataset.truths]
    truths = [truth.boxes[kept] for truth, kept in zip(dataset.truths, easy, strict=True)]
    labels = [truth.labels[kept] for truth, kept in zip(dataset.truths, easy, strict=True)]
    return measure_coverage([one for one in found if one is not None], truths, labels, dataset.class_names)


def _tables(found: Mapping[str, Coverage], seconds: Mapping[str, list[float]]) -> str:
    """Return the table of proposers, that of few boxes, and that of classes."""
    from proposals.recall import COUNTS

    rows = [["proposals", "boxes", "seconds", *(f"IoU {iou}" for iou in _SHOWN), "ABO", "MABO"]]
    early = [["recall at IoU 0.5", *(f"first {count}" for count in COUNTS), *(f"random {count}" for count in COUNTS)]]
    for name, one in found.items():
        row = [name, f"{one.boxes:.0f}", f"{statistics.median(seconds[name]):.3f}"]
        row += [f"{100 * one.recall[iou]:.1f}" for iou in _SHOWN]
        rows.append([*row, f"{one.abo:.3f}", f"{one.mabo:.3f}"])
        by_count = [one.recall_by_count, one.recall_shuffled]
        early.append([name, *(f"{100 * recalls[count]:.1f}" for recalls in by_count for count in COUNTS)])
    classes = [["ABO of class", *found]]
    for label in next(iter(found.values())).abo_per_class:
        classes.append([label, *(f"{one.abo_per_class[label]:.3f}" for one in found.values())])
    return "\n\n".join(map(_align, (rows, early, classes)))


def _align(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(text.rjust(w) for text, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _write(found: Mapping[str, Coverage], seconds: Mapping[str, list[float]], out: Path) -> None:
    """Write the numbers and the plots, then forget the boxes."""
    import shutil

    from detector.files import write_json
    from detector.plots import plot_curves

    report = {name: {"seconds": statistics.median(seconds[name]), **one.to_dict()} for name, one in found.items()}
    by_iou = {name: (list(one.recall), list(one.recall.values())) for name, one in found.items()}
    plot_curves(by_iou, "IoU (recall with all boxes)", out / "recall_iou.png")
    by_count = {name: (list(one.curve), list(one.curve.values())) for name, one in found.items()}
    plot_curves(by_count, "number of boxes, best first (recall at IoU 0.5)", out / "recall_boxes.png")
    write_json(out / "recall.json", report)
    shutil.rmtree(out / _UNFINISHED)
    click.echo(f"\nwritten: {out / 'recall.json'}, {out / 'recall_iou.png'}, {out / 'recall_boxes.png'}")
