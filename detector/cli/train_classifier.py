"""Train a classifier: `sppnet train --task classify DATA... --out RUN`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .folders import check_images
from .interrupts import held_back
from .progress import progress_bar
from .runs import Place, RunFolder, fill_caches, split_names, step_on_disk, test_split

if TYPE_CHECKING:
    from detector.classification import Classifier
    from detector.classifier_config import ClassifierConfig
    from detector.image_training import ImageMetrics
    from detector.labels import LabelledImage, LabelSet


def train_classifier(
    data: Sequence[str], config: Path | None, overrides: Sequence[str], classes: str | None, place: Place
) -> None:
    """Open the images, let the classifier learn, and say what comes next."""
    from detector.classifier_config import ClassifierConfig
    from detector.config import load_settings
    from detector.labels import open_labels

    settings = load_settings(config, overrides, ClassifierConfig)
    dataset = open_labels(data, split_names(classes))
    kind = "any number of classes each" if dataset.multi_label else "one class each"
    text = f"{len(dataset)} images, {kind}, {len(dataset.class_names)} classes: {', '.join(dataset.class_names)}"
    click.echo(text, err=True)
    _check_classes(dataset)
    path = _Job(dataset, settings, place).run(list(data))
    click.echo(path)
    click.echo(_next_step(path, data[0]), err=True)


def _check_classes(dataset: LabelSet) -> None:
    """Raise click.UsageError for a class that no image shows, or that all do: there is nothing to tell apart."""
    counts = (dataset.matrix == 1).sum(dim=0).tolist()
    absent = [name for name, count in zip(dataset.class_names, counts, strict=True) if count == 0]
    if absent:
        raise click.UsageError(f"--classes: expected classes that an image of DATA shows, got {', '.join(absent)}")
    if len(dataset.class_names) < 2 and not (dataset.matrix == -1).any():
        raise click.UsageError(f"DATA: expected images of at least two classes, got only {dataset.class_names[0]}")


@dataclass(frozen=True, slots=True)
class _Job:
    """Hold what a run is made from, and how."""

    dataset: LabelSet
    settings: ClassifierConfig
    place: Place

    def run(self, data: list[str]) -> Path:
        """Train, or find that it is done; return the finished model."""
        import torch

        from detector.classification import Classifier

        learned, held_out = self._split()
        torch.manual_seed(self.settings.seed)
        names, several = self.dataset.class_names, self.dataset.multi_label
        model = Classifier(self.settings, names, several).to(self.place.device)
        model.predict(torch.zeros(3, 96, 128, dtype=torch.uint8))  # settings that do not fit are told at once
        record = {"data": data, "classes": names, "settings": self.settings.to_dict()}
        try:
            if self.settings.learn == "all":
                self._learn_all(model, learned, record)
            else:
                self._learn_head(model, learned, record)
        except KeyboardInterrupt:
            click.echo(f"stopped; the same command continues the run in {self.place.out}", err=True)
            raise
        path = self.place.out / "model.safetensors"
        if held_out and not (self.place.out / "holdout.json").exists():
            _measure(path, self.dataset, held_out, self.place)
        return path

    def _split(self) -> tuple[Sequence[LabelledImage], Sequence[LabelledImage]]:
        """Return the images to learn from and those held out. Raises ValueError if either is none."""
        from detector.validation import hold_out

        if self.settings.holdout == 0:
            return self.dataset.samples, []
        parts = hold_out(self.dataset.samples, self.settings.holdout, self.settings.seed)
        for samples, what in zip(parts, ("to learn from", "held out"), strict=True):
            if not samples:
                raise ValueError(f"holdout={self.settings.holdout:g}: expected images {what}, got none")
        return parts

    def _key(self) -> str:
        """Return digits that stand for the images' names and what they show."""
        from detector.features import settings_key

        rows = [(sample.image_id, sample.labels.tolist()) for sample in self.dataset]
        return settings_key({"data": json.dumps(rows)})

    def _learn_all(self, model: Classifier, samples: Sequence[LabelledImage], record: dict[str, Any]) -> None:
        """Train all layers from the images, with a line that tells loss, accuracy and the time left."""
        from detector.files import write_json
        from detector.image_training import ImageBatches, ImageRun, train_images

        run = ImageRun(model, self.place.out, self._key())
        step = step_on_disk(run, record)
        if step is None:
            click.echo(f"{self.place.out} holds the finished run already", err=True)
            return
        write_json(self.place.out / "run.json", record)
        batches = ImageBatches(samples, self.settings)
        with progress_bar(batches.steps, "training", "step", step) as bar, held_back() as check:

            def report(metrics: ImageMetrics) -> None:
                text = f"side {metrics.side}, loss {metrics.loss:.3f}, right {metrics.right:.0%}"
                bar.set_postfix_str(text, refresh=False)
                bar.update(metrics.step - bar.n)
                check()

            train_images(run, batches, report, self.place.save_every)

    def _learn_head(self, model: Classifier, samples: Sequence[LabelledImage], record: dict[str, Any]) -> None:
        """Fill the cache with the maps of all images, then let the head learn from them."""
        from detector.classifier_files import save_classifier
        from detector.classifier_training import LookExtractor, MapCache, train_head
        from detector.features import FeatureStore, settings_key
        from detector.files import write_json

        run = RunFolder(self.place.out, settings_key({"data": self._key(), "config": self.settings.to_dict()}))
        if step_on_disk(run, record) is None:
            click.echo(f"{self.place.out} holds the finished run already", err=True)
            return
        folder = self.place.cache / "maps"
        check_images(self.place.cache, self.dataset.samples)
        model.use_engine("auto")
        cache = MapCache(FeatureStore(folder, LookExtractor(model)), model)
        fill_caches(self.dataset.samples, cache, self.place.workers, "maps")
        write_json(self.place.out / "run.json", record)
        with progress_bar(len(samples), "learning", "image") as bar:
            train_head(model, samples, folder, (bar.update, lambda text: bar.set_postfix_str(text)))
        save_classifier(model, self.place.out / "model.safetensors", {"run": run.key})


def _measure(path: Path, dataset: LabelSet, samples: Sequence[LabelledImage], place: Place) -> None:
    """Measure the finished model on images that it did not learn from; print the table and write holdout.json."""
    from dataclasses import replace

    from detector.classifier_files import load_classifier
    from detector.evaluation.classification import evaluate_classification, format_classification
    from detector.files import write_json

    from .evaluate_classifier import metrics_for, score_images

    model = load_classifier(path, place.device)
    held = replace(dataset, samples=tuple(samples))
    scores = score_images(model, held, None, (None, None))
    result = evaluate_classification(scores, held.matrix, held.class_names, metrics_for(held))
    click.echo(format_classification(result), err=True)
    write_json(place.out / "holdout.json", result.to_dict())


def _next_step(model: Path, data: str) -> str:
    """Return the commands that use a finished classifier."""
    name, test = shlex.quote(str(model)), shlex.quote(test_split(data) or "DATA")
    measure = f"sppnet evaluate --task classify --model {name} --data {test}"
    return f"next: {measure}\n   or: sppnet classify PHOTO --model {name}"
