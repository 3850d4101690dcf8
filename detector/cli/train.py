"""Train a detector, or a classifier: `sppnet train DATA... --out RUN`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .folders import check_images, check_writable
from .interrupts import held_back
from .progress import prepare_proposer, progress_bar
from .runs import fill_caches, next_step, step_on_disk

if TYPE_CHECKING:
    from detector.config import Config
    from detector.crops import CropCaches
    from detector.datasets import Dataset, Sample
    from detector.preparation import Caches
    from detector.regions import RegionDetector
    from detector.training import Metrics, Run
    from proposals.structures import Proposer

_FOLDER = click.Path(file_okay=False, path_type=Path)


@click.command()
@click.argument("data", nargs=-1, required=True, metavar="DATA...")
@click.option("--out", required=True, type=_FOLDER, metavar="RUN", help="Folder of the run; made if missing.")
@click.option(
    "--task", type=click.Choice(["detect", "classify"]), default="detect", show_default=True, help="What to learn."
)
@click.option("--config", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="YAML file of settings.")
@click.option("--detector", type=click.Choice(["sppnet", "rcnn", "svm"]), help="Kind of detector [default: sppnet].")
@click.option("--start", metavar="NAME|FILE", help="With --detector svm: the detector whose layers are used.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one setting; may be repeated.")
@click.option("--classes", metavar="NAMES", help="Learn these classes, comma separated [default: all of DATA].")
@click.option("--cache", type=_FOLDER, help="Folder of proposals and maps; runs may share it [default: RUN/cache].")
@click.option("--save-every", type=click.FloatRange(0), default=60, show_default=True, help="Seconds between states.")
@click.option("--device", default="cpu", show_default=True, help="Where the layers run: cpu, cuda, cuda:1, ...")
@click.option("--threads", type=click.IntRange(1), help="Processor cores to use [default: all].")
def train(
    data: tuple[str, ...],
    out: Path,
    task: str,
    config: Path | None,
    detector: str | None,
    start: str | None,
    overrides: tuple[str, ...],
    classes: str | None,
    cache: Path | None,
    save_every: float,
    device: str,
    threads: int | None,
) -> None:
    """Train a detector, or a classifier, on annotated photos.

    DATA is voc:ROOT:SPLIT, where ROOT holds JPEGImages, Annotations and ImageSets/Main/SPLIT.txt, or
    coco:JSON:IMAGES, an instances file and the folder of its images. Several are joined by class name; airplane and
    aeroplane, couch and sofa, ... are the same. Objects of other classes than --classes are ignored.

    First, proposals and convolutional maps of all photos are computed and kept in the cache, about 2 MB a photo (7 MB
    for R-CNN); then the layers behind the pyramid learn from them. Both can be stopped at any moment: the same
    command continues with what is on disk, and ends with the same weights. The result is RUN/model.safetensors,
    beside it metrics.jsonl, loss.png and run.json, which tells what the run was made from. The cache may be deleted
    then. With --set holdout=0.1, every tenth photo is left out of learning and the model measured on it:
    RUN/holdout.json.

    --task classify learns what whole photos show, with settings of its own (`detector.classifier_config`). DATA is then
    folder:ROOT, a folder of photos for each class, csv:FILE with the columns path and label, or one of those above.
    The head learns from cached maps behind the frozen trunk, or with --set learn=all all layers from the photos, at
    several sizes.

    --detector svm is the paper's own form: a support vector machine for each class, with hard negatives, on a layer of
    the network that --start names (--set svm_layer=pool5, fc6 or fc7), and ridge regressors of the boxes (--set
    box_regression=ridge, joint or none). It takes minutes from the cache of the run that made the network, and
    continues like any run, but for the regressors, whose minute is done in one go. RUN/examples.safetensors keeps what
    the machines learned from.

    Settings are those of the shipped model unless --config or --set changes them; a wrong name prints all names.

    \b
    sppnet train voc:VOC2007:trainval --out runs/voc
    sppnet train coco:instances.json:images --out runs/mine --set epochs=20
    sppnet train voc:data/toy:train --out runs/toy --config configs/toy.yaml
    sppnet train folder:photos --task classify --out runs/kinds
    sppnet train voc:VOC2007:trainval --detector svm --start voc-lite0 --out runs/svm
    """
    from detector.config import load_config

    from .options import check_device, use_threads

    check_device(device)
    check_writable(out, "--out")
    cache = check_writable(cache or out / "cache", "--cache")
    if task == "classify":
        from .train_classifier import Place, train_classifier

        if detector:
            raise click.UsageError(f"--detector: expected none with --task classify, got {detector}")
        train_classifier(data, config, overrides, classes, Place(out, cache, device, use_threads(threads), save_every))
        return
    if (detector == "svm") != (start is not None):
        raise click.UsageError("--start: expected it together with --detector svm, got one of them")
    if start is not None:
        if classes is not None or device != "cpu":
            raise click.UsageError("--detector svm: expected the classes of --start and the device cpu, got others")
        from .train_machines import train_machines

        path = train_machines(data, start, (config, overrides), (out, cache), use_threads(threads), save_every)
        click.echo(path)
        click.echo(next_step(path, data[0]), err=True)
        return
    settings = load_config(config, [*overrides, *([f"detector={detector}"] if detector else [])])
    workers = use_threads(threads)
    dataset = _open(data, classes)
    proposer = prepare_proposer(settings.proposals, 1)  # images run side by side instead
    job = _Job(dataset, settings, proposer, cache, workers)
    try:
        path = job.run(out, list(data), device, save_every)
    except KeyboardInterrupt:
        click.echo(f"stopped; the same command continues the run in {out}", err=True)
        raise
    click.echo(path)
    click.echo(next_step(path, data[0]), err=True)


def _open(data: Sequence[str], classes: str | None) -> Dataset:
    """Open the data sets and say what is in them. Raises click.UsageError for a class that has no object."""
    from detector.datasets import open_datasets

    names = None if classes is None else [name.strip() for name in classes.split(",")]
    dataset = open_datasets(data, names)
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
    settings: Config
    proposer: Proposer
    cache: Path
    workers: int

    def run(self, out: Path, data: list[str], device: str, save_every: float) -> Path:
        """Prepare the caches, train, and draw the losses; return the finished model."""
        import torch

        from detector.checkpoints import build_detector
        from detector.files import write_json
        from detector.training import Run

        learned, held_out = self._split()
        torch.manual_seed(self.settings.seed)
        model = build_detector(self.settings, self.dataset.class_names).to(device)
        _try(model)
        run = Run(model, out, self._key())
        record = {"data": data, "classes": model.class_names, "settings": self.settings.to_dict()}
        step = step_on_disk(run, record)
        caches = self._caches(model)
        if step is None:
            click.echo(f"{out} holds the finished run already", err=True)
        else:
            self._prepare(caches)
            write_json(out / "run.json", record)
            self._learn(run, caches, learned, step, save_every)
        if held_out and not (out / "holdout.json").exists():
            _measure(out, held_out, caches, device)
        if step is not None or not (out / "loss.png").exists():
            _plot(out / "metrics.jsonl", out / "loss.png")
        return out / "model.safetensors"

    def _caches(self, model: RegionDetector) -> Caches | CropCaches:
        """Return what keeps proposals and maps of photos, or of crops of photos, for this kind of detector."""
        from detector.crops import CropCaches
        from detector.features import FeatureStore
        from detector.preparation import Caches
        from detector.rcnn import RCNN
        from detector.sppnet import SPPNet
        from proposals.store import ProposalStore

        boxes = ProposalStore(self.cache / "proposals", self.proposer)
        if isinstance(model, RCNN):
            model.use_engine("auto")
            return CropCaches(boxes, model, self.cache / "crops")
        assert isinstance(model, SPPNet)
        return Caches(boxes, FeatureStore(self.cache / "maps", model.extractor))

    def _key(self) -> str:
        """Return digits that stand for the photos' names, their objects and their proposals."""
        from detector.features import settings_key

        rows = [
            (s.image_id, s.truth.boxes.tolist(), s.truth.labels.tolist(), s.truth.difficult.tolist())
            for s in self.dataset
        ]
        return settings_key({"data": json.dumps(rows), "proposals": dict(self.proposer.settings)})

    def _split(self) -> tuple[Sequence[Sample], Sequence[Sample]]:
        """Return the samples to learn from and those held out. Raises ValueError if either has no object."""
        from detector.validation import hold_out

        if self.settings.holdout == 0:
            return self.dataset.samples, []
        parts = hold_out(self.dataset.samples, self.settings.holdout, self.settings.seed)
        for samples, what in zip(parts, ("to learn from", "held out"), strict=True):
            if not any(len(sample.truth) for sample in samples):
                raise ValueError(f"holdout={self.settings.holdout:g}: expected images with objects {what}, got none")
        return parts

    def _prepare(self, caches: Caches | CropCaches) -> None:
        """Compute the proposals and maps that the cache does not hold yet."""
        check_images(self.cache, self.dataset.samples)
        fill_caches(self.dataset.samples, caches, self.workers, "proposals and maps")

    def _learn(
        self, run: Run, caches: Caches | CropCaches, samples: Sequence[Sample], step: int, save_every: float
    ) -> None:
        """Train from a step on, with a line that tells loss, accuracy on positives and the time left."""
        from detector.batches import Batches
        from detector.crops import CropBatches, CropCaches
        from detector.training import train as train_run

        kind: Any = CropBatches if isinstance(caches, CropCaches) else Batches
        batches = kind(samples, caches, self.settings, len(self.dataset.class_names))
        with progress_bar(batches.steps, "training", "step", step) as bar, held_back() as check:

            def report(metrics: Metrics, _: float) -> None:
                text = f"loss {metrics.loss:.3f}, positives right {metrics.positives_right:.0%}"
                bar.set_postfix_str(text, refresh=False)
                bar.update(metrics.step - bar.n)
                check()

            train_run(run, batches, report, save_every)


def _measure(out: Path, samples: Sequence[Sample], caches: Caches | CropCaches, device: str) -> None:
    """Measure the finished model on photos that it did not learn from; print the table and write holdout.json."""
    from detector.checkpoints import load_detector
    from detector.crops import CropCaches
    from detector.evaluation import format_table, to_json
    from detector.files import write_json
    from detector.validation import measure_held_out

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
