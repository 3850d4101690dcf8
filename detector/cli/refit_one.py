"""Do the work of `sppnet refit`: open all it takes, fill the cache, refit, measure before and after, and write."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .before_after import alarm_lines, ap_lines, count_alarms, count_found, detect_both, found_line, measure_both
from .folders import check_images
from .interrupts import held_back
from .models import open_source
from .progress import prepare_proposer, progress_bar
from .refit_files import check_out, find_examples, replace_row, write_files
from .refit_photos import Photos
from .runs import fill_caches

if TYPE_CHECKING:
    from torch import Tensor

    from detector.class_refitting import NewRow
    from detector.sppnet import SPPNet
    from proposals.structures import Proposer

    from .refit_files import Store


@dataclass(frozen=True, slots=True)
class Options:
    """Hold what the command line says, but for the photos. source: the file of the model."""

    source: Path
    name: str
    out: Path
    cache: Path
    examples: Path | None
    hold: float | None
    score: float | None
    cores: int


def refit_one(options: Options, named: Mapping[str, Sequence[str]]) -> None:
    """Refit a class; write the new model, its examples and its report. named: data and photos, by their options."""
    from detector.checkpoints import read_tensors

    check_out(options.out, [options.source])
    net, label = _open_model(options)
    machines = net.config.detector == "svm"
    _check_kind(machines, options, bool(named["data"]))
    store = _open_store(options) if machines else None
    photos = Photos.open(net, label, named, store is None)
    job = _Job(options, net, label, photos, prepare_proposer(net.config.proposals, 1))
    row = job.refit(store)
    tensors, metadata = read_tensors(options.source)
    changed = replace_row(tensors, net.config.detector, label, row)
    report = job.describe(row)
    for line in _summary(report):
        click.echo(line)
    report |= job.compare(changed)
    written = write_files(options.out, (changed, metadata), store, report)
    click.echo(f"written: {', '.join(map(str, written))}")


def _open_model(options: Options) -> tuple[SPPNet, int]:
    """Load the model and find its class."""
    from detector.checkpoints import load_detector
    from detector.classes import match_classes
    from detector.sppnet import SPPNet

    net = load_detector(options.source)
    if not isinstance(net, SPPNet):
        raise ValueError(f"{options.source}: expected an SPP-net or machines on its layers, got R-CNN")
    labels = match_classes([options.name], net.class_names)
    if options.name not in labels:
        raise click.UsageError(f"--class: expected one of {', '.join(net.class_names)}, got {options.name}")
    least = net.config.min_score
    if options.score is not None and not options.score >= least:  # NaN, too
        raise click.UsageError(f"--score: expected at least {least:g}, below which MODEL detects nothing")
    return net, labels[options.name]


def _check_kind(machines: bool, options: Options, data: bool) -> None:
    """Raise click.UsageError unless the options are those of the kind of model. data: whether --data is given."""
    for option, given in (("--hold", options.hold is not None), ("--data", data)):
        if machines and given:
            raise click.UsageError(f"{option}: expected a softmax model, got one with support vector machines")
    if options.hold is not None and not options.hold < math.inf:
        raise click.UsageError(f"--hold: expected a number of at least 0, got {options.hold:g}")
    if not machines and options.examples is not None:
        raise click.UsageError("--examples: expected a model with support vector machines, got a softmax model")
    if not machines and not data:
        raise click.UsageError("--data: expected the photos that MODEL was trained on, which a softmax model needs")


def _open_store(options: Options) -> Store:
    """Read what the machines of the model learned from."""
    from detector.checkpoints import read_tensors
    from detector.example_files import load_examples

    path = options.examples or find_examples(options.source)
    check_out(options.out, [options.source, path])
    store, origin = load_examples(path)
    run = read_tensors(options.source)[1].get("run", "")
    if origin.run != run:
        raise ValueError(f"{path}: expected the examples of {options.source}, got those of another model")
    return store, origin


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """Hold a refit: the options, the model and its class, the photos and what proposes regions of them."""

    options: Options
    net: SPPNet
    label: int
    photos: Photos
    proposer: Proposer
    seconds: dict[str, float] = field(default_factory=dict)

    def refit(self, store: Store | None) -> NewRow:
        """Fill the cache and refit the class."""
        from detector.class_refitting import Refitting, RowRule
        from detector.reduced import ReducedCaches
        from proposals.store import ProposalStore

        cache, learned = self.options.cache, [*self.photos.new, *self.photos.known]
        boxes = ProposalStore(cache / "proposals", self.proposer)
        caches = ReducedCaches.of(self.net, boxes, cache / "maps")
        check_images(cache, [*learned, *self.photos.check, *self.photos.tested])
        with self._timed("proposals and maps"):
            fill_caches(learned, caches, self.options.cores, "proposals and maps")
        rule = RowRule() if self.options.hold is None else RowRule(self.options.hold)
        with self._timed("mining and fitting"), _watched(len(learned), "mining") as watch:
            refitting = Refitting(self.net, self.label, caches, self.photos.new, watch)
            if store is not None:
                return refitting.refit_machine(*store)
            return refitting.refit_row(self.photos.known, rule)

    def describe(self, row: NewRow) -> dict[str, Any]:
        """Return what was done, ready for JSON."""
        options, photos = self.options, self.photos
        report: dict[str, Any] = {"model": str(options.source), "class": self.net.class_names[self.label]}
        report |= {"new": str(options.out), "kind": self.net.config.detector, "photos": photos.counts()}
        report |= {"mined": row.mined, "positives": row.positives, "known": row.known, "passes": row.passes}
        report["loss"] = None if row.loss is None else list(row.loss)
        report["seconds"] = {**self.seconds, "together": sum(self.seconds.values())}
        return report

    def compare(self, changed: Mapping[str, Tensor]) -> dict[str, Any]:
        """Count false alarms and measure average precision with the old and the new model, and print both."""
        photos, name = self.photos, self.net.class_names[self.label]
        score = self.net.readable_score if self.options.score is None else self.options.score
        both = (self.net, _rebuilt(self.net, changed))
        source = open_source(self.proposer, self.options.cache, [*photos.background, *photos.check, *photos.tested])
        alarms = {}
        for option, samples in (("--background", photos.background), ("--check", photos.check)):
            if samples:
                found = detect_both(both, samples, source, f"detecting in {option}")
                alarms[option.lstrip("-")] = count_alarms(found, self.label, score)
        for line in alarm_lines(alarms, name, score):
            click.echo(line)
        report: dict[str, Any] = {"score": score, "false_alarms": alarms}
        if photos.test is not None:
            found = detect_both(both, photos.tested, source, "detecting in --test")
            report["voc07"] = measure_both(found, photos.test)
            report["found"] = count_found(found, photos.test, self.label, score)
            click.echo(found_line(report["found"], name, score))
            click.echo("\n".join(ap_lines(report["voc07"], name, self.net.config.detector)))
        return report

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] = time.perf_counter() - start


@contextmanager
def _watched(total: int, title: str) -> Iterator[Any]:
    """Yield what is told of photos: it moves a bar and raises KeyboardInterrupt if Ctrl-C was pressed."""
    with progress_bar(total, title, "image") as bar, held_back() as check:

        def watch(count: int) -> None:
            bar.total = max(bar.total, bar.n + count)  # how many passes there will be is not known
            bar.update(count)
            check()

        yield watch


def _rebuilt(net: SPPNet, tensors: Mapping[str, Tensor]) -> SPPNet:
    """Return a detector of the same kind and trunk with the values of a model's file."""
    from detector.checkpoints import load_learned

    other = type(net)(net.config, net.class_names, net.trunk)
    load_learned(other, tensors)
    other.use_engine(net.engine.name)
    return other


def _summary(report: Mapping[str, Any]) -> list[str]:
    photos, seconds = report["photos"], report["seconds"]
    parts = [f"{count} {what}" for what, count in photos.items() if what in ("background", "boxes", "known") and count]
    line = f"photos: {', '.join(parts)}"
    passes = f"{report['passes']} pass{'es' if report['passes'] != 1 else ''}"
    found = f"regions that looked like {report['class']}, mined in {passes}: {report['mined']}"
    new = f", {report['positives']} new positives" if report["positives"] else ""
    split = ", ".join(f"{what} {seconds[what]:.1f}" for what in seconds if what != "together")
    return [line, f"{found}{new}; {report['known']} known regions", f"seconds: {seconds['together']:.1f} ({split})"]
