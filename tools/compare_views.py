"""Compare what a classifier looks at: no SPP, a crop, a warp, the whole photo, ten views (He et al. 2015, table 6).

Linear support vector machines learn from the vectors of a frozen trunk. Every choice (C, the larger side) is made on
parts of the training photos that were held out; the test photos are only measured. Maps are kept in OUT/cache.

    python tools/compare_views.py --train voc:VOC2007:trainval --test voc:VOC2007:test --out runs/views
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from detector.classification import Classifier
from detector.classifier_config import ClassifierConfig
from detector.classifier_training import LookExtractor, MapCache, cross_margins, fit_head, read_vectors
from detector.cli.options import use_threads
from detector.cli.progress import progress_bar
from detector.config import load_settings
from detector.evaluation.classification import bootstrap_classification, classification_ap, classification_difference
from detector.features import FeatureStore
from detector.files import write_json
from detector.images import read_image
from detector.labels import LabelSet, open_labels
from detector.preparation import prepare
from detector.views import plan_views

COSTS = (0.25, 1.0, 4.0)
SIDES = (256, 320, 384, 448, 512)
METRIC = "voc07"
# Row -> what differs from the defaults. A pyramid of one 7 x 7 level is the whole map of a 224 x 224 crop as it is.
ROWS: dict[str, dict[str, Any]] = {
    "no SPP, crop": {"levels": (7,), "views": "crop"},
    "SPP, crop": {"views": "crop"},
    "SPP, warp": {"views": "warp"},
    "SPP, full image": {"views": "full"},
}
Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Study:
    """Hold the photos to learn from and to measure on, the settings all rows share, and where maps are kept."""

    learned: LabelSet
    measured: LabelSet
    base: ClassifierConfig
    cache: Path

    def model(self, changes: dict[str, Any]) -> Classifier:
        """Make the untrained classifier of a row."""
        model = Classifier(replace(self.base, **changes), self.learned.class_names, True)
        model.use_engine("auto")
        return model

    def vectors(self, model: Classifier, photos: LabelSet) -> Tensor:
        """Return the vectors of photos (N, V, D), from kept maps where there are any."""
        cache = MapCache(FeatureStore(self.cache, LookExtractor(model)), model)
        config = model.config
        with progress_bar(2 * len(photos), f"{config.views} {config.side}", "step") as bar:
            prepare(photos.samples, cache, torch.get_num_threads(), bar.update)
            return read_vectors(photos.samples, cache, bar.update)


def choose_cost(study: Study, changes: dict[str, Any]) -> tuple[float, float]:
    """Return the best of COSTS on held-out parts of the training photos, and its mean average precision there."""
    model = study.model(changes)
    vectors, labels = study.vectors(model, study.learned), study.learned.matrix
    found = {}
    for cost in COSTS:
        model.config = replace(model.config, C=cost)
        found[cost] = mean_ap(cross_margins(model, vectors, labels), labels)
    best = max(found, key=lambda cost: found[cost])
    return best, found[best]


def mean_ap(scores: Any, labels: Tensor) -> float:
    """Return the mean average precision of (N, K) scores."""
    return float(np.nanmean(classification_ap(scores, labels, METRIC)))


def trained(study: Study, changes: dict[str, Any]) -> Classifier:
    """Train the classifier of a row on all training photos."""
    model = study.model(changes)
    fit_head(model, study.vectors(model, study.learned), study.learned.matrix, lambda text: None)
    return model


@torch.inference_mode()
def scores_of(study: Study, model: Classifier, views: str) -> Array:
    """Return the mean margins (N, K) of the test photos, by these views."""
    rows = []
    with progress_bar(len(study.measured), f"test, {views} {model.config.side}", "image") as bar:
        for sample in study.measured:
            image = read_image(sample.path)
            looks = plan_views((int(image.shape[1]), int(image.shape[2])), views, model.config.side)
            rows.append(model.head(model.pool_views(model.feature_maps(image, looks), looks)).mean(dim=0))
            bar.update(1)
    scores: Array = torch.stack(rows).numpy()
    return scores


def report_row(name: str, scores: Array, before: Array | None, study: Study) -> dict[str, Any]:
    """Measure a row, and its difference to the row before; print a line."""
    labels = study.measured.matrix
    value = mean_ap(scores, labels)
    low, high = bootstrap_classification(scores, labels, METRIC)
    line = f"{name:<28} {100 * value:6.2f}  ({100 * low:.2f} to {100 * high:.2f})"
    entry: dict[str, Any] = {"map": value, "interval": [low, high]}
    if before is not None:
        gain = value - mean_ap(before, labels)
        ends = classification_difference((scores, before), labels, METRIC)
        entry |= {"gain": gain, "gain_interval": list(ends)}
        line += f"   {100 * gain:+.2f} ({100 * ends[0]:+.2f} to {100 * ends[1]:+.2f}) to the row before"
    click.echo(line)
    return entry


def compare_views_of(study: Study, changes: dict[str, Any]) -> dict[str, Any]:
    """Measure every kind of views with the classifier that learned from crops of one side."""
    model = trained(study, changes)
    found = {}
    before = None
    for views in ("crop", "ten-crop", "ten", "many"):
        scores = scores_of(study, model, views)
        found[views] = report_row(f"views of {model.config.side}: {views}", scores, before, study)
        before = scores
    return found


@click.command()
@click.option("--train", "learned", multiple=True, required=True, metavar="DATA", help="Photos to learn from.")
@click.option("--test", "measured", multiple=True, required=True, metavar="DATA", help="Photos to measure on.")
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder for views.json.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a setting of all rows.")
def main(learned: tuple[str, ...], measured: tuple[str, ...], out: Path, overrides: tuple[str, ...]) -> None:
    """Train and measure every row, then ten and 96 views from the map against ten crops of the image."""
    use_threads(None)
    base = load_settings(None, ["side=224", *overrides], ClassifierConfig)
    train = open_labels(learned)
    study = Study(train, open_labels(measured, train.class_names), base, out / "cache")
    choices: dict[str, Any] = {}
    rows = {name: dict(changes) for name, changes in ROWS.items()}
    for side in SIDES:
        rows[f"SPP, full image, {side}"] = {"views": "full", "side": side}
    for name, changes in rows.items():
        cost, held_out = choose_cost(study, changes)
        changes["C"] = cost
        choices[name] = {"C": cost, "held_out_map": held_out}
        click.echo(f"{name:<28} C {cost:g}, held out {100 * held_out:.2f}")
    larger = max((name for name in rows if name not in ROWS), key=lambda name: choices[name]["held_out_map"])
    results, before = {}, None
    for name in [*ROWS, larger]:
        model = trained(study, rows[name])
        scores = scores_of(study, model, model.config.views)
        results[name] = report_row(name, scores, before, study)
        before = scores
    sides = (study.base.side, rows[larger]["side"])
    views = {side: compare_views_of(study, {**rows["SPP, crop"], "side": side}) for side in sides}
    write_json(out / "views.json", {"choices": choices, "results": results, "views": views})


if __name__ == "__main__":
    main()
