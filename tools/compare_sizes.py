"""Train a small network on images of one size, of two in turn, and of random sizes, and test it at many sizes.

The images are objects, cut from the boxes of annotated photos, 32 to 96 pixels on their shorter side; every fifth photo
is for testing. The network learns from scratch (He et al. 2015, section 2.3). Runs that were stopped go on.

    python tools/compare_sizes.py --data voc:VOC2007:trainval --data voc:VOC2012:train --out runs/sizes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from detector.classification import Classifier
from detector.classifier_config import ClassifierConfig
from detector.classifier_files import load_classifier
from detector.cli.progress import progress_bar
from detector.datasets import Dataset, open_datasets
from detector.drawing import save_image
from detector.evaluation.classification import top_k_accuracy
from detector.files import replacing, write_json
from detector.image_training import ImageBatches, ImageMetrics, ImageRun, train_images
from detector.images import read_image, resize_image, scaled_size
from detector.labels import LabelSet, open_labels

TRAINED = 64  # pixels: the size of single-size training
TESTED = (32, 40, 48, 56, 64, 80, 96, 112, 128)
SMALLEST, LARGEST = 32, 96
# Name -> the sizes that are learned from, and how they take turns.
KINDS: dict[str, dict[str, Any]] = {
    "64 pixels": {"sizes": (TRAINED,)},
    "48 and 80 in turn": {"sizes": (48, 80)},
    "32 to 96 at random": {"sizes": (SMALLEST, LARGEST), "size_rule": "random"},
}
_COLOURS = ("#0072b2", "#d55e00", "#009e73")


def cut_objects(dataset: Dataset, folder: Path, most: int) -> None:
    """Write every object that is large enough to FOLDER/train/CLASS or, of each fifth photo, FOLDER/test/CLASS.

    An object whose shorter side is over 96 pixels is reduced to that; one below 32 is left out. most: how many objects
    of a class each part may have, the first ones of the photos in an order drawn by a seed.
    """
    counts: dict[tuple[str, str], int] = {}
    order = np.random.default_rng(0).permutation(len(dataset))
    with progress_bar(len(dataset), "objects", "photo") as bar:
        for place, index in enumerate(order):
            sample, part = dataset[int(index)], "test" if place % 5 == 0 else "train"
            image = None
            for number, (box, label) in enumerate(zip(sample.truth.boxes, sample.truth.labels, strict=True)):
                x1, y1, x2, y2 = (int(v) for v in box.round().tolist())
                name = dataset.class_names[int(label)]
                small = min(x2 - x1, y2 - y1) < SMALLEST or max(x2 - x1, y2 - y1) > 4 * min(x2 - x1, y2 - y1)
                if small or sample.truth.difficult[number] or counts.get((part, name), 0) >= most:
                    continue
                image = read_image(sample.path) if image is None else image
                cut = image[:, y1:y2, x1:x2]
                size = (y2 - y1, x2 - x1)
                if min(size) > LARGEST:
                    cut = resize_image(cut, scaled_size(size, LARGEST, 4 * LARGEST))
                save_image(cut, folder / part / name / f"{sample.image_id}_{number}.png")
                counts[part, name] = counts.get((part, name), 0) + 1
            bar.update(1)
    (folder / "done").touch()


def train_kind(objects: Path, out: Path, changes: dict[str, Any], epochs: int, seed: int) -> Path:
    """Train one network; return its file."""
    train = open_labels([f"folder:{objects / 'train'}"])
    config = ClassifierConfig(
        trunk="small", pretrained=False, normalise=False, head="fc", hidden=128, dropout=0.5, learn="all",
        epochs=epochs, images_per_batch=32, learning_rate=1e-3, weight_decay=0.05, side=TRAINED, seed=seed, **changes,
    )  # fmt: skip
    torch.manual_seed(seed)
    run = ImageRun(Classifier(config, train.class_names, False), out, "objects")
    batches = ImageBatches(train.samples, config)
    with progress_bar(batches.steps, out.name, "step") as bar:

        def report(metrics: ImageMetrics) -> None:
            bar.set_postfix_str(f"loss {metrics.loss:.3f}, right {metrics.right:.0%}", refresh=False)
            bar.update(metrics.step - bar.n)

        return train_images(run, batches, report)


def test_sizes(path: Path, test: LabelSet) -> list[float]:
    """Return the accuracy of a network on squares of every tested size: the mean over the classes."""
    model = load_classifier(path)
    images = [read_image(sample.path) for sample in test]
    labels = test.single
    accuracies = []
    for side in TESTED:
        scores = torch.stack([model.predict(image, "crop", side).scores for image in images])
        parts = [top_k_accuracy(scores[labels == k], labels[labels == k]) for k in labels.unique().tolist()]
        accuracies.append(float(np.mean(parts)))
    return accuracies


def plot(results: Mapping[str, Sequence[Sequence[float]]], path: Path) -> None:
    """Draw the accuracies against the tested size: a line through the means over seeds, a point for each seed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for (name, runs), colour in zip(results.items(), _COLOURS, strict=True):
        values = 100 * np.asarray(runs)
        axes.plot(TESTED, values.mean(axis=0), color=colour, label=f"trained on {name}", linewidth=1.8)
        for run in values:
            axes.plot(TESTED, run, ".", color=colour, markersize=4, alpha=0.6)
    axes.axvline(TRAINED, color="0.7", linewidth=0.8, linestyle=":")
    axes.set(xlabel="side of the test images, pixels", ylabel="right, mean over 20 classes, %", xticks=TESTED)
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    with replacing(path) as beside:
        figure.savefig(beside, format="png", dpi=120)


@click.command()
@click.option("--data", multiple=True, required=True, metavar="DATA", help="Annotated photos; may be repeated.")
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder for results.")
@click.option("--epochs", default=40, show_default=True, type=click.IntRange(1), help="How long each network learns.")
@click.option("--seeds", default=2, show_default=True, type=click.IntRange(1), help="How many networks of each kind.")
@click.option("--most", default=150, show_default=True, type=click.IntRange(1), help="Objects of a class in each part.")
def main(data: tuple[str, ...], out: Path, epochs: int, seeds: int, most: int) -> None:
    """Cut objects, train the networks, test each at every size, and draw the curves: OUT/sizes.json and sizes.png."""
    objects = out / "objects"
    if not (objects / "done").exists():
        cut_objects(open_datasets(data), objects, most)
    test = open_labels([f"folder:{objects / 'test'}"])
    click.echo(f"{len(test)} test objects of {len(test.class_names)} classes")
    results: dict[str, list[list[float]]] = {name: [] for name in KINDS}
    for seed in range(seeds):
        for name, changes in KINDS.items():
            path = train_kind(objects, out / f"{name.replace(' ', '-')}-{seed}", changes, epochs, seed)
            results[name].append(test_sizes(path, test))
            line = " ".join(f"{100 * value:5.1f}" for value in results[name][-1])
            click.echo(f"{name:<20} seed {seed}: {line}")
    for name, runs in results.items():
        means = np.mean(runs, axis=0)
        line = " ".join(f"{100 * value:5.1f}" for value in means)
        click.echo(f"{name:<20} mean:   {line}   lowest / highest {means.min() / means.max():.3f}")
    write_json(out / "sizes.json", {"tested": list(TESTED), "accuracy": results})
    plot(results, out / "sizes.png")


if __name__ == "__main__":
    main()
