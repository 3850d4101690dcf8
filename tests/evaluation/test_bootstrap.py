"""Test the bootstrap against drawing images and evaluating anew."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

from detector.evaluation import bootstrap_map, voc_ap
from detector.evaluation.bootstrap import bootstrap_difference, resampled_ap
from detector.evaluation.voc import match_all
from detector.structures import Detections, GroundTruth
from tests.evaluation.cases import found, random_case, truth

NAMES = ("cat", "dog")


def distinct_scores(detections: list[Detections], generator: np.random.Generator) -> list[Detections]:
    """Give every detection a score of its own: among equals the order of images decides, and draws shuffle it."""
    pool = iter(generator.permutation(10_000) / 10_000)
    return [
        found(
            d.boxes.numpy(), sorted((next(pool) for _ in range(len(d))), reverse=True), d.labels.numpy(), d.class_names
        )
        for d in detections
    ]


@pytest.mark.parametrize("metric", ["voc07", "voc10"])
def test_weights_equal_a_list_with_repeated_images(metric: str) -> None:
    generator = np.random.default_rng(11)
    compared = 0
    for _ in range(40):
        detections, truths, names = random_case(generator, 6, 2)
        detections = distinct_scores(detections, generator)
        draws = generator.integers(0, 6, (5, 6))
        weights = np.stack([np.bincount(draw, minlength=6) for draw in draws])
        aps = [resampled_ap(m, weights, metric) for m in match_all(detections, truths, names)]
        for s, draw in enumerate(draws):
            anew = voc_ap([detections[i] for i in draw], [truths[i] for i in draw], names, metric)
            for k, name in enumerate(names):
                assert aps[k][s] == pytest.approx(anew.per_class[name], abs=1e-12, nan_ok=True)
                compared += not math.isnan(aps[k][s])
    assert compared > 200


def test_the_interval_holds_the_estimate_and_narrows_with_more_images() -> None:
    generator = np.random.default_rng(2)
    widths = []
    for images in (40, 640):
        detections, truths, names = random_case(generator, images, 3)
        low, high = bootstrap_map(detections, truths, names, "voc10", samples=300)
        assert 0 <= low < voc_ap(detections, truths, names, "voc10").map < high <= 1
        widths.append(high - low)
    assert 2 < widths[0] / widths[1] < 8  # 16 times the images: a quarter of the width


def test_the_seed_decides_and_certain_results_have_no_width() -> None:
    detections, truths, names = random_case(np.random.default_rng(5), 30, 2)
    first, again, other = (bootstrap_map(detections, truths, names, samples=200, seed=s) for s in (1, 1, 2))
    assert first == again != other
    box = [[0, 0, 10, 20]]
    perfect = [found(box, [0.9], [0], NAMES)] * 5
    assert bootstrap_map(perfect, [truth(box, [0])] * 5, NAMES, "voc10", samples=50) == (1, 1)


def test_a_class_that_a_draw_lacks_is_left_out_of_its_mean() -> None:
    """A perfect cat in every photo, a missed dog in one: the mean of a draw is 1 without the dog, 1/2 with it."""
    box = [[0, 0, 10, 20]]
    detections: list[Detections] = [found(box, [0.9], [0], NAMES)] * 4
    truths: list[GroundTruth] = [truth(box, [0])] * 3 + [truth(box * 2, [0, 1])]
    assert bootstrap_map(detections, truths, NAMES) == (0.5, 1)


@pytest.mark.parametrize("metric", ["voc07", "voc10"])
def test_the_difference_is_measured_on_the_same_draws(metric: str) -> None:
    generator = np.random.default_rng(13)
    detections, truths, names = random_case(generator, 12, 2)
    first = distinct_scores(detections, generator)
    second = distinct_scores([*random_case(generator, 12, 2)[0]], generator)
    draws = np.random.default_rng(4).multinomial(12, np.full(12, 1 / 12), size=60)
    differences = []
    for draw in draws:
        rows = np.repeat(np.arange(12), draw)
        drawn = [truths[i] for i in rows]
        means = [voc_ap([found[i] for i in rows], drawn, names, metric).map for found in (first, second)]
        if not math.isnan(means[0]):
            differences.append(means[0] - means[1])
    expected = np.quantile(differences, [0.025, 0.975])
    assert bootstrap_difference((first, second), truths, names, metric, 60, 4) == pytest.approx(tuple(expected))
    assert expected[0] < expected[1]
    low, high = bootstrap_difference((second, first), truths, names, metric, 60, 4)
    assert (-high, -low) == pytest.approx(tuple(expected))


def test_a_detector_does_not_differ_from_itself() -> None:
    detections, truths, names = random_case(np.random.default_rng(3), 20, 2)
    assert bootstrap_difference((detections, detections), truths, names) == (0, 0)
    nothing = [found([], [], [], NAMES)]
    assert all(math.isnan(end) for end in bootstrap_difference((nothing, nothing), [truth([], [])], NAMES))


def test_edges() -> None:
    assert all(math.isnan(end) for end in bootstrap_map([], [], NAMES))
    assert all(math.isnan(end) for end in bootstrap_map([found([], [], [], NAMES)], [truth([], [])], NAMES))
    objects = [truth([[0, 0, 5, 5]], [0])]
    assert bootstrap_map([found([], [], [], NAMES)], objects, NAMES) == (0, 0)
    for metric, samples in (("coco", 10), ("voc07", 0)):
        with pytest.raises(ValueError, match="expected a metric among voc07, voc10 and at least one sample"):
            bootstrap_map([found([], [], [], NAMES)], objects, NAMES, metric, samples)


@pytest.mark.slow
def test_750_images_take_less_than_20_seconds() -> None:
    generator = np.random.default_rng(0)
    names = tuple(f"class{k}" for k in range(20))
    detections, truths = [], []
    for _ in range(750):
        labels, corners = generator.integers(0, 20, 100), generator.uniform(0, 400, (100, 2))
        boxes = np.concatenate([corners, corners + generator.uniform(10, 100, (100, 2))], axis=1)
        truths.append(truth(boxes[:3] + 2, labels[:3]))
        detections.append(found(boxes, np.sort(generator.random(100))[::-1].copy(), labels, names))
    start = time.perf_counter()
    low, high = bootstrap_map(detections, truths, names)
    assert time.perf_counter() - start < 20
    assert 0 < low < high < 1
