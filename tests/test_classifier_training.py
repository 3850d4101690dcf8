"""Check how a head learns behind a frozen trunk, and what makes probabilities of margins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from detector.classification import Classifier
from detector.classifier_config import ClassifierConfig
from detector.classifier_training import (
    LookExtractor,
    MapCache,
    calibrate,
    cross_margins,
    fit_head,
    mirror_vectors,
    read_vectors,
    train_head,
)
from detector.drawing import save_image
from detector.features import FeatureStore
from detector.images import read_image
from detector.labels import LabelSet, open_labels
from detector.views import plan_views

CONFIG = ClassifierConfig(trunk="small", pretrained=False, side=32, epochs=20, images_per_batch=8)
COLOURS = {"blue": (30, 40, 220), "green": (40, 200, 50), "red": (220, 40, 30)}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> LabelSet:
    """Return noisy pictures of three colours and many shapes, a folder for each colour."""
    root = tmp_path_factory.mktemp("colours")
    generator = torch.Generator().manual_seed(4)
    for name, colour in COLOURS.items():
        for number in range(12):
            height, width = (int(n) for n in torch.randint(30, 80, (2,), generator=generator))
            noise = torch.randint(-60, 60, (3, height, width), generator=generator)
            image = (torch.tensor(colour)[:, None, None] + noise).clamp(0, 255).to(torch.uint8)
            save_image(image, root / name / f"{number}.png")
    return open_labels([f"folder:{root}"])


def build(config: ClassifierConfig, photos: LabelSet) -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Classifier(config, photos.class_names, photos.multi_label)


def ignore(value: object) -> None:
    """Be told something."""


def right(model: Classifier, photos: LabelSet) -> float:
    found = [model.predict(read_image(sample.path)).scores.argmax() for sample in photos]
    return float((torch.stack(found) == photos.single).float().mean())


@pytest.mark.parametrize("changes", [{"head": "svm"}, {"head": "fc"}, {"head": "fc", "hidden": 16}])
@pytest.mark.parametrize("views", ["full", "ten"])
def test_colours_are_learned(changes: dict[str, object], views: str, photos: LabelSet, tmp_path: Path) -> None:
    model = build(replace(CONFIG, views=views, **changes), photos)
    train_head(model, photos.samples, tmp_path, (ignore, ignore))
    assert right(model, photos) == 1.0
    again = build(model.config, photos)
    train_head(again, photos.samples, tmp_path, (ignore, ignore))
    assert again.fingerprint() == model.fingerprint()


def test_vectors_from_the_cache_are_those_of_the_images(photos: LabelSet, tmp_path: Path) -> None:
    model = build(replace(CONFIG, views="many"), photos)
    cache = MapCache(FeatureStore(tmp_path, LookExtractor(model)), model)
    assert not any(cache.complete(sample) for sample in photos)
    vectors = read_vectors(photos.samples, cache, ignore)
    assert all(cache.complete(sample) for sample in photos)
    for sample, row in zip(photos, vectors, strict=True):
        image = read_image(sample.path)
        looks = plan_views((image.shape[1], image.shape[2]), "many", 32)
        expected = model.pool_views(model.feature_maps(image, looks), looks)
        torch.testing.assert_close(row[: len(expected)], expected, rtol=0, atol=2e-3)  # kept as float16
        assert torch.equal(row[len(expected) :], row[: len(row) - len(expected)])  # the views again
    damaged = cache.store.path(photos[0].image_id)
    damaged.write_bytes(damaged.read_bytes()[:100])
    assert torch.equal(read_vectors(photos.samples[:1], cache, ignore)[0, :6], vectors[0, :6])


def test_a_mirrored_vector_is_that_of_the_mirrored_cells(photos: LabelSet) -> None:
    levels = (3, 1)
    cells = torch.arange(2 * 3 * 3.0).view(2, 3, 3)

    def pooled(values: Tensor) -> Tensor:
        fine = values.flatten(1).T
        return torch.cat([fine, values.amax(dim=(1, 2))[None]]).flatten()

    assert torch.equal(mirror_vectors(pooled(cells), levels), pooled(cells.flip(2)))


def test_machines_reach_their_margins(photos: LabelSet) -> None:
    """What the head says is what scikit-learn's machine says, trained on the same vectors and mirrored ones."""
    svm = pytest.importorskip("sklearn.svm", reason="scikit-learn is the oracle")
    generator = torch.Generator().manual_seed(9)
    model = build(replace(CONFIG, levels=(2, 1), C=2.0, positive_weight=1.5), photos)
    labels = torch.where(photos.single[:, None] == torch.arange(3), 1, -1).to(torch.int8)
    centres = torch.randn(3, model.length, generator=generator)
    noise = 4 * torch.randn(36, model.length, generator=generator)
    vectors = torch.nn.functional.normalize(centres[photos.single] + noise)[:, None]
    fit_head(model, vectors, labels, ignore)
    rows = torch.cat([vectors, mirror_vectors(vectors, model.config.levels)], dim=1).flatten(0, 1).numpy()
    for k in range(3):
        signs = labels[:, None, k].expand(-1, 2).flatten().numpy()
        oracle = svm.LinearSVC(C=2.0, loss="hinge", class_weight={1: 1.5}, tol=1e-7, max_iter=100_000, random_state=0)
        expected = oracle.fit(rows.astype(np.float64), signs).decision_function(rows.astype(np.float64))
        got = (torch.from_numpy(rows) @ model.head.weight[k] + model.head.bias[k]).detach().numpy()
        np.testing.assert_allclose(got, expected, atol=0.03)


def test_margins_of_held_out_images_come_from_machines_that_have_not_seen_them(photos: LabelSet) -> None:
    generator = torch.Generator().manual_seed(9)
    model = build(CONFIG, photos)
    vectors = torch.nn.functional.normalize(torch.randn(36, 1, model.length, generator=generator), dim=2)
    labels = torch.where(photos.single[:, None] == torch.arange(3), 1, -1).to(torch.int8)
    margins = cross_margins(model, vectors, labels)
    # noise is learned by heart, but nothing of it carries over to what was held out
    fit_head(model, vectors, labels, ignore)
    seen = (vectors[:, 0] @ model.head.weight.T + model.head.bias).argmax(dim=1)
    assert float((seen == photos.single).float().mean()) == 1.0
    assert np.mean(margins.argmax(axis=1) == photos.single.numpy()) < 0.7


def test_calibration_finds_the_sigmoid_that_drew_the_labels() -> None:
    random = np.random.default_rng(2)
    margins = random.normal(size=(20_000, 2)) * 2
    slopes, shifts = np.array([1.5, 0.7]), np.array([-1.0, 0.5])
    shown = random.random(margins.shape) < 1 / (1 + np.exp(-(slopes * margins + shifts)))
    slope, shift = calibrate(margins, np.where(shown, 1, -1).astype(np.int8))
    np.testing.assert_allclose(slope, slopes, atol=0.08)
    np.testing.assert_allclose(shift, shifts, atol=0.08)


def test_calibration_keeps_the_order_and_survives_a_class_that_nothing_shows() -> None:
    margins = np.linspace(-1, 1, 10)[:, None].repeat(2, axis=1)
    labels = np.full((10, 2), -1, np.int8)
    labels[:5, 0] = 1  # the worst margins are the positives
    slope, shift = calibrate(margins, labels)
    assert slope[0] == pytest.approx(0.01)
    assert (slope[1], shift[1]) == (1.0, 0.0)
