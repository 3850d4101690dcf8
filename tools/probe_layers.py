"""Probe what the layers of a detector know of regions: how well support vector machines on each tell objects apart.

A small problem, for a look at layers that are not fine-tuned yet. The machines see the objects of two thirds of the
photos, and of each photo 60 proposals that overlap no object by more than 0.3. The table is the mean over classes of
the average precision among objects and such proposals of the other photos. No detection, no hard negatives.

    python tools/probe_layers.py runs/ladder/before/model.safetensors voc:VOC2007:trainval --cache runs/ladder/cache
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score
from torch import Tensor, nn
from torchvision.ops import box_iou

from detector.checkpoints import load_detector
from detector.cli.options import use_threads
from detector.cli.progress import prepare_proposer, progress_bar
from detector.cli.runs import fill_caches
from detector.datasets import Dataset, Sample, open_datasets
from detector.engines import choose_engine
from detector.images import read_image
from detector.reduced import ReducedCaches
from detector.sppnet import SPPNet
from detector.svm import LinearSVM
from detector.teaching import Teacher
from proposals.store import ProposalStore

NEGATIVES, OVERLAP = 60, 0.3
Rows = dict[str, NDArray[np.float32]]


class Probe:
    """Describe regions of photos by every layer of a detector, by random layers, and by the trunk's classifier."""

    def __init__(self, net: SPPNet, caches: ReducedCaches):
        self.net, self.caches = net, caches
        self.teacher = Teacher(net.trunk, choose_engine("auto"))
        torch.manual_seed(net.config.seed)
        self.random = copy.deepcopy(net.head)
        for layer in (self.random.fc6, self.random.fc7):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    @torch.inference_mode()
    def describe(self, sample: Sample, seed: int) -> tuple[dict[str, Tensor], Tensor]:
        """Return features (R, d) by layer, of objects and of proposals beside them, and labels (R,), -1 for these."""
        pyramid, boxes = self.caches.read(sample)
        truth = sample.truth
        chosen = torch.randperm(len(boxes), generator=torch.Generator().manual_seed(seed))[:NEGATIVES]
        beside = boxes[chosen]
        if len(truth):
            beside = beside[box_iou(beside, truth.boxes.float()).amax(dim=1) <= OVERLAP]
        boxes = torch.cat([truth.boxes[~truth.difficult].float(), beside])
        labels = torch.cat([truth.labels[~truth.difficult], torch.full((len(beside),), -1)])
        pooled, context, rows = self.net.read(pyramid, boxes)
        found = {"pool5": pooled.flatten(1)}
        found["fc6"], found["fc7"] = self.net.head.hidden(pooled, context)
        found["fc6 of random weights"], found["fc7 of random weights"] = self.random.hidden(pooled, context)
        found = {name: values[rows] for name, values in found.items()}
        found["what the trunk's classifier says of crops"] = self.teacher.logits(read_image(sample.path), boxes)
        return found, labels

    def collect(self, samples: Sequence[Sample], title: str) -> tuple[Rows, NDArray[np.int64]]:
        """Return what `describe` gives of all photos, each layer as one array."""
        parts, labels = [], []
        with progress_bar(len(samples), title, "image") as bar:
            for number, sample in enumerate(samples):
                features, classes = self.describe(sample, number)
                parts.append(features)
                labels.append(classes)
                bar.update(1)
        joined = {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}
        return joined, torch.cat(labels).numpy()


def precision(train: NDArray[np.float32], test: NDArray[np.float32], labels: tuple[NDArray[np.int64], ...]) -> float:
    """Return the mean average precision of machines on one layer, the better of two values of C."""
    learned, asked = labels
    classes = [label for label in range(learned.max() + 1) if (learned == label).any() and (asked == label).any()]
    signs = np.where(learned[:, None] == classes, 1, np.where(learned[:, None] < 0, -1, 0)).astype(np.int8)
    best = 0.0
    for penalty in (1e-3, 1e-2):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # 200 rounds are enough for a comparison
            machines = LinearSVM(C=penalty, feature_norm=20.0, tol=1e-2, max_iter=200).fit(train, signs)
        scores = machines.decision_function(test)
        found = [average_precision_score(asked == label, scores[:, k]) for k, label in enumerate(classes)]
        best = max(best, float(np.mean(found)))
    return best


def split(dataset: Dataset) -> tuple[Sequence[Sample], Sequence[Sample]]:
    """Return two thirds of the photos, in an order that a seed draws, and the others."""
    order = np.random.default_rng(0).permutation(len(dataset))
    samples = [dataset.samples[int(index)] for index in order]
    cut = 2 * len(samples) // 3
    return samples[:cut], samples[cut:]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model")
@click.argument("data", nargs=-1, required=True, metavar="DATA...")
@click.option("--cache", required=True, type=click.Path(file_okay=False, path_type=Path), help="Of proposals and maps.")
def main(model: str, data: Sequence[str], cache: Path) -> None:
    """Probe the layers of MODEL, an SPP-net, on the photos of DATA; print a table."""
    net = load_detector(model)
    if not isinstance(net, SPPNet):
        raise click.UsageError(f"{model}: expected an SPP-net, got another detector")
    caches = ReducedCaches.of(
        net, ProposalStore(cache / "proposals", prepare_proposer(net.config.proposals, 1)), cache / "maps"
    )
    dataset = open_datasets(data)
    fill_caches(dataset.samples, caches, use_threads(None), "proposals and maps")
    probe = Probe(net, caches)
    parts = [
        probe.collect(samples, title) for samples, title in zip(split(dataset), ("learning", "asking"), strict=True)
    ]
    (train, learned), (test, asked) = parts
    for name, values in train.items():
        click.echo(f"{name:45} {values.shape[1]:5}  {100 * precision(values, test[name], (learned, asked)):5.1f}")


if __name__ == "__main__":
    main()
