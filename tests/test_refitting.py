"""Check that one class is trained anew as training from scratch would, and that the others keep what they have."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from detector.example_files import ExampleOrigin, load_examples, save_examples
from detector.example_store import ExampleStore
from detector.mining import ImageRegions, Miner, MiningRule
from detector.refitting import refit_class
from detector.svm import LinearSVM
from tests.test_example_store import contents
from tests.test_mining import EVERY, NAMES, toy

Array = NDArray[Any]
NONE = np.zeros((0, 24), np.float32)
LOSSES = ("hinge", "squared_hinge")


def trained(loss: str = "hinge") -> tuple[ExampleStore, LinearSVM, list[ImageRegions]]:
    """Return the store and the machines that learned from the first 8 of 14 images, and the others for class 1."""
    images, positives = toy(14)
    svm = LinearSVM(C=0.05, loss=loss, tol=1e-6, max_iter=20_000)
    store = ExampleStore(3, 24, 2000)
    for label, rows in enumerate(positives.values()):
        store.add_positives(label, rows)
    store.scale = 0.7
    miner = Miner(store, NAMES, svm, EVERY)
    miner.mine(images[:8])
    miner.finish()
    return store, svm, [ImageRegions(image.features, image.negatives[:, 1:2]) for image in images[8:]]


def own_rows(store: ExampleStore, label: int = 1) -> tuple[Array, Array]:
    """Return a class's features and signs (n, 1)."""
    rows = np.flatnonzero(store.signs[: store.count, label])
    return store.features[rows].copy(), store.signs[rows, label : label + 1].copy()


@pytest.mark.parametrize("loss", LOSSES)
def test_nothing_new_leaves_the_machine_as_it_is(loss: str) -> None:
    store, svm, _ = trained(loss)
    before = contents(store)
    coef, intercept, report = refit_class(store, 1, svm, [], NONE, EVERY)
    assert (report.positives, report.added, report.trainings) == (0, 0, 1)
    assert report.gap <= svm.tol
    # no higher but for the gap, and two points of gap g on an objective P lie at most 2 sqrt(2 g P) apart
    assert report.objective <= svm.objective_[1] * (1 + 1e-5)
    apart = float(np.sqrt(((coef - svm.coef_[1]).astype(np.float64) ** 2).sum()))
    nearest = 2 * np.sqrt(2 * 1e-6 * svm.objective_[1])
    assert apart <= nearest * store.scale + 1e-5
    assert intercept == pytest.approx(float(svm.intercept_[1]), abs=nearest * svm.bias_multiplier + 1e-5)
    after = contents(store)
    assert {key: row[0] for key, row in after.items()} == {key: row[0] for key, row in before.items() if key in after}
    assert report.evicted == sum(row[1][1] for row in after.values()) - sum(row[1][1] for row in before.values())


@pytest.mark.parametrize("loss", LOSSES)
def test_new_images_lead_to_where_training_from_scratch_does(loss: str) -> None:
    """Compare with a fit on the rows that were kept, the new positives, and all new negatives, hard or not."""
    store, svm, new = trained(loss)
    # neither loss sees a negative that scores below -1, so those that were never hard change nothing
    more = toy(1, 60)[1]["dog"][:7] * np.float32(0.8)
    features, signs = own_rows(store)
    negatives = np.concatenate([image.features[image.negatives[:, 0]] for image in new])
    every = np.concatenate([features, more, negatives])
    column = np.concatenate([signs, np.ones((7, 1), np.int8), -np.ones((len(negatives), 1), np.int8)])
    scratch = svm.solve(every, column, scale=store.scale)
    coef, intercept, report = refit_class(store, 1, svm, new, more, EVERY)
    assert 0 < report.added < len(negatives)
    assert (report.positives, report.crowded) == (7, 0)
    assert report.objective == pytest.approx(float(scratch.objective[0]), rel=1e-5)
    scores, expected = every @ coef + intercept, every @ scratch.coef[0] + scratch.intercept[0]
    np.testing.assert_allclose(scores, expected, atol=0.02)
    # and it is another machine than before
    assert np.abs(every @ svm.coef_[1] + svm.intercept_[1] - expected).max() > 0.1
    assert report.kept == (own_rows(store)[1] < 0).sum()


