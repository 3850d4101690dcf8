"""Train support vector machines on the layers of a trained detector: `sppnet train --detector svm --start MODEL`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .folders import check_images
from .interrupts import held_back
from .progress import prepare_proposer, progress_bar
from .runs import Place, RunFolder, fill_caches, split_names, step_on_disk

if TYPE_CHECKING:
    from detector.config import Config
    from detector.datasets import Dataset
    from detector.machine_training import Examples
    from detector.machines import MachineNet
    from detector.regions import RegionDetector

# What differs from the start where the user says nothing: the paper scores all regions by the machines alone.
_PAPER = {"detector": "svm", "cascade": 0, "rank_prior": 0.0, "vote": 1.0, "min_score": 0.25, "readable_score": 0.5}


def train_machines(
    data: Sequence[str],
    begin: tuple[str, str | None],
    asked: tuple[Path | None, Sequence[str]],
    place: Place,
) -> Path:
    """Fit the machines and regressors on annotated photos; return the finished model.

    begin: the trained detector whose layers are used, and the classes to learn, comma separated, `all` for those of the
    data, None for those of the detector. asked: YAML file and `key=value` settings. A run that was stopped continues
    from its last state.
    """
    from detector.checkpoints import load_detector, save_detector
    from detector.datasets import open_datasets
    from detector.features import settings_key
    from detector.files import write_json

    start, classes = begin
    base = load_detector(start, engine="eager")
    names = base.class_names if classes is None else None if classes == "all" else split_names(classes)
    dataset = open_datasets(data, names)
    net = build(base, settings_of(base.config, *asked), dataset.class_names)
    click.echo(f"{len(dataset)} images, {sum(map(len, dataset.truths))} objects", err=True)
    out = place.out
    truths = [(s.image_id, s.truth) for s in dataset]
    rows = [(name, t.boxes.tolist(), t.labels.tolist(), t.difficult.tolist()) for name, t in truths]
    settings = net.config.to_dict()
    parts = {"data": json.dumps(rows), "start": base.fingerprint(), "config": settings}
    key = settings_key(parts | {"classes": list(net.class_names)})
    record = {"data": list(data), "start": start, "classes": net.class_names, "settings": settings}
    if step_on_disk(RunFolder(out, key), record) is None:
        click.echo(f"{out} holds the finished run already", err=True)
        return out / "model.safetensors"
    net.use_engine("auto")
    examples = _examples(net, dataset, place.cache, place.workers)
    write_json(out / "run.json", record)
    try:
        _fit_machines(examples, RunFolder(out, key), place.save_every)
        _fit_regressors(examples)
    except KeyboardInterrupt:
        click.echo(f"stopped; the same command continues the run in {out}", err=True)
        raise
    save_detector(net, out / "model.safetensors", {"run": key})
    (out / "state.safetensors").unlink(missing_ok=True)
    return out / "model.safetensors"


def settings_of(base: Config, path: Path | None, overrides: Sequence[str]) -> Config:
    """Return the settings of a trained detector with those of the paper, and on top what the user says.

    Raises ValueError for a detector that is no SPP-net, and for a wrong setting.
    """
    from detector.config import Config, read_settings, settings_from_dict

    if base.detector == "rcnn":
        raise ValueError("--start: expected an SPP-net, got R-CNN")
    given, source = read_settings(path, overrides, Config)
    return settings_from_dict(base.to_dict() | _PAPER | given | {"detector": "svm"}, source, Config)


def build(base: RegionDetector, config: Config, class_names: Sequence[str] | None = None) -> MachineNet:
    """Return a detector with the layers of a trained one and machines that have learned nothing.

    class_names: what the machines will tell apart, by default the classes of the trained detector.
    Raises ValueError if settings do not fit the layers, or boxes are to be corrected for other classes than it knows.
    """
    import torch

    from detector.machines import MachineNet
    from detector.transfer import take_layers

    torch.manual_seed(config.seed)  # for layers that name classes and are not used, so that a run can be repeated
    net = MachineNet(config, class_names or base.class_names, base.trunk)
    if config.box_regression == "joint" and net.class_names != base.class_names:
        raise ValueError("box_regression=joint: expected the classes of --start, got others; use ridge or none")
    take_layers(net, base)
    return net


def _examples(net: MachineNet, dataset: Dataset, cache: Path, workers: int) -> Examples:
    """Compute the proposals and maps that the cache does not hold yet."""
    from detector.machine_training import Examples
    from detector.reduced import ReducedCaches
    from proposals.store import ProposalStore

    boxes = ProposalStore(cache / "proposals", prepare_proposer(net.config.proposals, 1))
    caches = ReducedCaches.of(net, boxes, cache / "maps")
    check_images(cache, dataset.samples)
    fill_caches(dataset.samples, caches, workers, "proposals and maps")
    return Examples(net, dataset.samples, caches)


def _fit_machines(examples: Examples, run: RunFolder, save_every: float) -> None:
    """Fit the machines, or what a state on disk leaves to do, with a bar that counts visits of images."""
    from detector.machine_training import MachineRun
    from detector.mining import MiningRule
    from detector.svm import LinearSVM

    svm = LinearSVM(C=examples.net.config.C)
    machines = MachineRun(examples, svm, MiningRule(), run.folder, run.key, save_every)
    machines.continue_from_disk()
    with _watched("support vector machines", 2 * len(examples.samples), machines.step) as watch:
        machines.fit(watch)


def _fit_regressors(examples: Examples) -> None:
    """Fit the regressors if they are asked for. They begin with the first image again if they are stopped."""
    from detector.machine_training import fit_regressors

    if examples.net.config.box_regression == "ridge":
        with _watched("box regressors", len(examples.samples), 0) as watch:
            fit_regressors(examples, "spp", watch)


@contextmanager
def _watched(title: str, total: int, done: int) -> Iterator[Callable[[int], None]]:
    """Yield what is told of images: it moves a bar and raises KeyboardInterrupt if Ctrl-C was pressed."""
    with progress_bar(total, title, "image", done) as bar, held_back() as check:

        def watch(count: int) -> None:
            bar.update(count)
            check()

        yield watch
