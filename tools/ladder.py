"""Climb the ladder of the paper's table 9: machines on every layer, before and after fine-tuning, one and five scales.

Every network is trained by the command `sppnet train`; every rung is then measured from cached maps (float16, which
moves a mean average precision by some hundredths). Machines learn at one scale, whatever they are measured at. What is
done already is not done again: stop it whenever you like.

    python tools/ladder.py voc:VOC2007:trainval voc:VOC2012:train --test voc:VOC2007:test --out runs/ladder
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from detector.checkpoints import load_detector
from detector.cli.options import use_threads
from detector.cli.progress import prepare_proposer, progress_bar
from detector.cli.runs import fill_caches
from detector.datasets import Dataset, open_datasets
from detector.evaluation import bootstrap_map, evaluate
from detector.files import write_json
from detector.reduced import ReducedCaches
from detector.scales import FeaturePyramid
from detector.selection import collect, suppress, weigh_by_rank
from detector.sppnet import SPPNet
from detector.structures import Detections
from proposals.store import ProposalStore

CONFIGS = Path(__file__).parents[1] / "configs"
FIVE = (480, 576, 688, 864, 1200)
# The mini-batches of the authors' code, whose SGD takes 90,000 of them; in some thousands it learned less than AdamW.
CHANGED = (
    "optimizer=adamw",
    "learning_rate=0.001",
    "weight_decay=0.05",
    "rate_drops=[]",
    "epochs=8",
    f"scales={list(FIVE)}",
)
TUNING = ("--preset", "code", *(word for change in CHANGED for word in ("--set", change)))


@dataclass(frozen=True, slots=True)
class Ladder:
    """Hold where the runs go and what they learn from."""

    data: tuple[str, ...]
    out: Path
    cache: Path

    def train(self, name: str, *arguments: str) -> Path:
        """Train a run, if it has not ended before, and return its model."""
        model = self.out / name / "model.safetensors"
        command = ["train", *self.data, "--out", str(self.out / name), "--cache", str(self.cache), *arguments]
        if not model.exists():
            click.echo(f"sppnet {' '.join(command)}", err=True)
            began = time.monotonic()
            subprocess.run([sys.executable, "-c", "from detector.cli import main; main()", *command], check=True)
            write_json(self.out / name / "seconds.json", time.monotonic() - began)
        return model

    def network(self, kind: str, seed: int = 0) -> Path:
        """Return layers: `before` fine-tuning, with the fully connected ones `tuned`, or all learned `joint`ly."""
        config = ("--config", str(CONFIGS / f"{'voc' if kind == 'joint' else 'paper'}-lite0.yaml"))
        arguments = {
            "before": ("--task", "pretrain", *config),
            "tuned": ("--start", str(self.out / "before" / "model.safetensors"), *config, *TUNING),
            "joint": config,
        }
        if kind == "tuned":
            self.network("before", seed)
        return self.train(f"{kind}-{seed}" if seed else kind, *arguments[kind], "--set", f"seed={seed}")

    def machines(self, kind: str, layer: str, seed: int = 0) -> Path:
        """Return machines on a layer, with ridge regressors of boxes."""
        start = self.network(kind, seed)
        name = f"{kind}-{layer}-{seed}" if seed else f"{kind}-{layer}"
        settings = ("--set", f"svm_layer={layer}", "--set", "scales=[]")
        return self.train(name, "--detector", "svm", "--classes", "all", "--start", str(start), *settings)


@dataclass(frozen=True, slots=True)
class Rung:
    """Name a rung, the models that it takes, one or two together, and what is changed in their settings."""

    title: str
    models: tuple[Path, ...]
    changes: Mapping[str, Any]


def rungs(ladder: Ladder) -> Iterator[Rung]:
    """Train what is missing; yield the rungs of the paper's table and some more."""
    stages = [("before", "before fine-tuning"), ("tuned", "fc layers fine-tuned"), ("joint", "all layers learned")]
    for kind, words in stages:
        for layer in ("pool5", "fc6", "fc7"):
            if (kind, layer) == ("tuned", "pool5"):  # is what it was
                continue
            machines = (ladder.machines(kind, layer),)
            yield Rung(f"{words}: {layer}", machines, {"box_regression": "none"})
            yield Rung(f"{words}: {layer}, boxes corrected", machines, {})
        if kind != "before":
            yield Rung(f"{words}: softmax", (ladder.network(kind),), {})