def test_the_other_classes_keep_their_rows_and_so_do_files(tmp_path: Path) -> None:
    """Refit twice, by way of a file: the second time begins with what the first one found."""
    store, svm, new = trained()
    path = tmp_path / "examples.safetensors"
    before = contents(store)
    for images, positives in ((new[:3], NONE), (new[3:], np.ones((2, 24), np.float32))):
        save_examples(path, store, ExampleOrigin("run", NAMES, svm, EVERY))
        store, origin = load_examples(path)
        coef, _, report = refit_class(store, 1, origin.svm, images, positives, origin.rule)
        assert report.added > 0
    after = contents(store)
    for key, (features, signs, alpha) in before.items():
        if signs[0] or signs[2]:
            assert after[key][0] == features
            assert (after[key][1][::2], after[key][2][::2]) == (signs[::2], alpha[::2])
    assert all(row[1][0] == row[1][2] == 0 for key, row in after.items() if key not in before)
    fresh = {image for image, _ in after} - {image for image, _ in before}
    assert fresh and min(fresh) > max(image for image, _ in before)
    assert {(-1, 75), (-1, 76)} <= after.keys()
    # the dual variables are those of the machine that was returned
    rows = np.flatnonzero(store.signs[: store.count, 1])
    weights = (store.alpha[1, rows] * store.signs[rows, 1]) @ store.features[rows].astype(np.float64)
    np.testing.assert_allclose(weights, coef, rtol=1e-3, atol=1e-4)


def test_only_hard_negatives_come_from_the_first_image_on() -> None:
    store, svm, new = trained()
    scores = new[0].features @ svm.coef_[1] + svm.intercept_[1]
    clear = np.abs(scores + 1.0001) > 0.01  # not where the solution's tolerance decides
    image = replace(new[0], negatives=new[0].negatives & clear[:, None])
    hard = int((image.negatives[:, 0] & (scores > -1.0001)).sum())
    assert 0 < hard < int(image.negatives.sum())
    report = refit_class(store, 1, svm, [image], NONE, replace(EVERY, epochs=1))[2]
    assert (report.added, report.epochs, report.trainings) == (hard, 1, 1)
    store, svm, new = trained()
    often = refit_class(store, 1, svm, new, NONE, replace(EVERY, epochs=1, retrain_limit=1))[2]
    assert often.trainings > 1


def test_what_does_not_fit_is_refused_and_changes_nothing() -> None:
    store, svm, new = trained()
    before, coef = contents(store), svm.coef_.tobytes()
    wide = [new[0], ImageRegions(new[1].features, np.ones((60, 3), dtype=np.bool_))]
    lone = ExampleStore(1, 24, 9)
    lone.add_positives(0, np.ones((3, 24), np.float32))
    cases: list[tuple[ExampleStore, int, Any, Array, MiningRule, str]] = [
        (store, 3, new, NONE, EVERY, r"expected a class in \[0, 3\), got 3"),
        (store, 1, new, NONE[:, 1:], EVERY, r"expected positives of shape \(P, 24\), got \(0, 23\)"),
        (store, 1, new, np.full((1, 24), np.nan, np.float32), EVERY, "expected finite features"),
        (store, 1, wide, NONE, EVERY, r"expected bool negatives of shape \(60, 1\), got \(60, 3\)"),
        (store, 1, new, NONE, replace(EVERY, max_rows=9), "expected max_rows above the .* rows of the class, got 9"),
        (store, 1, iter(new), NONE, EVERY, "expected images that can be visited 20 times, got an iterator"),
        (lone, 0, new, NONE, EVERY, "expected positives and negatives of class 0 in the store, got one kind alone"),
    ]
    for given, label, images, positives, rule, message in cases:
        with pytest.raises(ValueError, match=message):
            refit_class(given, label, svm, images, positives, rule)
    assert contents(store) == before
    assert svm.coef_.tobytes() == coef
    with pytest.warns(RuntimeWarning, match="^class 1: gap up to"):
        refit_class(store, 1, replace(svm, max_iter=1), new, NONE, replace(EVERY, epochs=1))
