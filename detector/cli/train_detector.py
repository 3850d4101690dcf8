"""Train a detector, or the layers it begins with: `sppnet train DATA... --out RUN`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .folders import check_images
from .interrupts import held_back
from .progress import prepare_proposer, progress_bar
from .runs import Place, fill_caches, split_names, step_on_disk

if TYPE_CHECKING:
    from detector.batches import RegionBatches
    from detector.config import Config
    from detector.crops import CropCaches
    from detector.datasets import Dataset, Sample
    from detector.preparation import Caches, ProposalCache
    from detector.reduced import ReducedCaches
    from detector.regions import RegionDetector
    from detector.teaching import AnswerCaches
    from detector.training import Metrics, Run

    AnyCaches = AnswerCaches | Caches | CropCaches | ReducedCaches


@dataclass(frozen=True, slots=True)
class Plan:
    """Say what is learned, and from what.

    settings: of the detector. classes: names, comma separated, None for all of the data. start: the detector whose
    layers are used, None to begin with random ones. pretrain: learn from the trunk's own classifier.
    """

    settings: Config
    classes: str | None
    start: str | None
    pretrain: bool


def train_detector(data: Sequence[str], plan: Plan, place: Place) -> Path:
    """Fill the caches, let the layers learn, and return the finished model."""
    if plan.settings.learn == "fc" and (plan.start is None or plan.pretrain):
        raise click.UsageError(
            "learn=fc: expected --start MODEL, whose layers before the pyramid are used, and no --task pretrain"
        )
    if plan.pretrain and (plan.classes or plan.start):
        raise click.UsageError("--task pretrain: expected neither --classes nor --start: it learns ImageNet's classes")
    if plan.pretrain and (plan.settings.detector != "sppnet" or plan.settings.holdout):
        raise click.UsageError("--task pretrain: expected detector=sppnet and holdout=0, got others")
    if plan.settings.detector == "svm":
        raise click.UsageError("detector=svm: expected --detector svm and --start MODEL, got the setting alone")
    dataset = _open(data, plan.classes)
    try:
        return _Job(dataset, plan, place).run(list(data))
    except KeyboardInterrupt:
        click.echo(f"stopped; the same command continues the run in {place.out}", err=True)
        raise


def _open(data: Sequence[str], classes: str | None) -> Dataset:
    """Open the data sets and say what is in them. Raises click.UsageError for a class that has no object."""
    from detector.datasets import open_datasets

    dataset = open_datasets(data, split_names(classes))
    seen = {int(label) for truth in dataset.truths for label in truth.labels}
    absent = [name for label, name in enumerate(dataset.class_names) if label not in seen]
    if absent:
        known = ", ".join(open_datasets(data).class_names)
        raise click.UsageError(f"--classes: expected classes that DATA has ({known}), got {', '.join(absent)}")
    objects = sum(len(truth) for truth in dataset.truths)
    ignored = f" ({dataset.ignored} of other classes are ignored)" if dataset.ignored else ""
    names_text = f"{len(dataset.class_names)} classes: {', '.join(dataset.class_names)}"
    click.echo(f"{len(dataset)} images, {objects} objects{ignored}, {names_text}", err=True)
    return dataset


@dataclass(frozen=True, slots=True)
class _Job:
    """Hold what a run is made from, and how."""

    dataset: Dataset
    plan: Plan
    place: Place

    def run(self, data: list[str]) -> Path:
        """Prepare the caches, train, and draw the losses; return the finished model."""
        from detector.checkpoints import load_detector
        from detector.files import write_json
        from proposals.store import ProposalStore

        out, settings = self.place.out, self.plan.settings
        proposer = prepare_proposer(settings.proposals, 1)  # images run side by side instead
        learned, held_out = self._split()
        start = load_detector(self.plan.start, self.place.device, "eager") if self.plan.start else None
        model = self._build(start)
        _try(model)
        run = self._begin(model, start, dict(proposer.settings))
        record = {"data": data, "classes": model.class_names, "settings": settings.to_dict()}
        record |= {"task": "pretrain"} if self.plan.pretrain else {}
        record |= {"start": self.plan.start} if self.plan.start else {}
        step = step_on_disk(run, record)
        caches = self._caches(model, ProposalStore(self.place.cache / "proposals", proposer))
        if step is None:
            click.echo(f"{out} holds the finished run already", err=True)
        else:
            check_images(self.place.cache, self.dataset.samples)
            title = "proposals, maps and answers" if self.plan.pretrain else "proposals and maps"
            fill_caches(self.dataset.samples, caches, self.place.workers, title)
            write_json(out / "run.json", record)
            _learn(run, self._batches(run.model, caches, learned), step, self.place.save_every)
        if held_out and not (out / "holdout.json").exists():
            _measure(out, held_out, caches, self.place.device)
        if step is not None or not (out / "loss.png").exists():
            _plot(out / "metrics.jsonl", out / "loss.png")
        return out / "model.safetensors"

    def _build(self, start: RegionDetector | None) -> RegionDetector:
        """Make the detector that learns, with the layers of another one if there is one to start from."""
        import torch

        from detector.checkpoints import build_detector
        from detector.pretraining import PretrainedNet, class_names
        from detector.transfer import take_layers

        settings = self.plan.settings
        torch.manual_seed(settings.seed)
        if self.plan.pretrain:
            return PretrainedNet(settings, class_names()).to(self.place.device)
        model = build_detector(settings, self.dataset.class_names).to(self.place.device)
        if start is not None:
            take_layers(model, start)
        if settings.learn == "fc":
            model.use_engine("auto")  # of the layers that do not learn
        return model

    def _begin(self, model: RegionDetector, start: RegionDetector | None, proposals: dict[str, Any]) -> Run:
        """Make a run, whose key stands for the photos' names, their objects, their proposals and where it starts."""
        from detector.features import settings_key
        from detector.pretraining import PretrainingRun
        from detector.training import Run

        rows = [
            (s.image_id, s.truth.boxes.tolist(), s.truth.labels.tolist(), s.truth.difficult.tolist())
            for s in self.dataset
        ]
        key = {"data": json.dumps(rows), "proposals": proposals}
        key |= {"start": start.fingerprint()} if start is not None else {}
        kind = PretrainingRun if self.plan.pretrain else Run
        return kind(model, self.place.out, settings_key(key), start is None)

    def _batches(self, model: RegionDetector, caches: AnyCaches, samples: Sequence[Sample]) -> RegionBatches:
        """Return what a run learns from, step by step."""
        from detector.batches import Batches, PooledBatches
        from detector.crops import CropBatches, CropCaches
        from detector.pretraining import PretrainingBatches
        from detector.reduced import ReducedCaches
        from detector.sppnet import SPPNet
        from detector.teaching import AnswerCaches

        if isinstance(caches, CropCaches):
            return CropBatches(samples, caches, model.config, len(model.class_names))
        if isinstance(caches, ReducedCaches):
            assert isinstance(model, SPPNet)
            return PooledBatches(samples, caches, model)
        if isinstance(caches, AnswerCaches):
            return PretrainingBatches(samples, caches)
        return Batches(samples, caches, model.config, len(model.class_names))

    def _caches(self, model: RegionDetector, boxes: ProposalCache) -> AnyCaches:
        """Return what keeps proposals and maps of photos, or of crops of photos, for what is learned."""
        from detector.crops import CropCaches
        from detector.engines import choose_engine
        from detector.features import FeatureStore
        from detector.preparation import Caches
        from detector.rcnn import RCNN
        from detector.reduced import ReducedCaches
        from detector.sppnet import SPPNet
        from detector.teaching import AnswerCaches, Teacher

        cache = self.place.cache
        if isinstance(model, RCNN):
            model.use_engine("auto")
            return CropCaches(boxes, model, cache / "crops")
        assert isinstance(model, SPPNet)
        if model.config.learn == "fc":
            return ReducedCaches.of(model, boxes, cache / "maps")
        caches = Caches(boxes, FeatureStore(cache / "maps", model.extractor))
        if self.plan.pretrain:
            teacher = Teacher(model.trunk, choose_engine("auto", self.place.device))
            return AnswerCaches(caches, teacher, model.config, cache / "answers")
        return caches

    def _split(self) -> tuple[Sequence[Sample], Sequence[Sample]]:
        """Return the samples to learn from and those held out. Raises ValueError if either has no object."""
        from detector.validation import hold_out

        part, seed = self.plan.settings.holdout, self.plan.settings.seed
        if part == 0:
            return self.dataset.samples, []
        parts = hold_out(self.dataset.samples, part, seed)
        for samples, what in zip(parts, ("to learn from", "held out"), strict=True):
            if not any(len(sample.truth) for sample in samples):
                raise ValueError(f"holdout={part:g}: expected images with objects {what}, got none")
        return parts


