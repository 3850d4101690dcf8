"""Check the linear support vector machines against scikit-learn's liblinear, a general optimiser and their own dual."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize

from detector.dual_descent import inner_products
from detector.svm import LinearSVM, norm_factor

Array = NDArray[Any]


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def problem(rows: int, columns: int, classes: int, seed: int = 0) -> tuple[Array, Array]:
    """Return overlapping classes: features (n, d) float32 of mean norm 20, and labels (n,)."""
    numbers = np.random.default_rng(seed)
    labels = np.arange(rows) % classes
    hidden = numbers.standard_normal((rows, 8)) + 1.2 * numbers.standard_normal((classes, 8))[labels]
    features = hidden @ numbers.standard_normal((8, columns)) + numbers.standard_normal((rows, columns))
    features *= 20 / np.linalg.norm(features, axis=1).mean()
    return features.astype(np.float32), labels


def signs_of(labels: Array) -> Array:
    return np.where(labels[:, None] == np.unique(labels), 1, -1)


def objective(svm: LinearSVM, features: Array, signs: Array, weights: tuple[Array, Array], scale: float = 1) -> Array:
    """Write out the documented objective (K,) in float64; weights: w (K, d) of scaled features and intercepts (K,)."""
    w, intercepts = weights[0].astype(np.float64), weights[1].astype(np.float64)
    margins = signs * (scale * features.astype(np.float64) @ w.T + intercepts)
    losses = np.maximum(0, 1 - margins) ** (2 if svm.loss == "squared_hinge" else 1)
    costs = svm.C * np.where(signs > 0, svm.positive_weight, 1) * (signs != 0)
    bias = intercepts / svm.bias_multiplier
    return (w**2).sum(axis=1) / 2 + bias**2 / 2 + (costs * losses).sum(axis=0)


def liblinear(svm: LinearSVM, features: Array, signs: Array) -> Array:
    """Return the objectives (K,) that scikit-learn's solver reaches, given a much smaller tolerance."""
    oracle = pytest.importorskip("sklearn.svm", reason="scikit-learn is the oracle").LinearSVC
    weights, intercepts = [], []
    for column in signs.T:
        other = oracle(
            C=svm.C,
            loss=svm.loss,
            class_weight={1: svm.positive_weight, -1: 1.0},
            intercept_scaling=svm.bias_multiplier,
            tol=1e-6,
            max_iter=200_000,
        )
        used = column != 0
        other.fit(features[used].astype(np.float64), column[used])
        weights.append(other.coef_[0])
        intercepts.append(other.intercept_[0])
    return objective(svm, features, signs, (np.array(weights), np.array(intercepts)))


CASES = {
    "paper, n < d": ((90, 300, 3), {}),
    "paper, n > d": ((400, 30, 4), {}),
    "large C, n < d": ((60, 150, 3), {"C": 1.0}),
    "large C, n > d": ((200, 12, 3), {"C": 0.05, "max_iter": 20_000}),
    "other weights": ((120, 40, 3), {"C": 0.01, "positive_weight": 7.5, "bias_multiplier": 1.0}),
    "fewer positives": ((120, 40, 12), {"positive_weight": 0.5, "bias_multiplier": 30.0}),
}


@pytest.mark.parametrize("solver", ["rows", "gram"])
@pytest.mark.parametrize("loss", ["hinge", "squared_hinge"])
@pytest.mark.parametrize("case", CASES)
def test_the_objective_is_that_of_liblinear(case: str, loss: str, solver: str) -> None:
    shape, parameters = CASES[case]
    features, labels = problem(*shape)
    svm = LinearSVM(loss=loss, solver=solver, tol=1e-4, **parameters).fit(features, labels)
    mine = objective(svm, features, signs_of(labels), (svm.coef_, svm.intercept_))
    np.testing.assert_allclose(mine, liblinear(svm, features, signs_of(labels)), rtol=2e-4)
    # scores of a few units are summed in float32, so each margin is known to about 1e-6
    total = svm.C * np.where(signs_of(labels) > 0, svm.positive_weight, 1).sum(axis=0).max()
    np.testing.assert_allclose(svm.objective_, mine, rtol=1e-5, atol=1e-6 * total)
    assert (svm.gap_ <= 1e-4).all() and (svm.gap_ > -1e-6).all()


@pytest.mark.parametrize("solver", ["rows", "gram"])
@pytest.mark.parametrize("loss", ["hinge", "squared_hinge"])
def test_rows_that_are_left_out_do_not_count(loss: str, solver: str) -> None:
    features, labels = problem(150, 50, 3)
    signs = signs_of(labels)
    signs[np.random.default_rng(1).random(signs.shape) < 0.3] = 0
    svm = LinearSVM(C=0.01, loss=loss, solver=solver, tol=1e-4).fit(features, signs.astype(np.int8))
    mine = objective(svm, features, signs, (svm.coef_, svm.intercept_))
    np.testing.assert_allclose(mine, liblinear(svm, features, signs), rtol=2e-4)
    used = signs[:, 1] != 0
    alone = LinearSVM(C=0.01, loss=loss, solver=solver, tol=1e-4).fit(features[used], signs[used, 1:2])
    np.testing.assert_allclose(alone.objective_, svm.objective_[1], rtol=2e-4)


