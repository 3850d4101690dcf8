"""Check ridge box regression against normal equations in numpy and scikit-learn, and for what it must not touch."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from detector.regression import MIN_ROWS, RULES, BoxRegressor, Matches, RegressionRule, whitening

Array = NDArray[np.float64]
K = 3


def examples(count: int, width: int, seed: int = 0, classes: int = K) -> tuple[Tensor, Matches]:
    """Draw proposals on a wide image, objects that depend on their features, labels and IoU on both sides of a rule."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, width, generator=generator).clamp(min=0) * 3
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([400.0, 200.0])
    sides = 20 + torch.rand(count, 2, generator=generator) * torch.tensor([200.0, 90.0])
    moves = 0.05 * features @ torch.randn(width, 4, generator=generator) / width**0.5
    moves = moves + 0.1 * torch.randn(count, 4, generator=generator)
    truth_corner, truth_sides = corner + moves[:, :2] * sides, sides * torch.exp(moves[:, 2:])
    boxes, truth = (torch.cat([a, a + b], dim=1) for a, b in ((corner, sides), (truth_corner, truth_sides)))
    labels = torch.randint(0, classes + 1, (count,), generator=generator)
    return features, Matches(boxes, truth, labels, torch.rand(count, generator=generator))


def rows_of(label: int, iou: float, features: Tensor, matches: Matches) -> tuple[Array, Array]:
    """Return a class's features with a bias column and its targets (Girshick et al. 2014, appendix C, 6 to 9)."""
    own = ((matches.labels == label) & (matches.iou >= iou)).numpy()
    x = np.hstack([features.numpy()[own].astype(float), np.ones((own.sum(), 1))])
    targets = []
    for p, g in zip(matches.boxes.numpy()[own].astype(float), matches.truth.numpy()[own].astype(float), strict=True):
        w, h = p[2] - p[0], p[3] - p[1]
        tx = ((g[0] + g[2]) / 2 - (p[0] + p[2]) / 2) / w
        ty = ((g[1] + g[3]) / 2 - (p[1] + p[3]) / 2) / h
        targets.append([tx, ty, np.log((g[2] - g[0]) / w), np.log((g[3] - g[1]) / h)])
    return x, np.array(targets)


def released_model(y: Array) -> tuple[Array, Array, Array]:
    """Return mean, T and T_inv of targets in the steps of rcnn_train_bbox_regressor.m."""
    mean = y.mean(axis=0)
    values, vectors = np.linalg.eig((y - mean).T @ (y - mean) / len(y))
    roots = np.sqrt(values + 0.001)
    return mean, vectors @ np.diag(1 / roots) @ vectors.T, vectors @ np.diag(roots) @ vectors.T