def _learn(run: Run, batches: RegionBatches, step: int, save_every: float) -> None:
    """Train from a step on, with a line that tells loss, accuracy on positives and the time left."""
    from detector.training import train

    with progress_bar(batches.steps, "training", "step", step) as bar, held_back() as check:

        def report(metrics: Metrics, _: float) -> None:
            text = f"loss {metrics.loss:.3f}, positives right {metrics.positives_right:.0%}"
            bar.set_postfix_str(text, refresh=False)
            bar.update(metrics.step - bar.n)
            check()

        train(run, batches, report, save_every)


def _measure(out: Path, samples: Sequence[Sample], caches: AnyCaches, device: str) -> None:
    """Measure the finished model on photos that it did not learn from; print the table and write holdout.json."""
    from detector.checkpoints import load_detector
    from detector.crops import CropCaches
    from detector.evaluation import format_table, to_json
    from detector.files import write_json
    from detector.teaching import AnswerCaches
    from detector.validation import measure_held_out

    assert not isinstance(caches, AnswerCaches)  # of a run that holds no photo out
    net = load_detector(out / "model.safetensors", device)
    with progress_bar(len(samples), "held-out photos", "image") as bar:
        boxes = caches.proposals if isinstance(caches, CropCaches) else caches
        results = measure_held_out(net, samples, boxes, bar.update)
    click.echo(format_table(results), err=True)
    write_json(out / "holdout.json", to_json(results))


def _try(model: RegionDetector) -> None:
    """Use every layer once on a tiny image, so that settings that do not fit are told before the long work."""
    import torch

    from proposals.structures import Proposals

    model.predict(torch.zeros(3, 96, 128, dtype=torch.uint8), Proposals(torch.tensor([[8.0, 8.0, 120.0, 88.0]])))


def _plot(metrics: Path, picture: Path) -> None:
    """Draw the losses, unless their file was removed."""
    from detector.plots import plot_losses

    if metrics.exists():
        plot_losses([json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()], picture)