@pytest.mark.parametrize("solver", ["rows", "gram"])
def test_a_tiny_problem_against_a_general_optimiser(solver: str) -> None:
    """Minimise the hinge's dual, a quadratic programme in a box, and the squared hinge's primal."""
    features, labels = problem(14, 3, 2)
    signs = signs_of(labels)[:, :1].astype(np.float64)
    svm = LinearSVM(C=0.02, tol=1e-7, max_iter=50_000, solver=solver).fit(features, signs.astype(np.int8))
    longer = np.hstack([features.astype(np.float64), np.full((14, 1), 10.0)]) * signs
    upper = np.where(signs[:, 0] > 0, 0.04, 0.02)
    dual = minimize(
        lambda a: ((a @ longer) ** 2).sum() / 2 - a.sum(),
        np.zeros(14),
        jac=lambda a: longer @ (a @ longer) - 1,
        bounds=[(0, u) for u in upper],
        options={"ftol": 1e-15, "gtol": 1e-12, "maxiter": 10_000},
    )
    w = dual.x @ longer
    np.testing.assert_allclose(svm.objective_, -dual.fun, rtol=1e-6)
    np.testing.assert_allclose(np.append(svm.coef_[0], svm.intercept_ / 10), w, atol=2e-4)

    squared = LinearSVM(C=0.02, loss="squared_hinge", tol=1e-7, max_iter=50_000, solver=solver)
    squared.fit(features, signs.astype(np.int8))
    primal = minimize(
        lambda v: (v**2).sum() / 2 + (upper * np.maximum(0, 1 - longer @ v) ** 2).sum(),
        np.zeros(4),
        options={"gtol": 1e-9},
    )
    np.testing.assert_allclose(squared.objective_, primal.fun, rtol=1e-6)


@pytest.mark.parametrize("solver", ["rows", "gram"])
def test_the_scale_of_the_features_is_learned_and_part_of_the_weights(solver: str) -> None:
    features, labels = problem(120, 150, 3)
    raw = features * np.float32(0.37)
    plain = LinearSVM(tol=1e-5, solver=solver).fit(features * np.float32(norm_factor(features)), labels)
    scaled = LinearSVM(tol=1e-5, solver=solver, feature_norm=20.0).fit(raw, labels)
    assert scaled.scale_ == pytest.approx(20 / np.linalg.norm(raw.astype(np.float64), axis=1).mean(), rel=1e-6)
    np.testing.assert_allclose(scaled.objective_, plain.objective_, rtol=3e-5)
    unscaled = (scaled.coef_ / scaled.scale_, scaled.intercept_)
    by_hand = objective(scaled, raw, signs_of(labels), unscaled, scaled.scale_)
    np.testing.assert_allclose(scaled.objective_, by_hand, rtol=1e-5)
    expected = raw.astype(np.float64) @ scaled.coef_.T.astype(np.float64) + scaled.intercept_
    np.testing.assert_allclose(scaled.decision_function(raw), expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(70, 2500, 4), (300, 45, 5)])
@pytest.mark.parametrize("solver", ["rows", "gram"])
def test_neither_threads_nor_other_classes_change_a_bit(shape: tuple[int, int, int], solver: str) -> None:
    features, labels = problem(*shape)
    signs = signs_of(labels).astype(np.int8)
    results = []
    for threads in (1, 2, 2):
        torch.set_num_threads(threads)
        svm = LinearSVM(C=0.01, solver=solver).fit(features, signs)
        results.append((svm.coef_, svm.intercept_, svm.n_iter_, svm.gap_, svm.decision_function(features)))
    alone = LinearSVM(C=0.01, solver=solver).fit(features, signs[:, 2:3])
    for first, second, third in zip(*results, strict=True):
        assert first.tobytes() == second.tobytes() == third.tobytes()
    assert alone.coef_.tobytes() == results[0][0][2:3].tobytes()
    other = LinearSVM(C=0.01, solver=solver, seed=1).fit(features, signs)
    assert other.coef_.tobytes() != results[0][0].tobytes()


def test_starting_from_the_solution_takes_no_more_passes() -> None:
    features, labels = problem(200, 60, 3)
    svm = LinearSVM(C=0.02)
    signs = signs_of(labels).astype(np.int8)
    found = svm.solve(features, signs)
    again = svm.solve(features, signs, found.alpha)
    assert again.sweeps.max() < found.sweeps.min()
    np.testing.assert_allclose(again.objective, found.objective, rtol=1e-3)