# Many more rows than features in a class, and fewer.
SHAPES = [(1200, 20), (150, 120)]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("count", "width"), SHAPES)
def test_weights_solve_the_normal_equations(rule: str, count: int, width: int) -> None:
    features, matches = examples(count, width)
    model = BoxRegressor(K, rule).fit(features, matches)
    for label in range(K):
        x, y = rows_of(label, RULES[rule].iou, features, matches)
        mean, white, colour = released_model(y)
        beta = np.linalg.solve(x.T @ x + RULES[rule].penalty * np.eye(width + 1), x.T @ ((y - mean) @ white))
        assert int(model.rows_[label]) == len(x)
        expected = beta @ colour
        scale = np.abs(expected).max()
        np.testing.assert_allclose(model.coef_[label].numpy().T, expected[:-1], rtol=1e-5, atol=1e-6 * scale)
        np.testing.assert_allclose(model.intercept_[label].numpy(), expected[-1] + mean, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("count", [29, 30, 31, 32])
def test_both_forms_agree_where_one_gives_way_to_the_other(count: int) -> None:
    """Take as many rows as columns, 30 features and the bias, and a row more or less."""
    features, matches = examples(count, 30, seed=5)
    matches = Matches(matches.boxes, matches.truth, torch.zeros_like(matches.labels), torch.ones(count))
    model = BoxRegressor(1, RegressionRule(0.5, 2.0)).fit(features, matches)
    x, y = rows_of(0, 0.5, features, matches)
    mean, white, colour = released_model(y)
    expected = np.linalg.solve(x.T @ x + 2 * np.eye(31), x.T @ ((y - mean) @ white)) @ colour
    np.testing.assert_allclose(model.coef_[0].numpy().T, expected[:-1], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(model.intercept_[0].numpy(), expected[-1] + mean, rtol=1e-4, atol=1e-6)


def test_weights_are_those_of_scikit_learn() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    features, matches = examples(600, 40, seed=1)
    model = BoxRegressor(K, RegressionRule(0.4, 50.0)).fit(features, matches)
    for label in range(K):
        x, y = rows_of(label, 0.4, features, matches)
        mean, white, colour = released_model(y)
        ridge = linear_model.Ridge(alpha=50.0, fit_intercept=False).fit(x, (y - mean) @ white)
        found = torch.cat([model.coef_[label], model.intercept_[label][:, None]], dim=1).numpy()
        np.testing.assert_allclose(found, colour @ ridge.coef_ + np.outer(mean, np.eye(41)[-1]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("width", [30, 90])
def test_rows_at_once_or_image_by_image_give_the_same(width: int) -> None:
    """With 30 features the sums take over in the middle; with 90 each class keeps its rows."""
    features, matches = examples(420, width, seed=2)
    whole = BoxRegressor(K).fit(features, matches)
    model = BoxRegressor(K)
    for first in range(0, 420, 35):
        rows = slice(first, first + 35)
        one = Matches(matches.boxes[rows], matches.truth[rows], matches.labels[rows], matches.iou[rows])
        assert model.partial_fit(features[rows], one) is model
    model.solve()
    assert torch.equal(model.rows_, whole.rows_)
    assert width < int(whole.rows_.max()) if width == 30 else int(whole.rows_.max()) < width
    torch.testing.assert_close(model.coef_, whole.coef_, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(model.intercept_, whole.intercept_, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("scale", [0.25, 3.7])
@pytest.mark.parametrize("width", [30, 90])
def test_a_scale_that_is_known_at_the_end_gives_what_scaled_features_give(width: int, scale: float) -> None:
    """Give float64 features, so that scaling them first rounds no more than scaling their sums; coef_ is float32."""
    features, matches = examples(420, width, seed=6)
    first = BoxRegressor(K, RegressionRule(0.4, 5.0)).fit(features.double() * scale, matches)
    late = BoxRegressor(K, RegressionRule(0.4, 5.0)).partial_fit(features.double(), matches).solve(scale)
    plain = BoxRegressor(K, RegressionRule(0.4, 5.0)).fit(features.double(), matches)
    size = float(first.coef_.abs().max())
    torch.testing.assert_close(late.coef_, first.coef_, rtol=1e-6, atol=1e-7 * size)
    torch.testing.assert_close(late.intercept_, first.intercept_, rtol=1e-6, atol=1e-7)
    # the bias is penalised as strongly whatever the scale: it is no matter of another penalty
    other = BoxRegressor(K, RegressionRule(0.4, 5.0 / scale**2)).fit(features.double(), matches)
    assert float((other.coef_ / scale - first.coef_).abs().max()) > 1e-4 * size
    assert float((plain.coef_ / scale - first.coef_).abs().max()) > 1e-2 * size
    with pytest.raises(ValueError, match=r"^expected a positive scale, got 0"):
        late.solve(0)


def test_whitened_targets_are_uncorrelated() -> None:
    """Leave variances D / (D + 0.001) on the axes of the covariance, nearly 1 where targets vary by more than 0.03."""
    x = torch.randn(5000, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    y = x @ torch.tensor([[0.5, 0.3, 0, 0], [0, 0.4, 0, 0.2], [0, 0, 1.5, 1], [0, 0, 0, 0.3]], dtype=torch.float64)
    y = y - y.mean(dim=0)
    covariance = y.T @ y / len(y)
    white, colour = whitening(covariance)
    eye = torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(white @ colour, eye)
    torch.testing.assert_close(white, white.T)
    found = (y @ white).T @ (y @ white) / len(y)
    torch.testing.assert_close(found, covariance @ torch.linalg.inv(covariance + 0.001 * eye))
    assert float((found - eye).abs().max()) < 0.001 / float(torch.linalg.eigvalsh(covariance)[0])
    assert torch.isfinite(whitening(torch.zeros(4, 4, dtype=torch.float64))[0]).all()


def test_the_rule_chooses_the_rows() -> None:
    """Put two rows on each side of the bound and one on it; background rows never count."""
    features, matches = examples(6, 5)
    iou = torch.tensor([0.59, 0.61, 0.6, 0.2, 0.95, 0.99])
    labels = torch.tensor([0, 0, 0, 0, 0, K])
    matches = Matches(matches.boxes, matches.truth, labels, iou.double())
    assert BoxRegressor(K, RegressionRule(0.6, 1.0)).fit(features, matches).rows_.tolist() == [3, 0, 0]
    assert (RULES["spp"].iou, RULES["spp"].penalty) == (0.5, 4000)
    assert (RULES["rcnn"].iou, RULES["rcnn"].penalty) == (0.6, 1000)
    with pytest.raises(FrozenInstanceError):
        RULES["spp"].iou = 0.7  # type: ignore[misc]


def test_without_penalty_to_speak_of_the_objects_are_found() -> None:
    """Encode and decode must undo each other: with more features than rows the fit is exact, and so are the boxes."""
    features, matches = examples(120, 200, seed=4)
    model = BoxRegressor(K, RegressionRule(0.0, 1e-7)).fit(features, matches)
    own = matches.labels < K
    found = model.predict(features[own], matches.boxes[own], matches.labels[own])
    torch.testing.assert_close(found, matches.truth[own], rtol=1e-4, atol=0.02)
    assert float((matches.boxes - matches.truth)[own].abs().mean()) > 5


def test_perfect_boxes_stay() -> None:
    features, matches = examples(200, 10)
    model = BoxRegressor(K).fit(features, Matches(matches.boxes, matches.boxes, matches.labels, torch.ones(200)))
    assert bool(model.fitted_.all())
    others, wanted = examples(50, 10, seed=9)
    found = model.predict(others, wanted.boxes)
    torch.testing.assert_close(found, wanted.boxes[:, None].expand(-1, K, -1), rtol=0, atol=1e-4)


def test_a_class_with_few_rows_leaves_boxes_as_they_are() -> None:
    features, matches = examples(400, 12)
    few = (matches.labels != 1) | ((matches.labels == 1) & (torch.arange(400) < 60))
    kept = Matches(matches.boxes[few], matches.truth[few], matches.labels[few], matches.iou[few])
    model = BoxRegressor(K).fit(features[few], kept)
    assert 0 < int(model.rows_[1]) < MIN_ROWS <= int(model.rows_[0])
    assert model.fitted_.tolist() == [True, False, True]
    found = model.predict(features, matches.boxes)
    assert torch.equal(found[:, 1], matches.boxes)
    assert float((found[:, 0] - matches.boxes).abs().mean()) > 0.1


def test_labels_choose_among_all_classes() -> None:
    features, matches = examples(300, 12)
    model = BoxRegressor(K).fit(features, matches)
    labels = torch.arange(300) % K
    every = model.predict(features, matches.boxes)
    assert tuple(every.shape) == (300, K, 4)
    assert torch.equal(model.predict(features, matches.boxes, labels), every[torch.arange(300), labels])
    assert tuple(model.predict(features[:0], matches.boxes[:0]).shape) == (0, K, 4)
    assert tuple(model.predict(features[:0], matches.boxes[:0], labels[:0]).shape) == (0, 4)


def test_one_class_is_refitted_and_the_others_are_not() -> None:
    features, matches = examples(300, 12)
    model = BoxRegressor(K).fit(features, matches)
    before = model.state()
    new, more = examples(200, 12, seed=8)
    own = more.labels == 2
    model.partial_fit(new[own], Matches(more.boxes[own], more.truth[own], more.labels[own], more.iou[own])).solve()
    after = model.state()
    for name in ("coef", "intercept", "rows"):
        assert torch.equal(after[name][:2], before[name][:2])
        assert not torch.equal(after[name][2], before[name][2])


def test_the_state_survives_a_file(tmp_path: Path) -> None:
    features, matches = examples(300, 12)
    model = BoxRegressor(K, "rcnn").fit(features, matches)
    save_file(model.state(), tmp_path / "boxes.safetensors")
    again = BoxRegressor.from_state(load_file(tmp_path / "boxes.safetensors"))
    assert again.rule == RULES["rcnn"]
    assert torch.equal(again.predict(features, matches.boxes), model.predict(features, matches.boxes))
    assert (again.classes, again.n_features_in_, again.rows_.tolist()) == (K, 12, model.rows_.tolist())


def test_bad_input_is_refused() -> None:
    features, matches = examples(40, 12)
    model = BoxRegressor(K)
    with pytest.raises(ValueError, match=r"^expected a fitted BoxRegressor, got"):
        model.predict(features, matches.boxes)
    with pytest.raises(ValueError, match=r"^expected a rule for regression among spp, rcnn, got 'fast'$"):
        BoxRegressor(K, "fast")
    with pytest.raises(ValueError, match=r"^expected features of shape \(R, d\) for 40 proposals, got \(39, 12\)"):
        model.fit(features[1:], matches)
    flat = Matches(matches.boxes, matches.truth * torch.tensor([1.0, 0, 1, 0]), matches.labels, matches.iou)
    with pytest.raises(ValueError, match=r"^expected finite features and boxes of positive sides, got others$"):
        model.fit(features, flat)
    model.fit(features, matches)
    with pytest.raises(ValueError, match=r"^expected 12 features per proposal, got 7$"):
        model.partial_fit(features[:, :7], matches)
    with pytest.raises(ValueError, match=r"^expected 40 labels in \[0, 3\), got"):
        model.predict(features, matches.boxes, torch.full((40,), K))
    with pytest.raises(ValueError, match=r"^expected labels in \[0, 2\], got"):
        BoxRegressor(2).fit(features, matches)
    with pytest.raises(ValueError, match=r"^expected the state of a BoxRegressor, got one without rule$"):
        BoxRegressor.from_state({name: value for name, value in model.state().items() if name != "rule"})