def pair(ladder: Ladder) -> Iterator[Rung]:
    """Train a second network, from other random layers; yield it and both together."""
    first, second = (ladder.machines("joint", "fc7", seed) for seed in (0, 1))
    yield Rung("a second network: fc7, boxes corrected", (second,), {})
    yield Rung("both networks: fc7, boxes corrected", (first, second), {})


class Measuring:
    """Measure rungs on test photos, each once. folder: of the caches of the test photos."""

    def __init__(self, test: Dataset, folder: Path, results: Path, workers: int):
        self.test, self.folder, self.results, self.workers = test, folder, results, workers
        self.rows = json.loads(results.read_text(encoding="utf-8")) if results.exists() else {}

    def measure(self, rung: Rung, scales: Sequence[int] = ()) -> None:
        """Add the mean average precision of a rung, and its interval, to the results. scales: empty for one."""
        name = f"{rung.title}{', five scales' if scales else ''}"
        if name not in self.rows:
            rung = replace(rung, changes={**rung.changes, "scales": tuple(scales)})
            found = self._detect(rung)
            truths, names = self.test.truths, self.test.class_names
            result = evaluate(found, truths, names, ["voc07"])["voc07"]
            low, high = bootstrap_map(found, truths, names)
            models = [str(path) for path in rung.models]
            self.rows[name] = {"map": result.map, "low": low, "high": high, "ap": result.per_class, "models": models}
            write_json(self.results, self.rows)
        row = self.rows[name]
        click.echo(f"{name:60} {100 * row['map']:6.2f} ({100 * row['low']:.1f}-{100 * row['high']:.1f})")

    @torch.inference_mode()
    def _detect(self, rung: Rung) -> list[Detections]:
        """Detect on every test photo, by one network, or by several whose windows are suppressed together."""
        parts = [self._open(path, rung) for path in rung.models]
        first = parts[0][0]
        found = []
        with progress_bar(len(self.test), rung.title, "image") as bar:
            for sample in self.test:
                scored = [_collect(net, *caches.read(sample), first.config.min_score) for net, caches in parts]
                union = (torch.cat([s[0] for s in scored]), torch.cat([s[1] for s in scored]))
                kept = suppress((*union, torch.cat([s[2] for s in scored])), sample.truth.size, first.config)
                found.append(Detections(*kept, sample.truth.size, first.class_names, None))
                bar.update(1)
        return found

    def _open(self, path: Path, rung: Rung) -> tuple[SPPNet, ReducedCaches]:
        """Load a network with a rung's settings, and fill the caches of its maps of the test photos."""
        net = load_detector(path)
        assert isinstance(net, SPPNet)
        assert net.class_names == self.test.class_names
        net.config = replace(net.config, **rung.changes)
        boxes = ProposalStore(self.folder / "proposals", prepare_proposer(net.config.proposals, 1))
        caches = ReducedCaches.of(net, boxes, self.folder / "maps")
        fill_caches(self.test.samples, caches, self.workers, "maps of test photos")
        return net, caches


def _collect(net: SPPNet, pyramid: FeaturePyramid, boxes: Tensor, min_score: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return what a network gives to suppression, as `RegionDetector.collect` does, from maps of before."""
    boxes = boxes[: net.config.max_proposals]
    ranks = net.rank_shortlisted(pyramid, boxes)
    probabilities, deltas = net.score(pyramid, boxes[ranks])
    weighed = weigh_by_rank(probabilities, net.config.rank_prior, ranks)
    return collect(boxes[ranks], weighed, deltas, pyramid.size, min_score)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("data", nargs=-1, required=True, metavar="DATA...")
@click.option("--test", multiple=True, required=True, metavar="DATA", help="What is measured on; may be repeated.")
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder of all runs.")
@click.option(
    "--cache", type=click.Path(file_okay=False, path_type=Path), help="Of training photos [default: OUT/cache]."
)
def main(data: Sequence[str], test: Sequence[str], out: Path, cache: Path | None) -> None:
    """Train and measure every rung on DATA and --test; print the table, and keep it in OUT/ladder.json."""
    ladder = Ladder(tuple(data), out, cache or out / "cache")
    measuring = Measuring(open_datasets(test), out / "test", out / "ladder.json", use_threads(None))
    for scales in ((), FIVE):
        for rung in rungs(ladder):
            measuring.measure(rung, scales)
        for rung in pair(ladder):
            measuring.measure(rung, scales)


if __name__ == "__main__":
    main()