def test_inner_products_of_every_small_shape() -> None:
    numbers = np.random.default_rng(0)
    for rows, others, columns in [(1, 1, 1), (3, 5, 7), (4, 2, 1025), (33, 65, 9), (70, 1, 2100), (5, 34, 1024)]:
        left = numbers.standard_normal((rows, columns)).astype(np.float32)
        right = numbers.standard_normal((others, columns)).astype(np.float32)
        products = inner_products(left, right)
        expected = left.astype(np.float64) @ right.T.astype(np.float64)
        np.testing.assert_allclose(products, expected, atol=2e-6 * columns**0.5 + 1e-6)
        assert inner_products(left[-1:], right).tobytes() == products[-1:].tobytes()


def test_it_names_classes_and_keeps_scikit_learns_contract() -> None:
    features, labels = problem(120, 40, 3)
    names = np.array(["boat", "cow", "aeroplane"])[labels]
    svm = LinearSVM(C=0.01)
    assert svm.fit(torch.from_numpy(features), names) is svm
    assert svm.classes_.tolist() == ["aeroplane", "boat", "cow"]
    assert (svm.coef_.shape, svm.coef_.dtype, svm.intercept_.shape) == ((3, 40), np.float32, (3,))
    scores = svm.decision_function(features)
    assert svm.predict(features).tolist() == svm.classes_[scores.argmax(axis=1)].tolist()
    assert svm.score(features, names) == np.mean(svm.predict(features) == names) > 0.6
    ordered = LinearSVM(C=0.01).fit(features, names, classes=["cow", "boat", "aeroplane"])
    assert ordered.coef_.tobytes() == svm.coef_[::-1].tobytes()
    assert svm.set_params(C=0.5, loss="squared_hinge").get_params()["C"] == 0.5
    assert "coef_" not in svm.get_params()


def test_scikit_learn_can_clone_and_cross_validate_it() -> None:
    sklearn = pytest.importorskip("sklearn", reason="scikit-learn is the caller")
    from sklearn.model_selection import GridSearchCV

    features, labels = problem(120, 40, 3)
    copy = sklearn.clone(LinearSVM(C=0.02, seed=3).fit(features, labels))
    assert (copy.C, copy.seed, hasattr(copy, "coef_")) == (0.02, 3, False)
    search = GridSearchCV(LinearSVM(), {"C": [1e-6, 1e-2]}, cv=3).fit(features, labels)
    assert search.best_score_ > 0.5


def test_a_class_that_does_not_get_there_is_named() -> None:
    features, labels = problem(200, 12, 3)
    with pytest.warns(RuntimeWarning, match=r"^0, 1, 2: gap up to .* after 2 passes, expected at most 1e-06"):
        svm = LinearSVM(C=10.0, max_iter=2, tol=1e-6).fit(features, labels)
    assert svm.n_iter_.tolist() == [2, 2, 2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LinearSVM().fit(features, labels)


FEATURES, LABELS = problem(12, 5, 3)
HOLE = np.where(np.arange(60).reshape(12, 5) == 17, np.nan, FEATURES).astype(np.float32)


@pytest.mark.parametrize(
    ("features", "y", "parameters", "message"),
    [
        (FEATURES[0], LABELS, {}, r"expected features of shape \(n, d\)"),
        (FEATURES.astype(np.int64), LABELS, {}, "type float32, got .* int64"),
        (HOLE, LABELS, {}, "expected finite features"),
        (FEATURES, LABELS[:-1], {}, "expected 12 labels"),
        (FEATURES, np.full((12, 2), 2), {}, "expected signs 1, -1 or 0"),
        (FEATURES, np.ones((12, 1)), {}, "got no negatives of 0"),
        (FEATURES, signs_of(LABELS) * [1, 1, 0], {}, "got no positives of 2"),
        (FEATURES, np.zeros(12), {}, "got no negatives of 0.0"),
        (FEATURES, LABELS, {"C": 0.0}, "expected a positive C, got 0.0"),
        (FEATURES, LABELS, {"tol": -1.0}, "expected a positive tol"),
        (FEATURES, LABELS, {"max_iter": 0}, "max_iter of 1 or more, got 10.0 and 0"),
        (FEATURES, LABELS, {"loss": "logistic"}, "expected loss to be one of hinge, squared_hinge, got logistic"),
        (FEATURES, LABELS, {"solver": "smo"}, "expected solver to be one of auto, gram, rows, got smo"),
        (FEATURES * 0, LABELS, {"feature_norm": 20.0}, "expected features that are not all 0"),
    ],
)
def test_wrong_input_is_refused(features: Array, y: Array, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LinearSVM(**parameters).fit(features, y)


def test_wrong_calls_are_refused() -> None:
    with pytest.raises(ValueError, match="before fit"):
        LinearSVM().decision_function(FEATURES)
    svm = LinearSVM().fit(FEATURES, LABELS)
    with pytest.raises(ValueError, match="expected 5 features as in training, got 4"):
        svm.predict(FEATURES[:, :4])
    with pytest.raises(ValueError, match=r"labels among \[0, 1\], got \[2\]"):
        svm.fit(FEATURES, LABELS, classes=[0, 1])
    with pytest.raises(ValueError, match="got gamma"):
        svm.set_params(gamma=1)
